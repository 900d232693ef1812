"""What a CIGMA study starts from: settings, model, labels, three disjoint sets of images, reference means, masks.

Everything that could make a study say something plausible about nothing is refused here, before hours are spent:
a model without classes, labels that count the classes in another order, sets that share images, empty masks.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from circuits.head_scores import MODES
from circuits.information import FILLS, Fill
from circuits.masks import Masks, MaskSettings, intersection_over_union, optimise_masks, read_masks
from mechvis import means as reference_means
from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.errors import BadData, FailedMasks, OutOfRange, ResultMismatch, SplitOverlap, unknown
from mechvis.means import Means
from mechvis.units import units_of

SHARES = (0.4, 0.2, 0.4)
"""Selection, validation, evaluation."""


@dataclass(frozen=True)
class Split:
    """Images of one purpose with their masks."""

    images: ImageSet
    masks: Masks


def check_settings(
    fill: str,
    rank_by: str,
    k: Any,
    candidates: Sequence[int],
    mask_source: str,
    controls: int,
    mode: str,
    tau: float,
    max_cost: float,
) -> None:
    """Refuse settings of a study that cannot work.

    Raises:
        UnknownName: a word that is not in its list.
        OutOfRange: a number outside its range.
    """

    def is_count(value: Any) -> bool:
        return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 0

    if fill not in FILLS:
        raise unknown("fill", fill, FILLS)
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if rank_by not in ("guarded", "cigma"):
        raise unknown("rank_by", rank_by, ("guarded", "cigma"))
    if mask_source not in ("auto", "given", "optimised"):
        raise unknown("mask_source", mask_source, ("auto", "given", "optimised"))
    if not (k == "auto" or is_count(k)) or not candidates or not all(map(is_count, candidates)):
        raise OutOfRange(
            f"k is 'auto' or a number of heads from 0, candidates are such numbers; got k={k!r}, {candidates}."
        )
    if controls < 20:
        raise OutOfRange(f"controls={controls}: an interval over random heads needs at least 20 draws.")
    if not tau > 0 or not 0 <= max_cost <= 1:
        raise OutOfRange(f"tau must be above 0 and max_cost between 0 and 1, got tau={tau} and max_cost={max_cost}.")


def check_model(model: Any, k: Any) -> None:
    """Refuse what is not a wrapped image classifier with enough heads.

    Raises:
        BadData: no wrapped model, no classes, or no image preprocessing.
        OutOfRange: `k` is more than it has heads.
    """
    parts = getattr(model, "parts", None)
    if parts is None:
        hint = " Use clip.classifier(class_names)." if hasattr(model, "encode_image") else " Use mechvis.load(model)."
        raise BadData(f"CIGMA needs a wrapped classifier, got {type(model).__name__}.{hint}")
    if parts.head is None or parts.modality != "image":
        raise BadData(
            f"{model.title or parts.family} has no classes; for CLIP use clip.classifier(class_names), else a model "
            "with a head."
        )
    if model.preprocess is None:
        raise BadData("this model has no image preprocessing; pass preprocess= to mechvis.load.")
    n_heads = sum(block.attn.n_heads for block in parts.blocks)
    if k != "auto" and k > n_heads:
        raise OutOfRange(f"k={k}: the model has only {n_heads} heads.")


def check_labels(model: Any, images: ImageSet, name: str) -> None:
    """Refuse labels that cannot be the model's: a wrong numbering of classes gives plausible numbers about nothing.

    Raises:
        BadData: no labels, or fewer than two classes.
        OutOfRange: a label that the head does not have.
    """
    if images.labels is None:
        raise BadData(f"the {name} images have no labels; CIGMA needs them for its guards and its evaluation.")
    n_classes = model.run(images[:1]).logits.shape[-1]
    if n_classes < 2:
        raise BadData(f"CIGMA compares distributions over classes; the model's head has {n_classes} output.")
    low, high = int(np.min(images.labels)), int(np.max(images.labels))
    if low < 0 or high >= n_classes:
        raise OutOfRange(
            f"the {name} images have labels from {low} to {high}, the model's classes are 0 to {n_classes - 1}."
        )


def splits_of(
    images: ImageSet | None,
    selection: ImageSet | None,
    validation: ImageSet | None,
    evaluation: ImageSet | None,
    seed: int,
    allow_overlap: bool,
) -> dict[str, ImageSet]:
    """Selection, validation and evaluation images: cut from `images`, or as given if they are disjoint.

    Raises:
        BadData: too few images, or not all three sets.
        SplitOverlap: two sets share images.
    """
    given = {"selection": selection, "validation": validation, "evaluation": evaluation}
    if images is not None:
        if any(part is not None for part in given.values()):
            raise BadData("pass either images=, which is split, or selection=, validation= and evaluation=.")
        if len(images) < 30:
            raise BadData(
                f"{len(images)} images are too few for three disjoint splits; 200 or more give useful intervals."
            )
        return dict(zip(given, images.split(*SHARES, seed=seed), strict=True))
    missing = [name for name, part in given.items() if part is None]
    if missing:
        raise BadData(f"no {' and no '.join(missing)} images; pass images= to have them split.")
    if not allow_overlap:
        for first, second in (("selection", "validation"), ("selection", "evaluation"), ("validation", "evaluation")):
            refuse_overlap(given[first], given[second], what=f"{first} and {second} images")
    return {name: part for name, part in given.items() if part is not None}


def means_of(
    model: Any, mode: str, reference: Any, sets: dict[str, ImageSet], seed: int, allow_overlap: bool
) -> tuple[Means | None, ImageSet]:
    """Reference means for mean ablation, and the selection images that remain."""
    selection = sets["selection"]
    if mode != "mean_positional":
        if reference is not None:
            raise BadData(f"reference= is for mode='mean_positional', the mode is {mode!r}.")
        return None, selection
    if reference is None:
        reference, selection = selection.split(0.2, 0.8, seed=seed)
    elif not allow_overlap:
        for name, part in sets.items():
            if isinstance(reference, ImageSet):
                refuse_overlap(reference, part, what=f"reference and {name} images")
            elif shared := reference.ids & set(part.ids):
                raise SplitOverlap(
                    f"reference and {name} images must not share images: {len(shared)} ids are in both "
                    f"({min(shared)} ...). Use others, or allow_overlap=True if they are different images."
                )
    found = reference if isinstance(reference, Means) else reference_means(model, reference, "blocks.*.attn.hook_z")
    for unit in units_of(model, "heads"):
        shape = (model.parts.n_tokens, model.parts.blocks[unit.layer].attn.n_heads)
        if found[unit.site].shape[:2] != shape:
            raise ResultMismatch(
                f"the means of {unit.site} are {list(found[unit.site].shape)}: they are of another model."
            )
    return found, selection


def masks_of(
    model: Any,
    sets: dict[str, ImageSet],
    source: str,
    fill: Fill,
    tau: float,
    settings: MaskSettings | None,
    out: str | Path | None,
    progress: bool,
) -> tuple[dict[str, Split], dict[str, Any]]:
    """Every set with its masks, and what is known about the masks (source, self-check, agreement with given ones).

    Raises:
        BadData: masks asked for that are not there, or that cover nothing or everything.
    """
    have = all(part.read_mask is not None for part in sets.values())
    if source == "given" and not have:
        raise BadData(
            "mask_source='given', but the images have no masks. Pass masks= to the loader, or use 'optimised'."
        )
    splits: dict[str, Split] = {}
    facts: dict[str, Any] = {"source": "given" if have and source != "optimised" else "optimised"}
    if source == "auto" and not have:
        warnings.warn(
            "the images have no masks: the model's own (optimised) masks are used. Where the model relies on the "
            "context, they show the context, and scores turn around.",
            FailedMasks,
            stacklevel=3,
        )
    agreement = []
    for name, part in sets.items():
        if facts["source"] == "given":
            found = read_masks(part, model.preprocess)
            _check_given(found, part, name)
            splits[name] = Split(part, Masks(found, np.zeros(len(part)), "given"))
            continue
        wanted = settings or MaskSettings(tau=tau)
        folder = None if out is None else Path(out) / "masks" / name
        found = optimise_masks(model, part, settings=wanted, fill=fill, folder=folder, progress=progress)
        splits[name] = Split(part, found)
        if have:
            agreement.append(intersection_over_union(found.masks, read_masks(part, model.preprocess)))
    facts["n"] = sum(len(split.images) for split in splits.values())
    facts["failed self-check"] = int(sum(split.masks.failed.sum() for split in splits.values()))
    facts["object share"] = float(np.mean([float(split.masks.masks.float().mean()) for split in splits.values()]))
    if agreement:
        facts["IoU with given masks"] = float(np.concatenate(agreement).mean())
    return splits, facts


def _check_given(masks: Any, images: ImageSet, name: str) -> None:
    empty = (~masks.flatten(1).any(1)).nonzero().flatten().tolist()
    full = masks.flatten(1).all(1).nonzero().flatten().tolist()
    if empty or full:
        which = ", ".join(images.ids[i] for i in (empty + full)[:3])
        raise BadData(
            f"{len(empty)} {name} masks are empty and {len(full)} cover the whole image (after resize and crop), "
            f"e.g. {which}: nothing can be removed there. Leave these images out."
        )
