"""What the units of a model do on images, and on average: what every intervention here is made of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis import block as plain
from mechvis.axes import Hidden, Logits, PerHead, Pixels, Residual
from mechvis.engine import budget_bytes
from mechvis.errors import NotFinite
from mechvis.models.parts import Layout
from mechvis.units import Unit


@dataclass(frozen=True, eq=False, kw_only=True)
class Recording:
    """A run of some images, or (in one row) the mean over reference images; None where nobody looks."""

    pre: tuple[Residual | None, ...]
    """Per layer, the stream that its heads read."""
    z: tuple[PerHead, ...]
    """Per layer, what its output projection reads."""
    mid: tuple[Residual | None, ...]
    """Per layer, the stream that its MLP reads."""
    post: tuple[Hidden, ...]
    """Per layer, its neurons."""
    final: Residual | None
    """The stream after the last block."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "Recording":
        """The same with every tensor changed."""
        return Recording(
            **{
                field.name: change(value) if isinstance(value, Tensor) else tuple(map(change, value))
                for field in fields(self)
                for value in (getattr(self, field.name),)
            }
        )

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [*self.pre, *self.z, *self.mid, *self.post, self.final]

    def value(self, unit: Unit) -> Tensor:
        """A unit's own: `[row token]` of a neuron, `[row token d_head]` of a head."""
        if unit.kind == "neurons":
            return self.post[unit.layer][..., unit.index]
        return self.z[unit.layer][:, :, unit.index]


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """Some images, run."""

    rows: range
    """Which."""
    pixels: Pixels
    """Their pixels."""
    run: Recording
    """What the model does."""
    layout: Layout
    """What the blocks know of the images' size."""
    logits: Logits
    """The clean output."""


@torch.no_grad()
def record(model: Any, pixels: Pixels) -> tuple[Recording, Layout, Logits]:
    """Run the model and keep what its units do and read.

    Raises:
        NotFinite: the output is NaN or Inf.
    """
    parts = model.parts
    pixels = model.inputs(pixels)
    model._check_mode()
    layout = None if parts.layout is None else parts.layout(tuple(pixels.shape[2:]))
    x = parts.embed(pixels)
    kept: dict[str, list[Tensor]] = {"pre": [], "z": [], "mid": [], "post": []}
    for block in parts.blocks:
        z = plain.heads(block, block.ln1(x), layout)
        mid = x + plain.scaled(block.scale1, block.attn.out(plain.merge(z)))
        post = plain.neurons(block, block.ln2(mid))
        for name, value in (("pre", x), ("z", z), ("mid", mid), ("post", post)):
            kept[name].append(value)
        x = mid + plain.scaled(block.scale2, block.mlp_out(post))
    logits = plain.read_out(parts, x, picked(parts))
    if not torch.isfinite(logits).all():
        row = int((~torch.isfinite(logits)).flatten(1).any(1).nonzero()[0])
        raise NotFinite(f"the output of image {row} of this batch is NaN or Inf.")
    return Recording(final=x, **{name: tuple(values) for name, values in kept.items()}), layout, logits


def picked(parts: Any) -> Callable[[Residual], Residual]:
    """Takes the tokens that the read-out reads."""
    reads = list(parts.reads) if isinstance(parts.reads, tuple) else slice(None)
    return lambda x: x[:, reads]


@torch.no_grad()
def mean_run(model: Any, pixels: Pixels, *, positional: bool = True, batch_size: int = 32) -> Recording:
    """Mean over reference images, in one row; summed in float64.

    Args:
        model: a wrapped model.
        pixels: the reference images.
        positional: per token; otherwise over tokens too.
        batch_size: images per forward.
    """
    total = None
    for start in range(0, len(pixels), batch_size):
        run = record(model, pixels[start : start + batch_size])[0]
        sums = run.map(lambda value: value.sum(0, keepdim=True, dtype=torch.float64))
        total = sums if total is None else _added(total, sums)

    def finish(value: Tensor) -> Tensor:
        value = value / len(pixels)
        value = value if positional else value.mean(1, keepdim=True).expand_as(value)
        return value.to(model.dtype)

    return total.map(finish)


def _added(first: Recording, second: Recording) -> Recording:
    others = iter(second.tensors())
    # `map` goes through the fields in the order of `tensors`.
    return first.map(lambda value: value + next(others))


class Runs:
    """Images, run in batches; the runs are kept where they fit the memory.

    Args:
        model: a wrapped model.
        pixels: the images.
        budget: memory for activations.
        share: share of it in which runs are kept.
    """

    def __init__(self, model: Any, pixels: Pixels, *, budget: str | int | None = None, share: float = 0.5):
        self.model, self.pixels = model, pixels
        self.budget = budget_bytes(budget, model.device)
        element = torch.finfo(model.dtype).bits // 8
        parts = model.parts
        widths = sum(3 * parts.d_model + block.d_mlp for block in parts.blocks) + parts.d_model
        each = parts.n_tokens * widths * element
        self.size = max(1, min(len(pixels), 64, self.budget // (4 * each)))
        self._keep = each * len(pixels) <= share * self.budget
        self._kept: list[Batch] | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        seen = []
        for start in range(0, len(self.pixels), self.size):
            rows = range(start, min(start + self.size, len(self.pixels)))
            some = self.pixels[rows.start : rows.stop]
            run, layout, logits = record(self.model, some)
            batch = Batch(rows=rows, pixels=some, run=run, layout=layout, logits=logits)
            if self._keep:
                seen.append(batch)
            yield batch
        if self._keep:
            self._kept = seen

    @property
    def logits(self) -> Float[Tensor, "image class"]:
        """The clean output of all images."""
        return torch.cat([batch.logits for batch in self])
