"""What every method of this package works on: activations at one hook, cached once, and the model from there on.

A `Tail` is all that a subspace interchange needs of a model: `h` of every image, and a function from (changed) rows of
`h` to logits. The function also gets which image each row belongs to, so that it can restore everything that is not
part of the hook (the other tokens, the other heads). Two optional functions say what the rest of the model looks at,
for the illusion diagnostics.

* A ViT's tail at a site: :func:`circuits.subspace.site_tail`.
* A hook that is followed by a linear map: :func:`read_tail`; this is all that a toy model needs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.subspace.place import Place
from mechvis.errors import BadData, CacheChanged, NotFinite, ShapeMismatch

Of = Callable[[Float[Tensor, "pair width"], Int[Tensor, " pair"]], Tensor]

CHUNK = 256
"""Rows of a tail that are computed together outside of training."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Tail:
    """Activations of images at one hook, and the model from there on.

    Raises:
        ShapeMismatch: `h` is not `[image width]`.
        BadData: it is of a lower precision than float32.
        NotFinite: NaN or Inf in it.
    """

    name: str
    """Where the hook is, in words."""
    h: Float[Tensor, "image width"]
    """Cached activations."""
    logits_of: Of
    """(rows of `h`, which image each belongs to) -> logits `[pair class]`; differentiable in the rows."""
    reads_of: Of | None = None
    """The same -> everything that the next readers take in, `[pair read]`: for the effective row space."""
    units_of: Of | None = None
    """The same -> pre-activations downstream, `[pair unit]`: for the plausibility of changed activations."""
    read: Float[Tensor, "width out"] | None = None
    """The linear map that follows the hook, if one does and nothing else reads the hook."""
    place: Place | None = None
    """The site, for edits of a wrapped model; None for anything else."""
    model: Any = None
    """The wrapped model, for provenance and for the check that it is in eval mode; None for anything else."""
    images: Any = field(default=None)
    """The image set, for provenance; None for anything else."""
    weights: int | None = None
    """How often the model's weights had been written to when `h` was cached."""

    def __post_init__(self):
        if self.h.ndim != 2 or 0 in self.h.shape:
            raise ShapeMismatch(f"{self.name}: cached activations are [image width], got {list(self.h.shape)}.")
        if self.h.dtype not in (torch.float32, torch.float64):
            raise BadData(
                f"{self.name}: activations are {self.h.dtype}; directions are learnt in float32 or float64. "
                "Load the model in float32."
            )
        if not torch.isfinite(self.h).all():
            raise NotFinite(f"{self.name}: the cached activations hold NaN or Inf.")
        if self.read is not None and (self.read.ndim != 2 or len(self.read) != self.width):
            raise ShapeMismatch(
                f"{self.name}: the linear read is [width out] with width {self.width}, got {list(self.read.shape)}."
            )
        object.__setattr__(self, "h", self.h.detach())

    @property
    def width(self) -> int:
        """Width of the hook."""
        return self.h.shape[1]

    def __len__(self) -> int:
        return len(self.h)

    def __repr__(self) -> str:
        return f"Tail({self.name!r}, {len(self)} images, width {self.width}, {self.h.dtype})"

    @cached_property
    def clean(self) -> Float[Tensor, "image class"]:
        """Logits of the images as they are."""
        return in_chunks(self.logits_of, self.h, torch.arange(len(self), device=self.h.device))

    def check(self) -> None:
        """The model must be in the state in which `h` was cached: in eval mode, with the same weights.

        Raises:
            TrainMode, CacheChanged.
        """
        if self.model is None:
            return
        self.model._check_mode()
        if self.weights != weights_version(self.model):
            raise CacheChanged(
                f"the weights of {self.model.name} were written to after the activations at {self.name} were cached; "
                "the two no longer fit. Make the tail again."
            )


def weights_version(model: Any) -> int:
    """How often a model's weights have been written to."""
    return sum(parameter._version for parameter in model.parameters())


@torch.no_grad()
def in_chunks(of: Of, h: Float[Tensor, "pair width"], images: Int[Tensor, " pair"], chunk: int = CHUNK) -> Tensor:
    """A function of a tail over many rows, without a graph and a piece at a time.

    Raises:
        BadData: no rows.
        NotFinite: the tail gives NaN or Inf.
    """
    if not len(h):
        raise BadData("a tail needs at least one row, got none.")
    parts = [of(h[i : i + chunk], images[i : i + chunk]) for i in range(0, len(h), chunk)]
    out = torch.cat(parts)
    if not torch.isfinite(out).all():
        bad = int((~torch.isfinite(out)).flatten(1).any(1).nonzero()[0])
        raise NotFinite(f"the tail gives NaN or Inf, first for row {bad} (image {int(images[bad])}).")
    return out


def read_tail(
    h: Float[Tensor, "image width"],
    read: Float[Tensor, "width out"],
    rest: Callable[[Float[Tensor, "pair out"]], Float[Tensor, "pair class"]],
    *,
    name: str = "hook with a linear read",
) -> Tail:
    """The tail of a hook that is followed by one linear map.

    Args:
        h: activations.
        read: the map; a bias belongs to `rest`.
        rest: from the map's output to logits.
        name: what to call it.

    Example:
        >>> tail = read_tail(torch.randn(5, 4), torch.eye(4)[:, :2], lambda out: out)
        >>> tail.clean.shape
        torch.Size([5, 2])
    """

    def taken(rows: Tensor, images: Tensor) -> Tensor:
        return rows @ read

    return Tail(
        name=name,
        h=h,
        logits_of=lambda rows, images: rest(rows @ read),
        reads_of=taken,
        units_of=taken,
        read=read,
    )
