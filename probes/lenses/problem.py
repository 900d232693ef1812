"""What a tuned lens fits: its settings, the map of one site, and what is read of some images.

Every layer is a small problem of its own: tokens `x` of some images, the log-probabilities that are their goal, and an
affine map between the two. `Reading` brings the first two (one forward pass for all sites) and reads what a map makes
of the tokens; `Map` holds the parameters.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mechvis.errors import BadData, OutOfRange, unknown
from probes.lenses.passes import Batches
from probes.lenses.read_out import read_tokens, read_whole

Where = Literal["read", "cls", "patches"]
Goal = Literal["output", "token"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a tuned lens is trained."""

    tokens: Where
    """What is read: the whole stream by the model's own read-out, the class token, or each patch."""
    goal: Goal
    """What it should come close to."""
    rank: int | None
    """Rank of D; None: full."""
    epochs: int
    """Times that every image is seen."""
    batch_size: int
    """Images per step."""
    learning_rate: float
    """At the first step."""
    weight_decay: float
    """Per step and learning rate, on D."""
    seed: int
    """Of the split, the order of the images, and the low-rank factors."""

    def __post_init__(self):
        for name, known in (("tokens", ("read", "cls", "patches")), ("goal", ("output", "token"))):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if self.goal == "token" and self.tokens != "patches":
            raise BadData("goal='token' is for tokens='patches'; what the model reads has the output as its goal.")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise OutOfRange(f"{name}={getattr(self, name)}: give at least 1.")
        if not (self.learning_rate > 0 and self.weight_decay >= 0):
            raise OutOfRange(
                f"learning_rate={self.learning_rate}, weight_decay={self.weight_decay}: the first is above 0, the "
                "second not below."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Map:
    """The parameters of one site's map."""

    change: tuple[Tensor, ...]
    """`(D,)`, or `(U, V)` with D = U V^T."""
    bias: Tensor
    """b."""

    @classmethod
    def start(cls, width: int, rank: int | None, device: Any, dtype: torch.dtype, seed: int) -> "Map":
        """The identity. In the low-rank form U is zero and V random, so that D is zero and has a gradient."""
        zeros = torch.zeros(width, rank or width, device=device, dtype=dtype)
        change = (zeros,)
        if rank is not None:
            generator = torch.Generator().manual_seed(seed)
            change = (zeros, torch.randn(width, rank, generator=generator).to(zeros) / math.sqrt(width))
        bias = torch.zeros(width, device=device, dtype=dtype)
        return cls(change=tuple(part.requires_grad_() for part in change), bias=bias.requires_grad_())

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.to(self.bias.dtype)
        moved = wide
        for part, factor in enumerate(self.change):
            moved = moved @ (factor if part == 0 else factor.T)
        return (wide + moved + self.bias).to(x.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """The tokens that are needed of images, what they should say, and how they are read."""

    model: Any = field(repr=False)
    """A wrapped image tower."""
    passes: Batches = field(repr=False)
    """Its images."""
    settings: Settings
    """What is read."""
    seen: set[int] | None = field(default=None, repr=False)
    """Collects digests of the images that are read; None: nobody asks."""

    def of(self, part: np.ndarray) -> tuple[Tensor, Tensor]:
        """Tokens `[site image token d_model]` of some images, and the log-probabilities that are their goal
        `[image token class]`, in as many forward passes as the budget asks for."""
        lots = [part[start : start + self.passes.at_once] for start in range(0, len(part), self.passes.at_once)]
        found = [self._of(lot) for lot in lots]
        return torch.cat([x for x, _ in found], dim=1), torch.cat([goal for _, goal in found])

    def _of(self, part: np.ndarray) -> tuple[Tensor, Tensor]:
        batch = self.passes.batch(part)
        if self.seen is not None:
            self.seen.update(batch.digests().tolist())
        x = torch.stack([self._needed(batch.cache[site]) for site in self.passes.sites])
        output = self.read(self._needed(batch.last)) if self.settings.goal == "token" else batch.output[:, None]
        return x, F.log_softmax(output.float() if output.dtype.itemsize < 4 else output, dim=-1)

    def _needed(self, stream: Tensor) -> Tensor:
        parts = self.passes.parts
        match self.settings.tokens:
            case "read":
                return stream if parts.reads is None else stream[:, : max(parts.reads) + 1]
            case "cls":
                if not parts.prefix:
                    raise BadData("tokens='cls': this model has no class token. Use 'read' or 'patches'.")
                return stream[:, :1]
            case _:
                return stream[:, len(parts.prefix) :]

    def read(self, x: Tensor) -> Tensor:
        """Logits `[image token class]`; one token where the whole stream is read."""
        if self.settings.tokens == "read":
            return read_whole(self.model, x)[:, None]
        return read_tokens(self.model, x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def loss(self, x: Tensor, goal: Tensor) -> Tensor:
        """KL(goal || reading) per image, mean over its tokens `[image]`."""
        logits = self.read(x)
        log_q = F.log_softmax(logits.to(goal.dtype), dim=-1)
        return (goal.exp() * (goal - log_q)).sum(-1).mean(-1)
