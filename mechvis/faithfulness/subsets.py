"""Random sets of patches that belong to an image, and correlations over them that know when they are undefined."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor

from mechvis.errors import OutOfRange
from mechvis.faithfulness.answers import Answers
from mechvis.keyed import numpy_of

FLAT = 1e-9
"""Spreads below this share of the largest number are rounding, not differences."""

ROUNDING = 1e-6
"""The same for scores, which are float32 inside most models."""


def subsets(
    answers: Answers, n_images: int, n: int, size: int | None, purpose: str = "subsets"
) -> Bool[Tensor, "image row patch"]:
    """Random sets of patches, `n` per image.

    Args:
        answers: whose seed and ids the draws belong to.
        n_images: images.
        n: sets per image.
        size: patches of a set; None: each set has its own size, 1 to all but one, all equally likely.
        purpose: draws of different purposes are independent.

    Returns:
        1 in the set.

    Raises:
        OutOfRange: no set, or a size that leaves nothing in or nothing out.
    """
    p = answers.n_patches
    if n < 1:
        raise OutOfRange(f"{n} sets per image: give at least 1.")
    if p < 2:
        raise OutOfRange("one patch has no sets to compare: this metric needs at least two patches.")
    if size is not None and not 1 <= size < p:
        raise OutOfRange(f"sets of {size} of {p} patches: give 1 to {p - 1}.")
    rows = []
    for number in answers.ids(n_images):
        generator = numpy_of(answers.seed, number, f"{purpose} of size {size}")
        sizes = np.full(n, size) if size is not None else generator.integers(1, p, n)
        places = generator.random((n, p)).argsort(1).argsort(1)
        rows.append(places < sizes[:, None])
    return torch.from_numpy(np.stack(rows))


def size_of(share: float, n_patches: int) -> int:
    """A share of the patches as a number: at least one in, at least one out.

    Raises:
        OutOfRange: not between 0 and 1.

    Example:
        >>> size_of(0.2, 9)
        2
    """
    if not 0 < share < 1:
        raise OutOfRange(f"share={share}: give a share of the patches between 0 and 1.")
    return min(max(round(share * n_patches), 1), max(n_patches - 1, 1))


def sums_over(maps: Float[Tensor, "image patch"], sets: Bool[Tensor, "image row patch"]) -> Float[Tensor, "image row"]:
    """What the map says of each set: the sum of its patches."""
    return torch.einsum("ip,irp->ir", maps, sets.to(maps.dtype))


def effects_of(answers: Answers, sets: Bool[Tensor, "image row patch"], form: str | None) -> Float[Tensor, "image row"]:
    """`s(x) - s(x without the set)`: positive where the set supported the score."""
    return answers.full(len(sets), form)[:, None] - answers.scores(~sets, form)


def is_flat(values: Float[Tensor, "image row"]) -> Bool[Tensor, " image"]:
    """For which images all numbers are the same, up to rounding."""
    return values.max(1).values - values.min(1).values <= FLAT * values.abs().max(1).values


def without_effect(effects: Float[Tensor, "image row"], full: Float[Tensor, " image"]) -> Bool[Tensor, " image"]:
    """For which images everything that was taken away had the same effect, up to the rounding of the model.

    Args:
        effects: of taking sets away.
        full: scores of the clean images: what the effects are differences of.
    """
    size = torch.maximum(full.abs(), effects.abs().max(1).values)
    return effects.max(1).values - effects.min(1).values <= ROUNDING * size


def pearson(first: Float[Tensor, "image row"], second: Float[Tensor, "image row"]) -> Float[Tensor, " image"]:
    """Linear correlation of each image's rows; NaN where one side is flat.

    Example:
        >>> pearson(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[2.0, 4.0, 8.0]])).round(decimals=6).tolist()
        [1.0]
    """
    a, b = (side.double() - side.double().mean(1, keepdim=True) for side in (first, second))
    found = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return torch.where(is_flat(first) | is_flat(second), torch.nan, found.clamp(-1, 1))


def spearman(first: Float[Tensor, "image row"], second: Float[Tensor, "image row"]) -> Float[Tensor, " image"]:
    """Rank correlation of each image's rows, ties with their mean rank; NaN where one side is flat.

    Numbers that differ by rounding only are ties: the sums of equal patches must not be ranked by it.
    """
    found = pearson(_ranks(first), _ranks(second))
    return torch.where(is_flat(first) | is_flat(second), torch.nan, found)


def _ranks(values: Tensor) -> Tensor:
    scale = values.abs().max(1, keepdim=True).values.clamp(min=1e-300)
    rounded = (values.double() / scale).round(decimals=10)
    return torch.from_numpy(rankdata(rounded.numpy(), axis=1))
