"""Parts taken out of the sum, and out of the forward pass, side by side.

Replacing a term by its mean over reference images takes away what a part writes *directly* (methods.md 2.1 **C**).
Taking the part out of the forward pass (mean over the same reference images, per token position) also changes what
later blocks do. Where the two differ, later blocks react. The published tables are about the first; a claim that a head
is needed is about the second.

Standard groups: every head, all heads of a layer, all MLPs, attention layers from the bottom up, and (direct path only)
what the class token reads from itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mechvis import edits, metrics, stats
from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.decompose.stream import stream
from mechvis.decompose.terms import Terms
from mechvis.errors import BadData, UnsupportedModel, unknown
from mechvis.labels import with_model_classes
from mechvis.means import means
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.store.forward import reader

REFERENCE_SHARE = 1 / 3
"""Of the images, set aside for the means where no reference is given."""

WORDS = {
    "group": "what is ablated",
    "direct": "fall of the metric when the terms are at their mean: the direct path alone",
    "forward": "fall of the metric when the part is at its mean in the forward pass: everything it does",
    "low": "95 % interval over images, lower end; direct_low, forward_low",
    "accuracy_direct": "accuracy with the terms at their mean",
    "accuracy_forward": "accuracy with the part at its mean in the forward pass",
    "n": "images",
}


def ablations(
    model: Any,
    images: ImageSet,
    *,
    reference: ImageSet | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    layers: int | Iterable[int] | None = None,
    metric: str = "logit_diff",
    self_attention: bool = False,
    batch_size: int = 32,
    seed: int = 0,
    allow_overlap: bool = False,
    progress: bool = True,
) -> Record:
    """Mean ablation of the direct path beside mean ablation in the forward pass.

    Args:
        model: a wrapped model with a head.
        images: labelled images (without labels: against the clean predictions).
        reference: images for the means, disjoint from `images`; None sets a third of `images` aside.
        groups: name -> terms (`L3H1`, `L2MLP`); None: the standard groups of the chosen layers.
        layers: see :func:`mechvis.decompose.decompose`; None: all.
        metric: name of one of `mechvis.metrics`.
        self_attention: also ablate what the class token reads from itself (costs the terms of every token).
        batch_size: images per forward pass.
        seed: of the reference's choice and of the intervals.
        allow_overlap: accept images that are in the reference too.
        progress: show a progress bar.

    Returns:
        Record: one row per group.

    Raises:
        UnsupportedModel: no head.
        UnknownName: a term that is none.
        SplitOverlap: images and reference share an image.
        BadData: too few images.

    Example:
        >>> ablations(model, images, groups={"late": ["L3H0", "L3H1"]}).table          # doctest: +SKIP
    """
    if model.parts.head is None:
        raise UnsupportedModel("ablations measures logits, and this model has no head: clip.classifier(class_names).")
    if not isinstance(images, ImageSet):
        raise BadData(f"ablations needs an ImageSet, got {type(images).__name__}; see mechvis.data.folder.")
    if isinstance(layers, int):
        layers = max(layers, -len(model.parts.blocks))  # the last four of a model of three are its three
    images = with_model_classes(images, model)
    reference, images = _reference(images, reference, seed, allow_overlap)
    name, function = metrics.get(metric)
    # Through an attention pooling: what is ablated are the tower's own heads and MLPs.
    settings = {"layers": layers, "of": "logits", "batch_size": batch_size, "pooling": "through"}
    average, first = _mean_terms(model, reference, settings, self_attention)
    groups = dict(groups) if groups is not None else standard_groups(first)
    for terms_ in groups.values():
        for term in terms_:
            if term not in first.names:
                raise unknown("term", term, first.names)
            if not term.startswith("L") or term.endswith("bias"):
                raise BadData(f"{term!r} is no part that can be ablated in the forward pass; name heads and MLPs.")
    wanted = sorted({_site(term)[0] for terms_ in groups.values() for term in terms_})
    reference_means = means(model, reference, wanted, batch_size=batch_size)
    planned = {group: _edits(terms_, reference_means) for group, terms_ in groups.items()}
    names = [*groups, *(["class token to itself"] if self_attention else [])]
    direct = np.empty((len(names), len(images), 2))
    forward = np.full((len(names), len(images), 2), np.nan)
    clean = np.empty((len(images), 2))
    labels = None if images.labels is None else torch.as_tensor(images.labels)
    read = reader(model, images)
    with track(len(images) * (1 + len(groups)), "ablations", " images", show=progress) as bar:
        for where, found in stream(model, images, **settings, tokens=self_attention):
            target, contrast = metrics.classes_of(found.whole, None if labels is None else labels[where])
            pixels = read(where)

            def judged(logits: Tensor, found: Terms = found, about: tuple = (target, contrast)) -> np.ndarray:
                both = [f(logits, *about, found.whole) for f in (function, metrics.accuracy)]
                return torch.stack([x.double() for x in both], dim=-1).cpu().numpy()

            clean[where] = judged(found.whole)
            for g, terms_ in enumerate(groups.values()):
                places = [found.names.index(term) for term in terms_]
                change = average["terms"][places].sum(0) - found.values[:, places].sum(1)
                direct[g, where] = judged(found.whole + change)
                run = model.run(pixels, edits=planned[list(groups)[g]])
                forward[g, where] = judged(run.logits)
                bar.update(len(where))
            if self_attention:
                change = average["self"] - found.per_token[:, :, 0].sum(1)
                direct[-1, where] = judged(found.whole + change)
            bar.update(len(where))
    table = _table(names, clean, direct, forward, len(images), seed)
    return Record(
        kind="ablations",
        title=f"Direct path and forward pass: fall of {name}, {len(images)} images",
        tables={"groups": table},
        arrays={"clean": clean, "direct": direct, "forward": forward},
        facts={"metric": name, "n": len(images), "reference": len(reference), "clean": float(clean[:, 0].mean())}
        | {"clean_accuracy": float(clean[:, 1].mean())},
        words=WORDS,
        caveats=(
            "`direct` leaves all other terms as they are; `forward` lets later blocks react. A claim that a part is "
            "needed rests on `forward`.",
            f"Both put in the mean over {len(reference)} reference images that are not among the {len(images)} judged.",
        ),
        provenance=provenance(model=model, images=images, seed=seed, reference=reference.fingerprint),
    )


def standard_groups(found: Terms) -> dict[str, list[str]]:
    """Every head, heads of a layer, all MLPs, attention from the bottom up: of the terms that there are."""
    heads: dict[int, list[str]] = {}
    for name, kind, layer in zip(found.names, found.kinds, found.layers, strict=True):
        if kind == "head" and name.startswith("L"):
            heads.setdefault(layer, []).append(name)
    groups = {name: [name] for names in heads.values() for name in names}
    groups |= {f"heads of layer {layer}": names for layer, names in heads.items()}
    mlps = [name for name, kind in zip(found.names, found.kinds, strict=True) if kind == "mlp" and name.startswith("L")]
    groups |= {name: [name] for name in mlps} | {"all MLPs": mlps}
    lower: list[str] = []
    for layer, names in heads.items():
        lower = [*lower, *names]
        groups[f"heads up to layer {layer}"] = lower
    return {name: terms_ for name, terms_ in groups.items() if terms_}


def _reference(
    images: ImageSet, reference: ImageSet | None, seed: int, allow_overlap: bool
) -> tuple[ImageSet, ImageSet]:
    if reference is not None:
        if not allow_overlap:
            refuse_overlap(reference, images, what="reference and evaluation images")
        return reference, images
    if len(images) < 3:
        raise BadData(f"{len(images)} image(s) are too few to set some aside for the means. Pass reference=.")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).numpy()
    n = max(1, round(len(images) * REFERENCE_SHARE))
    return images[np.sort(order[:n])], images[np.sort(order[n:])]


def _mean_terms(
    model: Any, reference: ImageSet, settings: dict[str, Any], self_attention: bool
) -> tuple[dict[str, Tensor], Terms]:
    total: dict[str, Tensor] = {}
    found = None
    for _, found in stream(model, reference, **settings, tokens=self_attention):
        sums = {"terms": found.values.sum(0, dtype=torch.float64)}
        if self_attention:
            sums["self"] = found.per_token[:, :, 0].sum((0, 1), dtype=torch.float64)
        total = {name: total[name] + value if name in total else value for name, value in sums.items()}
    return {name: (value / len(reference)).to(found.values.dtype) for name, value in total.items()}, found


def _site(term: str) -> tuple[str, int | None]:
    """Site of a term, and its head."""
    layer, kind, head = term[1:].partition("MLP") if term.endswith("MLP") else term[1:].partition("H")
    if kind == "MLP":
        return f"blocks.{layer}.hook_mlp_out", None
    return f"blocks.{layer}.attn.hook_z", int(head)


def _edits(terms_: Sequence[str], reference: Any) -> list[edits.Edit]:
    by_site: dict[str, list[int]] = {}
    for term in terms_:
        site, head = _site(term)
        by_site.setdefault(site, []).extend([] if head is None else [head])
    return [edits.mean_positional(site, reference, heads=heads or None) for site, heads in by_site.items()]


def _table(
    names: Sequence[str], clean: np.ndarray, direct: np.ndarray, forward: np.ndarray, n: int, seed: int
) -> pl.DataFrame:
    columns: dict[str, Any] = {"group": list(names)}
    for kind, values in (("direct", direct), ("forward", forward)):
        there = ~np.isnan(values[:, 0, 0])
        found = stats.bootstrap(clean[None, :, 0] - values[there, :, 0], seed=seed)
        for column, numbers in {kind: found.effect, f"{kind}_low": found.low, f"{kind}_high": found.high}.items():
            full = np.full(len(names), np.nan)
            full[there] = numbers
            columns[column] = full
        accuracy = np.full(len(names), np.nan)
        accuracy[there] = values[there, :, 1].mean(1)
        columns[f"accuracy_{kind}"] = accuracy
    return pl.DataFrame({**columns, "n": [n] * len(names)}).fill_nan(None)
