"""Dictionaries judged beside baselines: one table, a row per dictionary, every number with its interval.

1. Images are parted: a third (or `reference=`) fits baselines, gives the mean of the mean ablation, and trains probes
   and thresholds; the others judge.
2. One pass over the judging images. Each batch is run clean once; every dictionary encodes and decodes the same rows
   and is put in their place, and all sums are kept per image.
3. What needs labels (probing, absorption) uses one vector of codes per image.

The identity scores FVU 0 and everything recovered, the zero dictionary recovers nothing of the zero ablation: rows of
the table that say that the scale is right (D2 of faithfulness.md 5.2).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.errors import BadData, ShapeMismatch, unknown
from mechvis.provenance import provenance
from sae.dictionary import Dictionary
from sae.evaluation.absorption import absorption, scene_hierarchy, shared
from sae.evaluation.coherence import coherence
from sae.evaluation.evaluation import DictionaryEvaluation, record
from sae.evaluation.place import Place, place_of
from sae.evaluation.probing import concepts_of, sparse_probing
from sae.evaluation.reference import Reference, baseline, reference_rows, refuse_training_images
from sae.evaluation.session import Judged, Session

METRICS = ("recovered", "monosemanticity", "probing", "spatial", "absorption", "coherence")


def evaluate(
    dictionaries: Dictionary | Mapping[str, Dictionary],
    model: Any,
    images: ImageSet,
    site: str | None = None,
    *,
    metrics: Sequence[str] | None = None,
    baselines: Sequence[str] = ("pca", "random", "identity", "zero"),
    reference: ImageSet | None = None,
    judge: Any = None,
    trained_on: ImageSet | None = None,
    allow_overlap: bool = False,
    head: int | None = None,
    tokens: str | Sequence[int] = "all",
    pool: str = "mean",
    ks: Sequence[int] = (1, 4, 16),
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> DictionaryEvaluation:
    """Judge dictionaries of one site (or of the same several sites) beside baselines.

    Args:
        dictionaries: one, or several by name. Transcoders and crosscoders too; all have to read and write the same.
        model: a wrapped model; for CLIP `clip.classifier(names)`, whose logits carry the logit scale.
        images: an `ImageSet` with labels, where accuracy and loss are wanted.
        site: the site, where the dictionaries' own name for it is another (one that was trained on a plain matrix).
        metrics: of recovered, monosemanticity, probing, spatial, absorption, coherence, besides FVU, L0, dead latents
            and cosine, which are always there; None: all that the images allow.
        baselines: pca, pca_rank, ica, kmeans, nmf, semi_nmf, random, identity, zero, mean: with as many active latents
            per row as the first dictionary.
        reference: images that baselines, means, probes and thresholds come from; None: a third of `images`, which then
            does not judge.
        judge: a wrapped model whose final embedding says which images are alike (for monosemanticity); None: the model
            itself, which is kinder to dictionaries of its own late layers than another model would be.
        trained_on: the images that trained the dictionaries: to refuse to judge on them.
        allow_overlap: judge on them all the same.
        head: the only head, where a row is one head of a site with heads.
        tokens: which tokens' rows: all, cls, registers, prefix, patches, or positions.
        pool: one number per image and latent for probing and absorption: mean over its rows, or max.
        ks: latents that sparse probes see.
        batch_size: images per forward.
        seed: of splits, baselines and resamples.
        progress: show progress bars.

    Raises:
        SplitOverlap: judging on images that trained the dictionary, or that are the reference.
        BadData: no dictionary, dictionaries of different sites, metrics that these images do not allow.
        UnknownSite, UnknownName, ShapeMismatch, OutOfRange: what is asked does not fit the model.
        NotFinite: NaN or Inf in activations, reconstructions or outputs.

    Example:
        >>> model = mechvis.load("scenes-vit")                                             # doctest: +SKIP
        >>> sae.evaluate(run.dictionaries, model, mechvis.data.scenes(600, seed=3))  # doctest: +SKIP
    """
    named = _named(dictionaries)
    if not isinstance(images, ImageSet):
        raise BadData(f"images is an ImageSet (mechvis.data.folder, scenes, ...), got {type(images).__name__}.")
    unchecked = _overlaps(named, images, reference, trained_on, allow_overlap)
    if reference is None:
        reference, images = images.split(1 / 3, 2 / 3, seed=seed)
    reads, writes = places_of(named, model, site, head, tokens)
    wanted, left_out = _metrics(metrics, model, images, reference, reads, writes, named)
    known = reference_rows(model, reference, {**reads, **writes}, batch_size=batch_size, seed=seed, progress=progress)
    judged = {name: Judged(dictionary=d, kind="trained") for name, d in named.items()}
    first = next(iter(named.values()))
    k = _active(first, reads, known)
    for name in dict.fromkeys(baselines):
        if name in judged:
            raise BadData(f"a dictionary is called {name!r}, as a baseline is: rename it, or leave the baseline out.")
        if first.ends.transcodes:
            continue
        fitted = baseline(name, {s: known.rows[p.site] for s, p in reads.items()}, first.n_latents, k, seed)
        judged[name] = Judged(dictionary=fitted.to(first.scale_in.device), kind="baseline")
    session = Session(model=model, reads=reads, writes=writes, known=known, wanted=wanted, judge=judge, pool=pool)
    session.judge_images(judged, images, batch_size, progress)
    if {"probing", "absorption"} & wanted:
        session.encode_reference(judged, reference, batch_size, progress)
    found = _supervised(session, judged, images, reference, wanted, ks, seed)
    shapes = {name: coherence(j.dictionary) for name, j in judged.items()} if "coherence" in wanted else {}
    notes = [*unchecked, *left_out]
    if first.ends.transcodes and baselines:
        notes.append("Baselines write what they read; beside a transcoder there are none.")
    if "monosemanticity" in wanted and judge is None:
        notes.append("Images are alike as this model itself sees them; give judge= for another model's view.")
    return record(
        {name: (j.kind, j.dictionary.n_latents, j.fit, j.outputs, j.ms, j.maps) for name, j in judged.items()},
        session.clean,
        session.ablated,
        wanted=wanted,
        shapes=shapes,
        probes=found["probing"],
        absorbed=found["absorption"],
        notes=notes,
        facts={"active": k, "sites": [p.site for p in writes.values()], "pool": pool, "n_reference": len(reference),
               "head": head, "tokens": tokens if isinstance(tokens, str) else list(tokens)},
        known=provenance(
            model=model, images=images, seed=seed,
            reference={"name": reference.name, "fingerprint": reference.fingerprint},
            dictionaries={name: d.fingerprint for name, d in named.items()},
        ),
        seed=seed,
    )  # fmt: skip


def _supervised(
    session: Session, judged: Mapping[str, Judged], images: ImageSet, reference: ImageSet, wanted: set[str],
    ks: Sequence[int], seed: int,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """What needs labels."""
    found: dict[str, dict[str, Any]] = {"probing": {}, "absorption": {}}
    told = [concepts_of(s) for s in (reference, images)]
    both = [name for name in told[0] if name in told[1]]
    trees = shared(*map(scene_hierarchy, (reference, images))) if "absorption" in wanted else None
    dense = tuple(np.concatenate(session.rows[part]) for part in ("train", "test")) if "probing" in wanted else None
    for name, one in judged.items():
        if not one.reference:
            continue
        train, test = np.concatenate(one.reference), np.concatenate(one.codes)
        varies = (train.std(0) > 0).any()
        if "probing" in wanted and varies:
            concepts = [{name: t[name] for name in both} for t in told]
            found["probing"][name] = sparse_probing(
                train, concepts[0], test, concepts[1], dense=dense, ks=ks, seed=seed
            )
            # The dense probe knows no dictionary: once is enough.
            dense = None
        # Signed codes have no "silent": absorption is told for codes that are never negative.
        if trees is not None and varies and train.min() >= 0 and test.min() >= 0:
            directions = one.dictionary.directions.detach().double().cpu().numpy()
            found["absorption"][name] = absorption(train, trees[0], test, trees[1], directions, seed=seed)
    return found


def _named(dictionaries: Any) -> dict[str, Dictionary]:
    named = dict(dictionaries) if isinstance(dictionaries, Mapping) else {"dictionary": dictionaries}
    if not named:
        raise BadData("no dictionary to evaluate.")
    for name, d in named.items():
        if not isinstance(d, Dictionary):
            raise BadData(f"{name!r} is a {type(d).__name__}, not a sae.Dictionary; sae.load(folder) reads one.")
    first = next(iter(named.values())).ends
    for name, d in named.items():
        if (d.ends.reads, d.ends.writes) != (first.reads, first.writes):
            raise BadData(
                f"{name!r} reads {', '.join(d.ends.reads)}, another {', '.join(first.reads)}: in one table "
                "they read and write the same sites."
            )
    return named


def _overlaps(
    named: Mapping[str, Dictionary], images: ImageSet, reference: Any, trained_on: Any, allowed: bool
) -> list[str]:
    if reference is not None:
        refuse_overlap(reference, images, what="reference images and images that judge")
    if allowed:
        return ["Dictionaries may have been trained on the images that judge them (allow_overlap=True)."]
    notes = [refuse_training_images(name, d, images, trained_on) for name, d in named.items()]
    return [note for note in notes if note]


def places_of(
    named: Mapping[str, Dictionary], model: Any, site: str | None, head: int | None, tokens: Any
) -> tuple[dict[str, Place], dict[str, Place]]:
    ends = next(iter(named.values())).ends
    if site is not None and (len(ends.reads) > 1 or ends.transcodes):
        raise BadData(f"site={site!r}: this dictionary is about several sites, and they have names of their own.")
    if site is None and list(ends.reads) == ["site"]:
        raise BadData("these dictionaries were trained on a plain matrix: say which site it was, site='blocks.2....'.")

    def of(sites: Mapping[str, int]) -> dict[str, Place]:
        return {n: place_of(model, site or n, width, head=head, tokens=tokens) for n, width in sites.items()}

    reads = of(ends.reads)
    return reads, of(ends.writes) if ends.transcodes else reads


def _metrics(
    metrics: Sequence[str] | None, model: Any, images: ImageSet, reference: ImageSet, reads: Mapping[str, Place],
    writes: Mapping[str, Place], named: Mapping[str, Dictionary],
) -> tuple[set[str], list[str]]:  # fmt: skip
    """Which metrics are possible; a sentence on each that was left out."""
    for name in metrics or ():
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
    why = {}
    place = next(iter(writes.values()))
    grid = getattr(model.parts, "grid", None)
    if len(writes) > 1 or len(reads) > 1 or not place.has_tokens or place.tokens not in ("all", "patches"):
        why["spatial"] = "maps need all patches of one site"
    elif place.per_head and place.head is None:
        why["spatial"] = "a row is one head of a token, so there are several maps"
    elif grid is None or grid[0] * grid[1] < 2:
        why["spatial"] = "this model has no grid of patches"
    concepts = [concepts_of(s) for s in (images, reference)]
    if not set(concepts[0]) & set(concepts[1]):
        why["probing"] = "the images have no labels or columns with several values"
    try:
        scene_hierarchy(images)
    except BadData:
        why["absorption"] = "no hierarchy is known for these images (see sae.evaluation.absorption)"
    if any(d.n_codes != d.n_latents for d in named.values()):
        why |= dict.fromkeys(("coherence", "absorption"), "codes of these dictionaries are not one per direction")
    if len(images) < 3:
        why["monosemanticity"] = "it compares pairs of images, and there are too few"
    wanted = set(METRICS if metrics is None else metrics)
    if metrics is not None and (impossible := [name for name in metrics if name in why]):
        raise BadData(f"{impossible[0]} is not possible here: {why[impossible[0]]}.")
    return wanted - set(why), [f"{name} was left out: {reason}." for name, reason in why.items() if name in wanted]


@torch.no_grad()
def _active(first: Dictionary, reads: Mapping[str, Place], known: Reference) -> int:
    """Active latents per row of the first dictionary, on reference rows."""
    rows = torch.cat([known.rows[p.site] for p in reads.values()], dim=1)[:4096]
    codes = first.encode(rows)
    if codes.ndim != 2:
        raise ShapeMismatch(f"codes are [row latent]; got {list(codes.shape)}.")
    return max(1, round(float((codes != 0).sum(1).double().mean())))
