"""An audit of a classifier by concepts: which it needs, which suffice, and which are there without mattering.

1. Every concept has a mask per image: given (object, background, any segmentation), or made from a dictionary's codes
   of the patches (:mod:`probes.concept_scope.dictionary`).
2. The model sees each image whole, without the concept's pixels, and with them alone.
3. Necessity, sufficiency and mean activation per class and concept; sorted into target, context and bias
   (:mod:`probes.concept_scope.sorting`).

What removed pixels become (`fill`) is part of the question: zeros in normalised pixels (**N**), the image's mean colour
or a blur (**X**).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.data.images import ImageSet
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, unknown
from mechvis.labels import with_model_classes
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import bootstrap
from probes.concept_scope.masked import ALONE, FILLS, VIEWS, WHOLE, WITHOUT, Fill, probabilities
from probes.concept_scope.sorting import OVERS, Over, ratios, sort_concepts

WORDS = {
    "necessity": "mean of P(class | image) over P(class | image without the concept); above 1: it is needed",
    "sufficiency": "mean of P(class | the concept alone) over P(class | image); near 1: it is enough",
    "alignment": "mean of the two",
    "activation": "mean activation over the images of the class (share of the pixels, or the dictionary's code)",
    "kind": "target, context, or bias (context that is nearly always there); none: in too few images",
    "present": "share of the class's images that hold the concept",
    "clipped": "denominators below the clip",
    "p_whole": "mean probability of the class; ratios are means over images and follow the smallest denominators",
    "p_without": "the same without the concept",
    "p_alone": "the same with the concept alone",
    "n": "images of the class that hold the concept",
}


class ConceptScope(Record):
    """Concepts sorted per class; see :func:`concept_scope`."""

    KIND = "concept_scope"

    def of_kind(self, kind: str, of_class: str | None = None) -> list[str]:
        """Names of the concepts of a kind, for one class or for any.

        Raises:
            UnknownName: no such class.
        """
        found = self.table.filter(pl.col("kind") == kind)
        if of_class is not None:
            classes = self.table["class"].unique().to_list()
            if of_class not in classes:
                raise unknown("class", of_class, classes)
            found = found.filter(pl.col("class") == of_class)
        return sorted(set(found["concept"].to_list()))


@torch.no_grad()
def concept_scope(
    model: Any,
    images: ImageSet,
    masks: Mapping[str, Bool[Tensor, "image height width"]],
    *,
    activations: Mapping[str, Float[np.ndarray, " image"]] | None = None,
    fill: Fill = "zero",
    clip: float = 1e-3,
    alpha: float = 0.5,
    over: Over = "all",
    fewest: int = 5,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> ConceptScope:
    """Sort concepts into target, context and bias for every class.

    Args:
        model: a wrapped classifier, or a zero-shot one.
        images: labelled images.
        masks: concept -> bool pixels at the model's resolution, True on the concept; all False where it is absent.
        activations: concept -> how strongly it is there, per image; default: the share of the pixels.
        fill: what the other pixels become.
        clip: smallest denominator (**X**).
        alpha: standard deviations above the mean that make a target (**X**).
        over: see :func:`sort_concepts`.
        fewest: images of the class that must hold a concept; else it is not sorted.
        batch_size: images per forward.
        seed: of the bootstrap.
        progress: show a progress bar.

    Returns:
        ConceptScope: a row per class and concept; per-image probabilities in `arrays`.

    Raises:
        BadData: no labels, no head, fewer than two concepts, or a concept that no image holds.
        ShapeMismatch: masks or activations that do not fit the images.
        UnknownName, OutOfRange, NotFinite.

    Example:
        >>> object = images.masks_for(model.preprocess)                                            # doctest: +SKIP
        >>> concept_scope(model, images, {"object": object, "background": ~object}).table          # doctest: +SKIP
    """
    if model.parts.head is None:
        raise BadData(
            "this model has no head, so there is no probability of a class. For CLIP: clip.classifier(names)."
        )
    if fill not in FILLS:
        raise unknown("fill", fill, FILLS)
    if over not in OVERS:
        raise unknown("population", over, OVERS)
    if fewest < 1:
        raise OutOfRange(f"fewest={fewest}: at least one image.")
    if images.labels is None:
        raise BadData("the images have no labels. Give class folders or a metadata table with a label column.")
    images = with_model_classes(images, model)
    names, given = list(masks), _masks(masks, images, model)
    strength = _activations(activations, names, given)
    labels = np.asarray(images.labels)
    p = probabilities(model, images, labels, given, fill, batch_size, progress)
    rows, clipped = [], 0
    for index in np.unique(labels):
        of_class = labels == index
        each = [
            _measured(names[c], p[c][:, of_class], given[c][of_class], strength[c][of_class], clip, fewest, seed)
            for c in range(len(names))
        ]
        kinds = _kinds(each, alpha, over)
        clipped += sum(row["clipped"] for row in each)
        name = images.class_names[index] if images.class_names else f"class {index}"
        rows += [{"class": name, **row, "kind": kind} for row, kind in zip(each, kinds, strict=True)]
    table = pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.col(pl.Float64).fill_nan(None))
    first = ["class", "concept", "kind", "alignment", "necessity", "sufficiency", "activation", "present", "n"]
    table = table.select(*first, *(name for name in table.columns if name not in first))
    arrays = {f"p/{view}": p[:, number] for view, number in VIEWS.items()}
    return ConceptScope(
        title=f"Concepts of {getattr(model, 'name', '') or 'a model'} in {len(images)} images",
        tables={"concepts": table},
        arrays=arrays,
        facts={"concepts": names, "fill": fill, "clip": clip, "alpha": alpha, "over": over, "fewest": fewest},
        words=WORDS,
        caveats=_caveats(names, clipped, clip, fill),
        provenance=provenance(model=model, images=images, seed=seed),
    )


def _masks(masks: Mapping[str, Tensor], images: ImageSet, model: Any) -> list[Tensor]:
    if len(masks) < 2:
        raise BadData(f"{len(masks)} concept: sorting compares concepts, so give at least two (object and background).")
    found = []
    for name, mask in masks.items():
        mask = torch.as_tensor(mask)
        if mask.dtype != torch.bool or mask.ndim != 3 or len(mask) != len(images):
            raise ShapeMismatch(
                f"the masks of {name!r} must be bool [image height width] for {len(images)} images, got {mask.dtype} "
                f"{list(mask.shape)}."
            )
        if not mask.any():
            raise BadData(f"no image holds the concept {name!r}: its masks are empty.")
        found.append(mask)
    size = model.parts.image_size
    if size is not None and any(tuple(mask.shape[1:]) != tuple(size) for mask in found):
        raise ShapeMismatch(
            f"masks must have the model's resolution {list(size)}, got {[list(mask.shape[1:]) for mask in found]}. "
            "images.masks_for(model.preprocess) makes such."
        )
    return found


def _activations(
    activations: Mapping[str, np.ndarray] | None, names: list[str], masks: list[Tensor]
) -> list[np.ndarray]:
    if activations is None:
        return [mask.double().mean((1, 2)).numpy() for mask in masks]
    found = []
    for name, mask in zip(names, masks, strict=True):
        if name not in activations:
            raise unknown("activation", name, activations)
        each = np.asarray(activations[name], np.float64)
        if each.shape != (len(mask),):
            raise ShapeMismatch(f"the activations of {name!r} are {list(each.shape)}; one per image, {len(mask)}.")
        if not np.isfinite(each).all():
            raise NotFinite(f"the activations of {name!r} hold NaN or Inf.")
        found.append(each)
    return found


def _measured(
    name: str, p: np.ndarray, mask: Tensor, strength: np.ndarray, clip: float, fewest: int, seed: int
) -> dict[str, Any]:
    there = mask.flatten(1).any(1).numpy()
    row: dict[str, Any] = {"concept": name, "activation": float(strength.mean()), "present": float(there.mean())}
    row |= {"n": int(there.sum()), "clipped": 0}
    columns = ("necessity", "sufficiency", "alignment")
    if there.sum() < fewest:
        missing = [key for column in columns for key in (column, f"{column}_low", f"{column}_high")]
        return row | dict.fromkeys([*missing, *(f"p_{view}" for view in VIEWS)], float("nan"))
    found = ratios(p[WHOLE, there], p[WITHOUT, there], p[ALONE, there], clip=clip)
    values = {"necessity": found.necessity, "sufficiency": found.sufficiency}
    values["alignment"] = (found.necessity + found.sufficiency) / 2
    row["clipped"] = found.clipped
    for view, number in VIEWS.items():
        row[f"p_{view}"] = float(p[number, there].mean())
    for column, per_image in values.items():
        one = bootstrap(per_image, seed=seed)
        row |= {column: float(one.effect[0]), f"{column}_low": float(one.low[0]), f"{column}_high": float(one.high[0])}
    return row


def _kinds(rows: list[dict[str, Any]], alpha: float, over: Over) -> list[str | None]:
    alignment = np.array([row["alignment"] for row in rows])
    if (~np.isnan(alignment)).sum() < 2:
        return [None] * len(rows)
    return sort_concepts(alignment, np.array([row["activation"] for row in rows]), alpha=alpha, over=over)


def _caveats(names: list[str], clipped: int, clip: float, fill: str) -> tuple[str, ...]:
    said = [f"Kinds are relative to the {len(names)} concepts that were given: the best of them is always a target."]
    if len(names) == 2:
        said.append("With two concepts one is always the target: read necessity and sufficiency, not the kind.")
    if clipped:
        said.append(f"{clipped} denominators were below {clip:g} and clipped: ratios are bounded by {1 / clip:g}.")
    said.append(f"Removed pixels become {fill}; masked images lie outside what the model was trained on.")
    return tuple(said)
