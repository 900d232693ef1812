"""Asking an attribution method again: of other images, other classes, other weights, in another order.

Gates compare maps by rank correlation over patches (Spearman), one number per image; a map that is the same number
everywhere has no ranks and counts as undefined.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.attribution.attribute import maps_of
from mechvis.attribution.method import Maps, Method
from mechvis.attribution.question import Question
from mechvis.faithfulness.subsets import pearson, spearman
from mechvis.keyed import numpy_of
from mechvis.target import Target


def ask_in_batches(method: Method, ask: Question, batch: int = 32) -> Float[Tensor, "image patch"]:
    """Maps of all images of a question, a few images at a time."""
    return torch.cat([maps_of(method, part_of(ask, rows)) for rows in torch.arange(len(ask.pixels)).split(batch)])


def whole_in_batches(method: Method, ask: Question, batch: int = 32) -> tuple[Tensor, Tensor | None]:
    """Maps, and the gap of completeness per image where the method says what maps should add up to."""
    parts: list[Maps] = [method.maps(part_of(ask, rows)) for rows in torch.arange(len(ask.pixels)).split(batch)]
    values = torch.cat([part.values.detach() for part in parts])
    if any(part.total is None for part in parts):
        return values, None
    total = torch.cat([part.total.detach() for part in parts]).double()
    sums = values.double().sum(1)
    if parts[0].prefix is not None:
        sums = sums + torch.cat([part.prefix.detach() for part in parts]).double().sum(1)
    return values, (sums - total).abs() / total.abs().clamp(min=1e-6 * float(total.abs().max().clamp(min=1e-12)))


def part_of(ask: Question, rows: Sequence[int] | Tensor) -> Question:
    """The same question about some of the images."""
    rows = torch.as_tensor(rows)
    return replace(ask, pixels=ask.pixels[rows], target=ask.target[rows], ids=ask.ids[rows])


def other_classes(ask: Question, n_classes: int) -> Target:
    """Another class for each image, drawn by its id; a contrast that would be the same becomes the old class."""
    target = ask.target
    drawn = []
    for example, now in zip(ask.ids.tolist(), target.classes.tolist(), strict=True):
        step = int(numpy_of(ask.seed, example, "another class").integers(1, n_classes))
        drawn.append((now + step) % n_classes)
    classes = torch.tensor(drawn, device=target.classes.device)
    contrast = target.contrast
    if contrast is not None:
        contrast = torch.where(contrast == classes, target.classes, contrast)
    return replace(target, classes=classes, contrast=contrast, rule="given")


def rank_agreement(first: Tensor, second: Tensor) -> Float[np.ndarray, " image"]:
    """Spearman correlation over patches, per image; NaN where a map has no ranks."""
    found = spearman(first.double().cpu(), second.double().cpu()).numpy().copy()
    flat = (first.max(1).values == first.min(1).values) | (second.max(1).values == second.min(1).values)
    found[flat.cpu().numpy()] = np.nan
    return found


def agreement(first: Tensor, second: Tensor) -> Float[np.ndarray, " image"]:
    """Pearson correlation over patches, per image; NaN where a map is the same number everywhere."""
    found = pearson(first.double().cpu(), second.double().cpu()).numpy().copy()
    flat = (first.max(1).values == first.min(1).values) | (second.max(1).values == second.min(1).values)
    found[flat.cpu().numpy()] = np.nan
    return found


def relative_difference(first: Tensor, second: Tensor) -> float:
    """Largest difference, relative to the largest number of either."""
    scale = max(float(first.abs().max()), float(second.abs().max()), 1e-30)
    return float((first - second).abs().max()) / scale


def n_classes_of(model: Any, ask: Question) -> int:
    """Outputs of the head."""
    return int(model.run(ask.pixels[:1]).output.shape[1])
