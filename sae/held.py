"""Gradients of the two large weights, held back until a whole backward pass is known, then taken in one go.

A weight's gradient is a sum over the entries of each latent. Autograd would allocate a `[latent d]` matrix for it at
every step (on a CPU, giving it new pages takes longer than computing it), and two of them and their sum where two
supports share a weight (AuxK). Held back, the entries are kept instead, and the sums are written once, to a matrix that
stays from step to step.

What clipping has to know of gradients that are to be projected comes almost free: |g - (g·w) w|² = |g|² - (g·w)², and
g·w is a sum over entries too, of values times the inner products that backward takes anyway.

Only weights that are parameters themselves are held; gradients that come to them by other ways are added.
"""

import functools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.kernels.sparse_grad import column_sums, segment_sum
from mechvis.kernels.support import Support


@dataclass(frozen=True, kw_only=True, eq=False)
class Share:
    """A part of a gradient: `sum over a latent's entries of value * x[row]`."""

    values: Float[Tensor, " entry"]
    """Factors."""
    x: Float[Tensor, "row d"]
    """What is added up."""
    support: Support
    """The entries."""
    products: Float[Tensor, " entry"] | None = None
    """Inner product of `x[row]` and the weight's row, for each entry, where it is known."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sizes:
    """What is known of a gradient without looking at it again."""

    squares: Float[Tensor, " latent"]
    """|g|² of each row."""
    along: Float[Tensor, " latent"] | None
    """g·w of each row, where rows are unit vectors."""


@dataclass(kw_only=True, eq=False)
class Held:
    """Shares of gradients, by parameter."""

    parameters: Mapping[str, Tensor]
    """Whose gradients are held."""
    unit: frozenset[str] = frozenset()
    """Those whose rows are unit vectors."""
    shares: dict[str, list[Share]] = field(default_factory=dict)
    """What came so far."""
    _room: dict[str, Tensor] = field(default_factory=dict)
    """Matrices for gradients, which stay from step to step."""

    def name_of(self, weight: Tensor) -> str | None:
        """Name of a parameter; None for other tensors, whose gradients autograd passes on."""
        return next((name for name, p in self.parameters.items() if p is weight), None)

    def add(self, name: str, share: Share) -> None:
        """Hold a share."""
        self.shares.setdefault(name, []).append(share)

    @torch.no_grad()
    def finish(self) -> dict[str, Sizes]:
        """Write gradients to where autograd would have put them.

        Returns:
            Sizes of those that consist of what was held alone.
        """
        shares, self.shares = self.shares, {}
        found = {}
        for name, parts in shares.items():
            p = self.parameters[name]
            known, p.grad = p.grad, self._sum(name, p.detach(), parts)
            if known is None:
                found[name] = self._sizes(name, p, parts)
            else:
                p.grad.add_(known)
        return found

    def _sum(self, name: str, p: Tensor, parts: list[Share]) -> Tensor:
        if p.device.type != "cpu":
            total = sum((segment_sum(part.values, part.x, part.support) for part in parts[1:]), start=_first(parts))
            return total.to(p.dtype)
        if name not in self._room:
            self._room[name] = torch.empty_like(p)
        out = self._room[name]
        if not torch.backends.mkl.is_available():
            out.copy_(_first(parts))
            for part in parts[1:]:
                out += segment_sum(part.values, part.x, part.support)
            return out
        for index, part in enumerate(parts):
            # Adds to what is there; its loop over the entries of a latent has one order, whatever the threads.
            torch.addmm(out, _by_latent(part), part.x, beta=float(index > 0), out=out)
        return out

    def _sizes(self, name: str, p: Tensor, parts: list[Share]) -> Sizes:
        squares = torch.linalg.vector_norm(p.grad, dim=1).square_()
        if name not in self.unit:
            return Sizes(squares=squares, along=None)
        if any(part.products is None for part in parts):
            return Sizes(squares=squares, along=torch.linalg.vecdot(p.grad, p.detach()))
        along = [column_sums(part.values * part.products, part.support) for part in parts]
        return Sizes(squares=squares, along=sum(along[1:], start=along[0]))


def _first(parts: list[Share]) -> Tensor:
    return segment_sum(parts[0].values, parts[0].x, parts[0].support)


def _by_latent(part: Share) -> Tensor:
    """The entries as a sparse matrix `[latent row]`."""
    _say_nothing_of_beta()
    order, starts = part.support.by_latent
    shape = (part.support.n_latents, part.support.n_rows)
    return torch.sparse_csr_tensor(
        starts.int(), part.support.rows[order].int(), part.values[order].to(part.x.dtype), shape, check_invariants=False
    )


@functools.cache
def _say_nothing_of_beta() -> None:
    """torch tells once per process that sparse CSR tensors are in beta; that is no news for the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.sparse_csr_tensor(torch.zeros(2, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0))


_current: Held | None = None


def current() -> Held | None:
    """Who holds gradients back right now."""
    return _current


@contextmanager
def hold(held: Held) -> Iterator[None]:
    """Hold gradients of what is computed inside; :meth:`Held.finish` gives them out."""
    global _current
    before, _current = _current, held
    held.shares.clear()  # of a pass that an error ended
    try:
        yield
    finally:
        _current = before
