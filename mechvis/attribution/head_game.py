"""Shapley values of attention heads: each head's mean gain over all orders in which heads could be switched on.

The same code as for patches (`methods/shapley.py`): a game whose players are heads. A head that is off writes its mean
over reference images at each position (mean ablation), so an effect is about what differs between images.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from mechvis import edits, stats
from mechvis.attribution.attribute import labels_of, settle, vision_of
from mechvis.attribution.methods.shapley import shapley
from mechvis.data.images import ImageSet
from mechvis.errors import EffectlessEdit, OutOfRange, ShapeMismatch
from mechvis.keyed import generator_of
from mechvis.means import means
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.removal.game import Cost
from mechvis.target import Target


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadGame:
    """Masks over heads in, scores out; heads are counted layer by layer.

    Example:
        >>> game = HeadGame(model=model, pixels=pixels, target=target, reference=means)   # doctest: +SKIP
        >>> game.scores(torch.ones(len(pixels), 1, game.n_patches))                       # doctest: +SKIP
    """

    model: Any
    """A wrapped vision model."""
    pixels: Float[Tensor, "image channel height width"]
    """Preprocessed images."""
    target: Target
    """What is read."""
    reference: Any
    """Mean of `blocks.*.attn.hook_z` at each position, from :func:`mechvis.means`."""
    batch_size: int = 256
    """Rows that go through the model together."""
    cost: Cost = field(default_factory=Cost)
    """Counts passes."""

    @property
    def n_patches(self) -> int:
        """Players: heads of all layers."""
        return sum(one.attn.n_heads for one in self.model.parts.blocks)

    def scores(self, masks: Float[Tensor, "image row head"]) -> Float[Tensor, "image row"]:
        """The score of each image under each of its masks; 1 leaves a head as it is, 0 puts its mean.

        Raises:
            ShapeMismatch: masks of another shape.
        """
        if masks.ndim != 3 or masks.shape[0] != len(self.pixels) or masks.shape[2] != self.n_patches:
            raise ShapeMismatch(
                f"masks are [image row head] = [{len(self.pixels)} row {self.n_patches}], got {list(masks.shape)}."
            )
        flat = rearrange(masks, "image row head -> (image row) head").to(self.pixels)
        images = repeat(torch.arange(len(self.pixels)), "image -> (image row)", row=masks.shape[1])
        found = []
        for rows in torch.arange(len(flat)).split(self.batch_size):
            self.cost.forwards += len(rows)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", EffectlessEdit)  # all heads on, or heads that write their mean anyway
                run = self.model.run(self.pixels[images[rows]], self._switched(flat[rows]))
            found.append(self.target.read(run.output, images[rows]))
        return rearrange(torch.cat(found), "(image row) -> image row", row=masks.shape[1])

    def _switched(self, masks: Float[Tensor, "row head"]) -> list:
        asked, first = [], 0
        for layer, block in enumerate(self.model.parts.blocks):
            site, on = f"blocks.{layer}.attn.hook_z", masks[:, None, first : first + block.attn.n_heads, None]
            mean = self.reference[site].to(masks)
            asked.append(edits.call(site, lambda z, on=on, mean=mean: torch.lerp(mean.expand_as(z), z, on)))
            first += block.attn.n_heads
        return asked


class HeadShapley(Record):
    """Shapley values of heads.

    Made by :func:`head_shapley`. A row per head; array `values` `[image layer head]`.
    """

    KIND = "head_shapley"


def head_shapley(
    model: Any,
    images: Any,
    reference: Any,
    *,
    target: Any = "predicted",
    contrast: Any = None,
    form: Any = None,
    pairs: int = 16,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> HeadShapley:
    """What each head adds to the score, alone and in company.

    Args:
        model: a wrapped vision model.
        images: an `ImageSet`, or pixels `[image channel height width]`.
        reference: images whose mean stands for a head that is off.
        target, contrast, form: the score, as for :func:`mechvis.attribute`.
        pairs: orders that are drawn for each image; each is also walked backwards.
        seed: of the orders and intervals.
        batch_size: images at a time.
        progress: show a bar.

    Returns:
        A row per head: mean over images with a 95 % interval, in the unit of the score. For each image the values add
        up to the score less the score with all heads off.

    Raises:
        OutOfRange: no pair; otherwise as :func:`mechvis.attribute`.

    Example:
        >>> found = head_shapley(model, images, others, contrast="runner_up")   # doctest: +SKIP
    """
    if pairs < 1 or batch_size < 1:
        raise OutOfRange(f"pairs={pairs}, batch_size={batch_size}: give at least 1.")
    model, target = vision_of(model, target)
    labels, cost, found = labels_of(model, images), Cost(), []
    mean = means(model, reference, "blocks.*.attn.hook_z")
    with track(len(images), "shapley of heads", " images", show=progress) as bar:
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            pixels = model.inputs(images[part])
            settled = settle(model, pixels, None if labels is None else labels[part], target, contrast, form, part)
            game = HeadGame(model=model, pixels=pixels, target=settled, reference=mean, cost=cost)
            draws = [generator_of(seed, start + i, "shapley of heads") for i in range(len(pixels))]
            found.append(shapley(game, draws, pairs=pairs)[0])
            bar.update(len(pixels))
    values = torch.cat(found).numpy()
    known = stats.bootstrap(values.T, seed=seed)
    heads = [(layer, head) for layer, one in enumerate(model.parts.blocks) for head in range(one.attn.n_heads)]
    table = pl.DataFrame(
        {
            "layer": [layer for layer, _ in heads],
            "head": [head for _, head in heads],
            "shapley": known.effect,
            "low": known.low,
            "high": known.high,
            "n": known.n,
        }
    )
    layers = len(model.parts.blocks)
    return HeadShapley(
        title=f"Shapley values of {len(heads)} heads, {len(values)} images",
        tables={"heads": table},
        arrays={"values": np.ascontiguousarray(rearrange(values, "i (l h) -> i l h", l=layers))},
        facts={"pairs": pairs, "forwards": cost.forwards, "sum": float(values.sum(1).mean())},
        words={
            "shapley": "mean gain of the score when the head is switched on, over all orders; mean over images",
            "low": "lower end of the 95 % interval over images",
            "high": "upper end of it",
            "n": "images",
            "sum": "mean score less the score with all heads off",
        },
        caveats=("A head that is off writes its mean over the reference images: effects are about what differs.",),
        provenance=provenance(model, images if isinstance(images, ImageSet) else None, seed),
    )
