"""Suite A: the hand-wired ViT, with the planted head, its patch and the distractors drawn by seed.

Which patch matters is a theorem (`mechvis.testing.hand_wired`), and so is which head: the others leak through LayerNorm
alone, and the pin sets how much. With the pin used here (1,024, in float64) the planted head's mean absolute effect is
about 80,000 times the largest other one's in `wired`, and 1,200 times in `wired_loud`, where distractors write forty
times as loudly as the planted head; by zero, mean and resample ablation alike (`head_effects` measures it).

The sign of the effect of a patch depends on what stands in its place (a dark patch loses to the mean), so maps are
scored by magnitude here: the truth is which patch matters, not for what.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mechvis.testing.hand_wired import GRID, hand_wired_images, hand_wired_vit

PIN = 1024.0
LOUDNESS: dict[str, float] = {"wired": 5.0, "wired_loud": 40.0}
"""Variant -> how much louder than the planted head the distractors write."""
HEADS, LAYERS, D_HEAD = 4, 2, 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Wired:
    """One hand-wired model with its truth."""

    model: nn.Module
    """A bare `ViTForImageClassification` in float64."""
    patch: int
    """The patch that decides."""
    decoys: tuple[int, ...]
    """Patches that are read as loudly and decide nothing."""
    heads: Bool[np.ndarray, "layer head"]
    """Which head matters."""


def wired(variant: str = "wired", seed: int = 0, *, pin: float = PIN) -> Wired:
    """Build one.

    Args:
        variant: `wired` or `wired_loud`.
        seed: of the head's number, its patch and the distractors' patches.
        pin: size of the constant that pins LayerNorm's scale; smaller leaks more.

    Example:
        >>> found = wired(seed=3)
        >>> found.heads.sum(), found.patch in found.decoys
        (1, False)
    """
    generator = np.random.default_rng([seed, 2])
    places = [int(place) for place in generator.permutation(GRID * GRID)[: LAYERS * 2]]
    order = generator.permutation(HEADS)
    model = hand_wired_vit(
        planted=places[0], distractors=places[1:], loudness=LOUDNESS[variant], pin=pin, dtype=torch.float64
    )
    _reorder(model.vit.layers[0].attention, order)
    heads = np.zeros((LAYERS, HEADS), dtype=bool)
    heads[0, int(np.flatnonzero(order == 0)[0])] = True
    return Wired(model=model, patch=places[0], decoys=tuple(places[1:]), heads=heads)


def wired_images(n: int, seed: int = 0) -> Float[Tensor, "image 3 height width"]:
    """Images of nine uniformly bright patches, in float64."""
    return hand_wired_images(n, seed=seed, dtype=torch.float64)[0]


def head_effects(
    model: Any, pixels: Float[Tensor, "image 3 height width"], edit: str = "zero", seed: int = 0
) -> Float[np.ndarray, "layer head"]:
    """Mean absolute effect of ablating each head on the difference of the two logits.

    The mean of *absolute* effects: taking another image's value moves the logit up as often as down.

    Args:
        model: the wrapped model.
        pixels: images.
        edit: an ablation of :func:`mechvis.sweep`.
        seed: of resampling.
    """
    from mechvis.sweep import sweep

    found = sweep(model, pixels, units="heads", edit=edit, metric="logit_diff", seed=seed, progress=False)
    return np.abs(found.values["logit_diff"]).mean(1).reshape(LAYERS, HEADS)


def _reorder(attention: Any, order: np.ndarray) -> None:
    """Head i becomes what head order[i] was."""
    rows = torch.from_numpy((order[:, None] * D_HEAD + np.arange(D_HEAD)).ravel())
    with torch.no_grad():
        for one in (attention.q_proj, attention.k_proj, attention.v_proj):
            one.weight.copy_(one.weight[rows])
            one.bias.copy_(one.bias[rows])
        attention.o_proj.weight.copy_(attention.o_proj.weight[:, rows])
