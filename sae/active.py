"""Codes of a batch in two forms that say the same: all latents with a mask, or the active ones as flat lists.

A loss is written once, for values at the places of a support: functions of entries (`map`), sums, what they write
(`decode`). The plain twin holds a dense matrix and a mask and leaves all gradients to autograd; the fast one holds the
entries alone and uses `sae.sparse`. `Encoder.fast` decides, and the tests run every architecture both ways.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.kernels.sparse_grad import entry_products
from mechvis.kernels.support import Support
from sae import sparse


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
        known = self.pre[support.rows, support.latents] if self.exact else None
        numbers = sparse.encode_at(self.x, self.shift, self.weight, self.bias, support, known)
        return Values(numbers=numbers, support=support, mask=None)


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
    with torch.no_grad():
        centred = x if shift is None else x - shift
        if bf16:
            pre = centred.bfloat16() @ weight.bfloat16().T
            pre = pre if bias is None else pre + bias.bfloat16()
        else:
            pre = centred @ weight.T if bias is None else torch.addmm(bias, centred, weight.T)
    return Encoder(x=x, shift=shift, weight=weight, bias=bias, pre=pre, fast=True, exact=not bf16)


def recomputed(e: Encoder, support: Support) -> Float[Tensor, " entry"]:
    """Pre-activations at the places of a support in full precision, without history."""
    with torch.no_grad():
        if e.exact:
            return e.pre[support.rows, support.latents]
        centred = e.x if e.shift is None else e.x - e.shift
        found = entry_products(centred, e.weight, support)
        return found if e.bias is None else found + e.bias[support.latents]
