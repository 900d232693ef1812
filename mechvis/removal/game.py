"""What the model says of an image of which some patches are kept: one function for all methods and metrics.

1. The operator makes, once per image, what stands in the place of missing patches.
2. Rows (image x mask) go through the model in batches of bounded size; what comes out is read as the target says.
3. Each kind of operator has its way: pixels are mixed; embeddings are mixed before block 0; dropped tokens leave the
   sequence (rows that keep equally many are batched together, so a row that keeps few is cheap).

Nothing depends on the batch a row is in beyond rounding, and forward passes are counted (`cost`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.errors import BadData, NotFinite, OutOfRange, RefusedMethod, ShapeMismatch
from mechvis.keyed import generator_of
from mechvis.removal import tokens
from mechvis.removal.neighbours import imputed
from mechvis.removal.operators import Fill, MeanToken, NoisyLinear, Operator, operator
from mechvis.target import Target

Masks = Float[Tensor, "image row patch"]


@dataclass(kw_only=True)
class Cost:
    """What a computation took, in passes of one image."""

    forwards: int = 0
    """Rows that went forward."""
    backwards: int = 0
    """Rows that went backward."""


@dataclass(kw_only=True, eq=False)
class Game:
    """Images, a target and an operator: masks of kept patches in, scores out.

    Example:
        >>> game = Game(model=model, pixels=pixels, target=target, operator="mean")      # doctest: +SKIP
        >>> game.scores(torch.ones(len(pixels), 1, game.n_patches))                      # doctest: +SKIP
    """

    model: Any
    """A wrapped vision model."""
    pixels: Float[Tensor, "image channel height width"]
    """Preprocessed images."""
    target: Target
    """What is read."""
    operator: Operator | str
    """What stands in the place of missing patches."""
    ids: Int[Tensor, " image"] | None = None
    """Which example each image is: random draws belong to it; None: 0, 1, ..."""
    seed: int = 0
    """Of operators that draw."""
    batch_size: int = 256
    """Rows that go through the model together."""
    cost: Cost = field(default_factory=Cost)
    """Counts passes; may be shared."""

    def __post_init__(self):
        self.operator = operator(self.operator)
        if self.ids is None:
            self.ids = torch.arange(len(self.pixels))
        if len(self.target) != len(self.pixels) or len(self.ids) != len(self.pixels):
            raise ShapeMismatch(
                f"{len(self.pixels)} images, {len(self.target)} targets, {len(self.ids)} ids: they belong together."
            )
        if self.batch_size < 1:
            raise OutOfRange(f"batch_size={self.batch_size}: give at least 1.")
        parts, _ = self.model._for_size(tuple(self.pixels.shape[2:]))
        if parts.grid is None:
            raise BadData("patches can be removed from images; this tower reads text.")
        self.parts = parts
        self.grid: tuple[int, int] = parts.grid
        self._made: Tensor | None = None

    @property
    def n_patches(self) -> int:
        """Patches of an image."""
        return self.grid[0] * self.grid[1]

    def scores(
        self, masks: Masks | Bool[Tensor, "image row patch"], target: Target | None = None
    ) -> Float[Tensor, "image row"]:
        """The score of each image under each of its masks.

        Args:
            masks: 1 keeps a patch, 0 takes it away; between them where the operator allows it.
            target: another reading than the game's.

        Raises:
            ShapeMismatch, OutOfRange, RefusedMethod (a soft mask for an operator that knows 0 and 1 only), NotFinite.
        """
        read = self.target if target is None else target
        out = None
        for rows, logits in self._outputs(masks):
            found = read.read(logits, rows // masks.shape[1])
            if out is None:
                out = found.new_empty(masks.shape[0] * masks.shape[1])
            out[rows] = found
        return _finite(rearrange(out, "(image row) -> image row", image=len(masks)), self.operator)

    def outputs(self, masks: Masks | Bool[Tensor, "image row patch"]) -> Float[Tensor, "image row class"]:
        """The whole output of each image under each of its masks."""
        out = None
        for rows, logits in self._outputs(masks):
            if out is None:
                out = logits.new_empty(masks.shape[0] * masks.shape[1], logits.shape[1])
            out[rows] = logits
        return _finite(rearrange(out, "(image row) c -> image row c", image=len(masks)), self.operator)

    def full(self) -> Float[Tensor, " image"]:
        """Scores with every patch kept."""
        return self.scores(torch.ones(len(self.pixels), 1, self.n_patches))[:, 0]

    def empty(self) -> Float[Tensor, " image"]:
        """Scores with no patch kept."""
        return self.scores(torch.zeros(len(self.pixels), 1, self.n_patches))[:, 0]

    def _outputs(self, masks: Tensor) -> Iterator[tuple[Int[Tensor, " row"], Float[Tensor, "row class"]]]:
        self._check(masks)
        flat = rearrange(masks, "image row patch -> (image row) patch").to(self.pixels.device)
        n_rows = masks.shape[1]
        kind = self.operator.AT
        with torch.no_grad():
            for rows in self._batches(flat):
                images = rows // n_rows
                kept = flat[rows]
                self.cost.forwards += len(rows)
                if kind == "tokens":
                    yield rows, tokens.without(self.model, self._embedded()[images], kept.bool(), self.parts)
                elif kind == "embedding":
                    keep = torch.nn.functional.pad(kept.to(self.pixels.dtype), (len(self.parts.prefix), 0), value=1.0)
                    stream = torch.lerp(self._background()[images], self._embedded()[images], keep[..., None])
                    yield rows, tokens.from_embedding(self.model, stream, self.parts)
                else:
                    yield rows, self._logits(self._mixed(rows, images, kept))

    def _logits(self, pixels: Tensor) -> Tensor:
        return self.model(pixels)

    def _mixed(self, rows: Tensor, images: Tensor, kept: Tensor) -> Tensor:
        pixels = self.pixels[images]
        if isinstance(self.operator, NoisyLinear):
            drawn = [generator_of(self.seed, int(self.ids[image]), "noisy linear") for image in images.tolist()]
            return imputed(pixels, kept.bool(), self.grid, self.parts.patch_size, self.operator.noise, drawn)
        return torch.lerp(self._background()[images], pixels, self.over_pixels(kept.to(pixels.dtype)))

    def over_pixels(self, masks: Float[Tensor, "row patch"]) -> Float[Tensor, "row 1 height width"]:
        """Masks over patches as masks over pixels; pixels beyond the last whole patch belong to the last one."""
        grid = rearrange(masks, "row (down across) -> row 1 down across", down=self.grid[0])
        lines = [
            (torch.arange(side, device=masks.device) // patch).clamp(max=count - 1)
            for side, patch, count in zip(self.pixels.shape[2:], self.parts.patch_size, self.grid, strict=True)
        ]
        return grid[:, :, lines[0]][:, :, :, lines[1]]

    def _background(self) -> Tensor:
        """What stands in the place of missing patches: `[image channel height width]` or `[image token d_model]`."""
        if self._made is None:
            if isinstance(self.operator, MeanToken):
                self._made = self._reference().mean(0, keepdim=True).expand_as(self._embedded())
            elif isinstance(self.operator, Fill):
                self._made = self.operator.background(self.pixels, self.ids, self.seed)
            else:
                raise BadData(f"{self.operator!r} has no background.")
        return self._made

    def _reference(self) -> Tensor:
        if self.operator.reference is None:
            raise BadData("MeanToken needs images to average over: MeanToken(reference=other_pixels).")
        with torch.no_grad():
            return self.parts.embed(self.model.inputs(self.operator.reference))

    def _embedded(self) -> Float[Tensor, "image token d_model"]:
        if not hasattr(self, "_stream"):
            with torch.no_grad():
                self._stream = torch.cat([self.parts.embed(some) for some in self.pixels.split(self.batch_size)])
        return self._stream

    def _batches(self, flat: Tensor) -> Iterator[Int[Tensor, " row"]]:
        if self.operator.AT != "tokens":
            yield from torch.arange(len(flat), device=flat.device).split(self.batch_size)
            return
        counts = flat.bool().sum(1)
        for count in counts.unique():
            yield from (counts == count).nonzero()[:, 0].split(self.batch_size)

    def _check(self, masks: Tensor) -> None:
        if masks.ndim != 3 or masks.shape[0] != len(self.pixels) or masks.shape[2] != self.n_patches:
            raise ShapeMismatch(
                f"masks are [image row patch] = [{len(self.pixels)} row {self.n_patches}], got {list(masks.shape)}."
            )
        if not masks.shape[1]:
            raise ShapeMismatch("no masks: the row axis is empty.")
        if masks.dtype == torch.bool:
            return
        if not bool(((masks >= 0) & (masks <= 1)).all()):
            raise OutOfRange("masks lie between 0 (taken away) and 1 (kept); these do not, or hold NaN.")
        if not self.operator.SOFT and bool(((masks > 0) & (masks < 1)).any()):
            raise RefusedMethod(
                f"{self.operator.NAME} takes a patch away or keeps it; masks between 0 and 1 need another."
            )


def _finite(values: Tensor, used: Operator) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise NotFinite(f"the model gives NaN or Inf for images with patches removed by {used.NAME}.")
    return values


def order_masks(order: Int[Tensor, "image patch"], counts: list[int]) -> Bool[Tensor, "image row patch"]:
    """Masks that take away the first so many patches of an order, one row for each of `counts`.

    Example:
        >>> order_masks(torch.tensor([[2, 0, 1]]), [0, 1, 3]).int().tolist()
        [[[1, 1, 1], [1, 1, 0], [0, 0, 0]]]
    """
    place = torch.empty_like(order).scatter_(
        1, order, repeat(torch.arange(order.shape[1]), "p -> i p", i=len(order)).to(order)
    )
    limits = torch.tensor(counts, device=order.device)
    return place[:, None] >= limits[None, :, None]
