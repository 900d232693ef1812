"""Which latents are active on which row, as flat lists: what the kernels of dictionaries read and write.

Entries are grouped by row (compressed sparse rows): those of row b are `offsets[b]` to `offsets[b + 1]`. Rows may have
different numbers of entries, or none. Weight gradients want the same entries grouped by latent; `by_latent` sorts them
once (a stable sort, so that sums come out the same every time) and keeps the order for every gradient of the step.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.errors import ShapeMismatch


@dataclass(frozen=True, kw_only=True, eq=False)
class Support:
    """The places of a `[row latent]` matrix that are not zero.

    Example:
        >>> support = Support.from_mask(torch.tensor([[True, False, True], [False, False, True]]))
        >>> support.offsets.tolist(), support.latents.tolist()
        ([0, 2, 3], [0, 2, 2])
    """

    offsets: Int[Tensor, " row+1"]
    """Where each row's entries start; the last number is how many there are."""
    latents: Int[Tensor, " entry"]
    """Which latent each entry is about."""
    rows: Int[Tensor, " entry"]
    """Which row each entry belongs to; ascends."""
    n_latents: int
    """Latents there are."""

    @classmethod
    def from_rows(cls, latents: Int[Tensor, "row k"], n_latents: int) -> "Support":
        """The same number of latents on every row. Nothing waits for the device."""
        n, k = latents.shape
        offsets = torch.arange(0, n * k + 1, max(k, 1), device=latents.device)[: n + 1] if k else _zeros(n + 1, latents)
        rows = torch.arange(n, device=latents.device).repeat_interleave(k, output_size=n * k)
        return cls(offsets=offsets, latents=latents.reshape(-1), rows=rows, n_latents=n_latents)

    @classmethod
    def from_flat(cls, places: Int[Tensor, " entry"], n_rows: int, n_latents: int) -> "Support":
        """From positions in the flattened matrix, in any order. Nothing waits for the device."""
        places = places.sort().values
        rows = places // n_latents
        counts = torch.zeros(n_rows, dtype=torch.long, device=places.device).scatter_add_(
            0, rows, torch.ones_like(rows)
        )
        offsets = torch.cat([_zeros(1, places), counts.cumsum(0)])
        return cls(offsets=offsets, latents=places % n_latents, rows=rows, n_latents=n_latents)

    @classmethod
    def from_mask(cls, mask: Bool[Tensor, "row latent"]) -> "Support":
        """From a mask. Waits for the device, since the number of entries depends on the numbers."""
        n_latents = mask.shape[1]
        rows, latents = mask.nonzero(as_tuple=True)
        offsets = torch.cat([_zeros(1, rows), mask.sum(1).cumsum(0)])
        return cls(offsets=offsets, latents=latents, rows=rows, n_latents=n_latents)

    def __post_init__(self):
        if self.latents.shape != self.rows.shape or self.latents.ndim != 1 or self.offsets.ndim != 1:
            raise ShapeMismatch(
                f"a support has one row and one latent per entry: got {list(self.rows.shape)} rows and "
                f"{list(self.latents.shape)} latents."
            )

    @property
    def n_rows(self) -> int:
        """Rows."""
        return len(self.offsets) - 1

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def counts(self) -> Int[Tensor, " row"]:
        """Entries of each row (L0)."""
        return self.offsets[1:] - self.offsets[:-1]

    @cached_property
    def by_latent(self) -> tuple[Int[Tensor, " entry"], Int[Tensor, " latent+1"]]:
        """The entries in the order of their latents (rows ascend inside one), and where each latent's start."""
        order = _order(self.latents, self.n_latents)
        counts = torch.zeros(self.n_latents, dtype=torch.long, device=order.device)
        counts.scatter_add_(0, self.latents, torch.ones_like(self.latents))
        return order, torch.cat([_zeros(1, order), counts.cumsum(0)])

    @property
    def fires(self) -> Int[Tensor, " latent"]:
        """Entries of each latent."""
        starts = self.by_latent[1]
        return starts[1:] - starts[:-1]

    def dense(self, values: Float[Tensor, " entry"]) -> Float[Tensor, "row latent"]:
        """The matrix with these values at the entries, and zero elsewhere."""
        out = values.new_zeros(self.n_rows, self.n_latents)
        return out.index_put((self.rows, self.latents), values)

    def mask(self) -> Bool[Tensor, "row latent"]:
        """Where the entries are."""
        out = torch.zeros(self.n_rows, self.n_latents, dtype=torch.bool, device=self.latents.device)
        out[self.rows, self.latents] = True
        return out


def _order(latents: Int[Tensor, " entry"], n_latents: int) -> Int[Tensor, " entry"]:
    """A stable sort. On a CPU numbers of 16 bits are sorted by their digits: a tenth of the time."""
    if latents.device.type != "cpu" or n_latents > 2**16:
        return latents.argsort(stable=True)
    return torch.from_numpy(np.argsort(latents.numpy().astype(np.uint16), kind="stable"))


def _zeros(n: int, like: Tensor) -> Tensor:
    return torch.zeros(n, dtype=torch.long, device=like.device)
