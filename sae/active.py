"""Codes of a batch in two forms that say the same: all latents with a mask, or the active ones as flat lists.

A loss is written once, for values at the places of a support: functions of entries (`map`), sums, what they write
(`decode`). The plain twin holds a dense matrix and a mask and leaves all gradients to autograd; the fast one holds the
entries alone and uses `sae.sparse`. `Encoder.fast` decides, and the tests run every architecture both ways.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.kernels.sparse_grad import entry_products
from mechvis.kernels.support import Support
from mechvis.kernels.topk import topk
from sae import screen, sparse


@dataclass(frozen=True, kw_only=True, eq=False)
class Values:
    """Numbers at the active places of a `[row latent]` matrix."""

    numbers: Float[Tensor, "row latent"] | Float[Tensor, " entry"]
    """A matrix with zeros elsewhere (plain), or the entries (fast)."""
    support: Support
    """The places."""
    mask: Bool[Tensor, "row latent"] | None
    """The places once more, as a mask (plain); None: fast."""

    @property
    def n_rows(self) -> int:
        """Rows."""
        return self.support.n_rows

    def map(self, function: Callable[..., Tensor], *per_latent: Tensor) -> "Values":
        """A function of every entry, and of numbers per latent, e.g. `values.map(jump, threshold)`."""
        if self.mask is None:
            found = function(self.numbers, *(sparse.gather(numbers, self.support) for numbers in per_latent))
        else:
            # Outside the mask the function may be anything, even infinite, and so may its slope.
            inside = torch.where(self.mask, self.numbers, 1.0)
            found = torch.where(self.mask, function(inside, *per_latent), 0.0)
        return Values(numbers=found, support=self.support, mask=self.mask)

    def times(self, other: "Values") -> "Values":
        """Product with values at the same places."""
        return Values(numbers=self.numbers * other.numbers, support=self.support, mask=self.mask)

    def sum(self) -> Float[Tensor, ""]:
        """Sum over all entries."""
        return self.numbers.sum()

    def row_sums(self) -> Float[Tensor, " row"]:
        """Sum of each row's entries."""
        return sparse.rows_of(self.numbers, self.support) if self.mask is None else self.numbers.sum(1)

    def decode(self, weight: Float[Tensor, "latent d"]) -> Float[Tensor, "row d"]:
        """What these codes write."""
        return sparse.decode_at(self.numbers, self.support, weight) if self.mask is None else self.numbers @ weight

    def detach(self) -> "Values":
        """Without history."""
        return Values(numbers=self.numbers.detach(), support=self.support, mask=self.mask)

    def entries(self) -> Float[Tensor, " entry"]:
        """The entries as a list, in the order of the support."""
        return self.numbers if self.mask is None else self.numbers[self.support.rows, self.support.latents]

    def dense(self) -> Float[Tensor, "row latent"]:
        """The matrix."""
        return self.support.dense(self.numbers) if self.mask is None else self.numbers

    def positive(self) -> Int[Tensor, " latent"]:
        """How many rows each latent is above zero on."""
        fires = torch.zeros(self.support.n_latents, dtype=torch.long, device=self.numbers.device)
        return fires.scatter_add_(0, self.support.latents, (self.entries() > 0).long())


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoder:
    """Rows times encoder: pre-activations of all latents, and the way to those that turn out to be active."""

    x: Float[Tensor, "row d"]
    """Rows, normalised."""
    shift: Float[Tensor, " d"] | None
    """Taken off before."""
    weight: Float[Tensor, "latent d"]
    """Encoder."""
    bias: Float[Tensor, " latent"] | None
    """Added to every latent."""
    pre: Float[Tensor, "row latent"]
    """Pre-activations; with history in the plain form only."""
    fast: bool
    """Which form values take."""
    exact: bool
    """Is `pre` in full precision? Else values at the active places are computed again."""

    def at(self, support: Support) -> Values:
        """Pre-activations at the places of a support."""
        if not self.fast:
            mask = support.mask()
            return Values(numbers=torch.where(mask, self.pre, 0.0), support=support, mask=mask)
        known = self._known(support)
        numbers = sparse.encode_at(self.x, self.shift, self.weight, self.bias, support, known, self.centred)
        return Values(numbers=numbers, support=support, mask=None)

    def largest(self, k: int, among: Bool[Tensor, " latent"] | None = None) -> tuple[Support, Float[Tensor, " entry"]]:
        """The places of the k largest pre-activations of each row, and the numbers there, without history.

        Args:
            k: how many of each row.
            among: latents that may be taken; None for all. Where they are fewer, places are filled up with -inf.
        """
        values, latents = topk(self.pre.detach(), k, among=among)
        return Support.from_rows(latents, len(self.weight)), values.reshape(-1)

    @cached_property
    def centred(self) -> Float[Tensor, "row d"]:
        """Rows after the shift, without history."""
        return (self.x if self.shift is None else self.x - self.shift).detach()

    def _known(self, support: Support) -> Float[Tensor, " entry"] | None:
        return self.pre[support.rows, support.latents] if self.exact else None


class Screened(Encoder):
    """An encoder of which the whole product is taken only if somebody asks for it.

    The largest pre-activations come from `sae.screen`, in full precision; those of some latents from these alone.
    """

    def __init__(self, *, x, shift, weight, bias, exact: bool):
        known = {"x": x, "shift": shift, "weight": weight, "bias": bias, "fast": True, "exact": exact}
        for name, value in known.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_found", (None, None))

    @cached_property
    def pre(self) -> Float[Tensor, "row latent"]:
        """All pre-activations."""
        return _product(self.centred, self.weight.detach(), self.bias, bf16=not self.exact)

    def largest(self, k: int, among: Tensor | None = None) -> tuple[Support, Tensor]:
        """See :meth:`Encoder.largest`."""
        if among is not None:
            return self._among(k, among)
        if "pre" in self.__dict__ or not screen.possible(self.weight, k):
            return super().largest(k)
        bias = None if self.bias is None else self.bias.detach()
        latents, values = screen.largest(self.centred, self.weight, bias, k, exact=self.exact)
        found = Support.from_rows(latents, len(self.weight)), values.reshape(-1)
        object.__setattr__(self, "_found", found)
        return found

    def _among(self, k: int, among: Tensor) -> tuple[Support, Tensor]:
        columns = among.nonzero()[:, 0]
        if len(columns) < k or 2 * len(columns) > len(among):
            return super().largest(k, among)
        with torch.no_grad():
            bias = None if self.bias is None else self.bias[columns]
            pre = _product(self.centred, self.weight[columns], bias, bf16=not self.exact)
            values, places = topk(pre, k)
        return Support.from_rows(columns[places], len(self.weight)), values.reshape(-1)

    def _known(self, support: Support) -> Tensor | None:
        if support is self._found[0]:
            return self._found[1]
        # What was multiplied already is looked up; the rest is computed for the entries alone.
        return super()._known(support) if "pre" in self.__dict__ else None


def encoder(
    x: Float[Tensor, "row d"],
    shift: Float[Tensor, " d"] | None,
    weight: Float[Tensor, "latent d"],
    bias: Float[Tensor, " latent"] | None,
    *,
    fast: bool = True,
    bf16: bool = False,
) -> Encoder:
    """Multiply rows with the encoder.

    Args:
        x: rows, normalised.
        shift: taken off before; None for nothing.
        weight: encoder.
        bias: per latent; None for nothing.
        fast: for the fast form.
        bf16: product in bfloat16, for choosing; what is chosen is computed in full precision.
    """
    if not fast:
        centred = x if shift is None else x - shift
        pre = centred @ weight.T if bias is None else torch.addmm(bias, centred, weight.T)
        return Encoder(x=x, shift=shift, weight=weight, bias=bias, pre=pre, fast=False, exact=True)
    if screen.possible(weight, 1):
        return Screened(x=x, shift=shift, weight=weight, bias=bias, exact=not bf16)
    with torch.no_grad():
        pre = _product(x if shift is None else x - shift, weight, bias, bf16=bf16)
    return Encoder(x=x, shift=shift, weight=weight, bias=bias, pre=pre, fast=True, exact=not bf16)


@torch.no_grad()
def _product(centred: Tensor, weight: Tensor, bias: Tensor | None, *, bf16: bool) -> Tensor:
    if bf16:
        pre = centred.bfloat16() @ weight.bfloat16().T
        return pre if bias is None else pre.add_(bias.bfloat16())
    return centred @ weight.T if bias is None else torch.addmm(bias, centred, weight.T)


def recomputed(e: Encoder, support: Support) -> Float[Tensor, " entry"]:
    """Pre-activations at the places of a support in full precision, without history."""
    with torch.no_grad():
        if (known := e._known(support)) is not None:
            return known
        found = entry_products(e.centred, e.weight, support)
        return found if e.bias is None else found + e.bias[support.latents]
