"""What every component wrote in a run, and what takes its place when an edge is cut.

A cut edge carries the *base* instead: what the writer writes on the corrupt image (`patch`), on another image
(`resample`), nothing (`zero`), or its mean over reference images, at all tokens (`mean`) or per token
(`mean_positional`). Heads are kept as z, `d_head` wide: their writes in `d_model` are made where they are needed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechvis import block as plain
from mechvis.axes import PerHead, Pixels, Residual
from mechvis.errors import BadData, NotFinite, ShapeMismatch
from mechvis.models.parts import Layout

ABLATIONS = ("patch", "resample", "zero", "mean", "mean_positional")


@dataclass(frozen=True, eq=False)
class Outputs:
    """What every writer writes; one row may stand for all images."""

    embed: Residual
    """The stream before block 0."""
    z: tuple[PerHead, ...]
    """Per layer, what the output projection reads."""
    mlp: tuple[Residual, ...]
    """Per layer, the MLP's write, bias included."""

    def __len__(self) -> int:
        return len(self.embed)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> "Outputs":
        """Some rows; a single row that stands for all images stays."""
        return self if len(self) == 1 else self.map(lambda value: value[rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Outputs":
        """The same with every tensor changed."""
        return Outputs(change(self.embed), tuple(map(change, self.z)), tuple(map(change, self.mlp)))

    def tensors(self) -> list[Tensor]:
        """All of them, in the order of the forward pass."""
        return [self.embed, *(value for layer in zip(self.z, self.mlp, strict=True) for value in layer)]


@dataclass(frozen=True, eq=False)
class Recorded(Outputs):
    """A run with everything that later runs restart from."""

    streams: tuple[Residual, ...] = ()
    """The stream before each block, and after the last."""
    layout: Layout = None
    """What the blocks know of the images' size."""

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> "Recorded":
        chosen = self.map(lambda value: value[rows])
        return Recorded(chosen.embed, chosen.z, chosen.mlp, tuple(x[rows] for x in self.streams), self.layout)


@torch.no_grad()
def record(model: Any, pixels: Pixels) -> Recorded:
    """Run the model and keep what its components write and the streams between its blocks.

    Args:
        model: a `HookedViT`.
        pixels: `[image channel height width]`.

    Raises:
        BadImages, ShapeMismatch, TrainMode: as :meth:`HookedViT.run`.
        NotFinite: the model gives NaN or Inf.
    """
    parts, pixels = model.parts, model.inputs(pixels)
    model._check_mode()
    layout = None if parts.layout is None else parts.layout(tuple(pixels.shape[2:]))
    x = parts.embed(pixels)
    streams, zs, writes = [x], [], []
    for block in parts.blocks:
        z = plain.heads(block, block.ln1(x), layout)
        mid = x + plain.scaled(block.scale1, block.attn.out(plain.merge(z)))
        write = plain.mlp(block, mid)
        x = mid + write
        zs.append(z), writes.append(write), streams.append(x)
    if not torch.isfinite(x).all():
        row = int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])
        raise NotFinite(f"the stream of image {row} of this batch is NaN or Inf.")
    return Recorded(streams[0], tuple(zs), tuple(writes), tuple(streams), layout)


def zeros(like: Outputs) -> Outputs:
    """Components that write nothing: one row. Biases of the output projections stay, they belong to no head."""
    return Outputs(like.embed, like.z, like.mlp)[:1].map(torch.zeros_like)


def mean_outputs(model: Any, pixels: Pixels, *, positional: bool = True, batch_size: int = 32) -> Outputs:
    """Mean write of every component over reference images, in one row.

    Args:
        model: a `HookedViT`.
        pixels: the reference images.
        positional: per token; otherwise the mean over tokens too.
        batch_size: images per forward.

    Raises:
        BadData: no image.
    """
    if len(pixels) == 0:
        raise BadData("means need at least one reference image.")
    total = None
    for start in range(0, len(pixels), batch_size):
        run = record(model, pixels[start : start + batch_size])
        sums = Outputs(run.embed, run.z, run.mlp).map(lambda value: value.sum(0, keepdim=True, dtype=torch.float64))
        total = sums if total is None else _added(total, sums)

    def finish(value: Tensor) -> Tensor:
        value = value / len(pixels)
        value = value if positional else value.mean(1, keepdim=True).expand_as(value)
        return value.to(model.dtype)

    return total.map(finish)


def _added(first: Outputs, second: Outputs) -> Outputs:
    pairs = [a + b for a, b in zip(first.tensors(), second.tensors(), strict=True)]
    return Outputs(pairs[0], tuple(pairs[1::2]), tuple(pairs[2::2]))


def check_base(clean: Outputs, base: Outputs) -> None:
    """The base fits the run.

    Raises:
        ShapeMismatch: another model, another number of images or tokens.
    """
    for own, other in zip(clean.tensors(), base.tensors(), strict=False):
        fits = own.shape[1:] == other.shape[1:] and len(other) in (1, len(own))
        if not fits or len(clean.z) != len(base.z):
            raise ShapeMismatch(
                f"the base has {len(base.z)} layers and writes of {list(other.shape)}; the run has {len(clean.z)} and "
                f"{list(own.shape)}. Both must come from the same model, at the same image size."
            )
