"""Logit lens: at which layer, and at which tokens, can the model's own read-out already read the answer?

    1. one forward pass per batch; keep the chosen sites, all tokens
    2. every site through the model's own read-out (`probes.lenses.read_out`): whole, or token by token
    3. measures per reading against the target and the final answer, mean over the tokens of a kind per image
    4. mean over images with a bootstrap interval over images

For CLIP the classes are texts: pass `clip.classifier(names)`, or the clip and `texts=`.

Source: methods.md 3.3 (**A** Vilas et al. 2023 for the projection, **K** for identifiability). How to read it: a layer
whose lens is at chance may still hold the information, in another basis; the tuned lens and probes ask for that. Norm
statistics of early layers amplify what is small; `statistics="final"` shows how much that matters. Patches of very high
norm (registers of the model's own making) give spurious peaks: they are counted, warned about, and can be left out.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mechvis.errors import BadData, MechvisWarning, NotFinite, OutOfRange, ResultMismatch, unknown
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.stats import RESAMPLES, bootstrap
from mechvis.store.rows import one_image
from probes.lenses.measures import MEASURES, NEED_TARGETS, WORDS, chance, measures
from probes.lenses.passes import Batches
from probes.lenses.read_out import final_scale, read_tokens, read_whole, what_is_read
from probes.lenses.table import LensTable
from probes.lenses.targets import targets_of, with_texts
from probes.lenses.tokens import Kind, Kinds, kinds_of, mean_over, outliers
from probes.lenses.tuned import TunedLens

Statistics = Literal["layer", "final"]
OUTLIER_RATIO = 3.0
_AT_ONCE = 2**23
"""Readings (tokens times classes) at once."""
_WORTH_A_WARNING = 0.005
"""Share of outliers from which on a warning is given: one patch of 196."""


@torch.no_grad()
def logit_lens(
    model: Any,
    images: Any,
    *,
    sites: str | Sequence[str] = "blocks.*.hook_resid_post",
    tokens: Kind | Sequence[Kind] = "read",
    target: Any = None,
    statistics: Statistics = "layer",
    tuned: TunedLens | None = None,
    texts: Sequence[str] | None = None,
    templates: Any = ("a photo of a {}",),
    outlier_ratio: float = OUTLIER_RATIO,
    leave_out_outliers: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
    budget: str | int | None = None,
    progress: bool = True,
    allow_overlap: bool = False,
) -> LensTable:
    """Read every layer as the model reads its last one, and say how good the answers are.

    Args:
        model: a wrapped image tower with a head, or a CLIP with `texts`.
        images: an `ImageSet`, or pixels `[image channel height width]`.
        sites: names or patterns of sites with the width of the stream: `hook_resid_*`, `hook_attn_out`, `hook_mlp_out`.
        tokens: kinds of tokens (`probes.lenses.tokens`): read, cls, registers, patches, object, background.
        target: what should be read: labels (default), a column, or one class per image.
        statistics: of the last norm: `layer` recomputes them from what is read; `final` keeps the final stream's.
        tuned: a tuned lens of this model; its readings stand beside.
        texts: for CLIP: the classes.
        templates: for CLIP: prompts with {} for a class.
        outlier_ratio: a patch is an outlier if its norm is this many times its image's median (**X**).
        leave_out_outliers: read no outlier patch.
        resamples: of the bootstrap over images.
        seed: of the bootstrap.
        budget: memory for a forward pass, e.g. `"2GB"`.
        progress: show a progress bar.
        allow_overlap: read images that the tuned lens was trained on.

    Returns:
        LensTable: a row per site and kind of token.

    Raises:
        UnknownSite, UnknownName: a pattern, kind, column or class that does not exist.
        BadData: sites of another width, masks or tokens that are missing, a model without a head, texts without CLIP.
        NotFinite: a reading that is NaN or Inf; names the site.
        ResultMismatch: a tuned lens of another model.
        SplitOverlap: images that the tuned lens was trained on.

    Example:
        >>> found = logit_lens(model, images, tokens=["read", "object", "background"])         # doctest: +SKIP
        >>> found.readable_from("object")                                                      # doctest: +SKIP
        2
        >>> logit_lens(clip, images, texts=["circle", "star"], target="label").table           # doctest: +SKIP
    """
    if statistics not in ("layer", "final"):
        raise unknown("statistics", statistics, ("layer", "final"))
    if not outlier_ratio > 1:
        raise OutOfRange(f"outlier_ratio={outlier_ratio}: an outlier has a norm above the median; give more than 1.")
    model = with_texts(model, texts, templates)
    passes = Batches.over(model, images, sites, budget)
    kinds = kinds_of(model, images, tokens, passes.parts)
    if tuned is not None:
        tuned.check(model)
    n_classes = model.run(one_image(model, images), check_finite=False).output.shape[-1]
    targets = targets_of(model, images, target, n_classes)
    lenses = ["logit"] if tuned is None else ["logit", "tuned"]
    rows = [(lens, site, kind) for lens in lenses for site in passes.sites for kind in kinds.names]
    rows = [(lens, site, kind) for lens, site, kind in rows if lens == "logit" or site in tuned.sites]
    if tuned is not None and not any(lens == "tuned" for lens, _, _ in rows):
        raise ResultMismatch(f"the tuned lens has none of the sites {list(passes.sites)}; it has {list(tuned.sites)}.")
    names = [name for name in MEASURES if targets is not None or name not in NEED_TARGETS]
    names = [name for name in names if name != "cosine" or hasattr(model.parts.head, "prompts")]
    values = {name: np.full((len(rows), len(images)), np.nan) for name in names}
    strange: dict[str, list[float]] = {site: [] for site in passes.sites}
    with track(len(images), "lens", " images", show=progress) as bar:
        for batch in passes:
            part, final = batch.part, batch.output
            if tuned is not None and not allow_overlap:
                tuned.refuse_seen(batch.digests())
            scale = final_scale(model, batch.last) if statistics == "final" else None
            each = None if targets is None else targets[part].to(final.device)
            for site in passes.sites:
                stream = batch.cache[site]
                odd = outliers(stream, len(passes.parts.prefix), outlier_ratio)
                strange[site].extend(odd[:, len(passes.parts.prefix) :].double().mean(1).tolist())
                for lens in lenses:
                    chosen = [i for i, row in enumerate(rows) if row[:2] == (lens, site)]
                    if not chosen:
                        continue
                    x = stream if lens == "logit" else tuned.translate(site, stream)
                    members = kinds.of(part).to(x.device)
                    if leave_out_outliers:
                        members = members & ~odd[:, None]
                    found = _per_kind(model, x, kinds, members, final, each, scale)
                    for name in names:
                        values[name][np.ix_(chosen, part)] = found[name].cpu().numpy()
                    _check(found["kl"], site, kinds.names, members)
            bar.update(len(part))
    table = _table(rows, values, strange, model, resamples, seed)
    cls_read = isinstance(model.parts.reads, tuple)
    caveats = _caveats(table, statistics, outlier_ratio, leave_out_outliers, kinds.names, cls_read)
    return LensTable(
        title=f"Lens on {model.title or model.parts.family}",
        tables={"layers": table},
        arrays=values,
        facts={
            "chance": {} if targets is None else chance(targets, n_classes),
            "classes": n_classes,
            "images": len(images),
            "statistics": statistics,
            "what is read": what_is_read(model),
            "outlier ratio": outlier_ratio,
            "outliers left out": leave_out_outliers,
        },
        words={
            **{name: WORDS[name] for name in names},
            "lens": "logit: the read-out alone; tuned: after a learned affine map",
            "tokens": "which tokens were read; a mean over them within each image",
            "n": "images with at least one such token",
            "outliers": "share of the patches whose norm is above the outlier ratio times their image's median",
        },
        caveats=caveats,
        provenance=provenance(
            model=model,
            images=images if hasattr(images, "ids") else None,
            seed={"bootstrap": seed},
            lens={"sites": list(passes.sites), "tokens": list(kinds.names), "resamples": resamples},
        ),
    )


def _per_kind(
    model: Any,
    x: Tensor,
    kinds: Kinds,
    members: Tensor,
    final: Tensor,
    targets: Tensor | None,
    scale: Tensor | None,
) -> dict[str, Tensor]:
    """Measures `[kind image]` of one site."""
    head = model.parts.head
    used = kinds.used.nonzero().flatten().tolist()
    found: dict[str, Tensor] = {}
    if used:
        # In pieces: with many classes, the readings of all patches are much larger than the stream.
        step = max(1, _AT_ONCE // (len(used) * final.shape[-1]))
        pieces = []
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            vectors = x[rows][:, used]
            each = None if scale is None else scale[rows].expand(-1, x.shape[1], -1)[:, used].flatten(0, 1)
            logits = read_tokens(model, vectors.flatten(0, 1), scale=each).unflatten(0, vectors.shape[:2])
            single = measures(logits, final[rows], None if targets is None else targets[rows], head)
            pieces.append({name: mean_over(value, members[rows][:, :, used]) for name, value in single.items()})
        found = {name: torch.cat([piece[name] for piece in pieces], dim=1) for name in pieces[0]}
    if "read" in kinds.names:
        whole = measures(read_whole(model, x, scale=scale), final, targets, head)
        for name, value in whole.items():
            found.setdefault(name, value.new_full((len(kinds.names), len(x)), torch.nan))
            found[name][kinds.names.index("read")] = value
    return found


def _check(kl: Tensor, site: str, names: tuple[str, ...], members: Tensor) -> None:
    """NaN is for images without such tokens only."""
    expected = members.any(-1).T | torch.tensor([name == "read" for name in names], device=kl.device)[:, None]
    bad = expected & ~torch.isfinite(kl)
    if bad.any():
        kind = names[int(bad.nonzero()[0, 0])]
        raise NotFinite(
            f"{site}, tokens {kind!r}: a reading is NaN or Inf. A write that is zero has no direction for a zero-shot "
            "head to compare; or the activations are broken."
        )


def _table(
    rows: list[tuple[str, str, str]],
    values: dict[str, np.ndarray],
    strange: dict[str, list[float]],
    model: Any,
    resamples: int,
    seed: int,
) -> pl.DataFrame:
    layers = [model.graph[site].layer for _, site, _ in rows]
    columns: dict[str, Any] = {
        "lens": [row[0] for row in rows],
        "site": [row[1] for row in rows],
        "layer": pl.Series(layers, dtype=pl.Int64),
        "tokens": [row[2] for row in rows],
    }
    for name, per_image in values.items():
        known = bootstrap(per_image, resamples=resamples, seed=seed)
        columns.setdefault("n", known.n)
        columns |= {name: known.effect, f"{name}_low": known.low, f"{name}_high": known.high}
    columns["outliers"] = [float(np.mean(strange[site])) for _, site, _ in rows]
    if not columns["n"].all():
        empty = rows[int(np.flatnonzero(columns["n"] == 0)[0])]
        raise BadData(f"no image has a token of the kind {empty[2]!r} at {empty[1]}.")
    return pl.DataFrame(columns).with_columns(pl.col(pl.Float64).fill_nan(None))


def _caveats(
    table: pl.DataFrame, statistics: str, ratio: float, left_out: bool, kinds: tuple[str, ...], cls_read: bool
) -> tuple[str, ...]:
    said = [
        "A lens at chance does not mean that the layer knows nothing: early layers use another basis. Compare a tuned "
        "lens and linear probes.",
        "The last norm's statistics are recomputed from what is read, which amplifies small early streams; compare "
        "statistics='final'."
        if statistics == "layer"
        else "The last norm's statistics are the final stream's, so early streams give flatter answers than their own "
        "statistics would.",
    ]
    # A class token alone is read where it stands: what patches there are does not matter to it.
    alone = ("patches", "object", "background") if cls_read else ("patches", "object", "background", "read")
    patches = [kind for kind in kinds if kind in alone]
    if (most := float(table["outliers"].max())) > 0 and patches:
        where = table.filter(pl.col("outliers") == most)["site"][0]
        words = (
            f"Up to {most:.1%} of the patches have a norm above {ratio:g} times their image's median ({where}): such "
            "patches hold something of the whole image, and a lens on them gives spurious peaks."
        )
        if left_out:
            words += " They were left out of the single-token readings."
        elif most >= _WORTH_A_WARNING:
            warnings.warn(f"{words} leave_out_outliers=True leaves them out.", MechvisWarning, stacklevel=4)
        said.append(words)
    return tuple(said)
