"""Matching pursuit: atoms are taken one at a time, each explaining what the ones before left over (2506.03093).

r_0 = x; for t = 1..k:  j = argmax_i r·D_i,  v = ReLU(r·D_j),  z_j += v,  r <- r - v D_j.

* `choose` runs it without gradients and says which atoms were taken. Two ways that give the same atoms: `direct`
  multiplies the residuals with all atoms k times; `gram` does so once and then subtracts v times a row of D Dᵀ, which
  is cheaper by the width of the rows, and needs a square matrix of atoms.
* `Pursuit` recomputes the numbers from the atoms that were taken, `[row d]` per step in place of `[row latent]`, with
  the gradient in closed form: per step, backwards, with g = ∂/∂r_t and a = (∂/∂v_t - g·D_j)·1[v_t > 0]:
      ∂/∂D_j += a r_{t-1} - v_t g,      ∂/∂r_{t-1} = g + a D_j.
  The sums over rows go through `segment_sum`: one fixed order, no atomics, the same bits every time.

Coefficients are never negative: a step whose best atom points away adds nothing (overcomplete 0.3 takes it all the same
[code]). A row whose residual is shorter than `threshold` is done.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from mechvis.kernels.sparse_grad import segment_sum
from mechvis.kernels.support import Support
from mechvis.kernels.topk import topk
from sae.active import Values


@dataclass(frozen=True, kw_only=True, eq=False)
class Pursued:
    """What a pursuit took and left."""

    atoms: Int[Tensor, "k row"]
    """Which atom each step took; one may come twice."""
    values: Float[Tensor, "k row"]
    """How much of it; 0 where nothing was left to take."""
    residual: Float[Tensor, "row d"]
    """What is left over."""

    def codes(self, n_latents: int) -> Float[Tensor, "row latent"]:
        """One number per atom: what its steps add up to. Gradients flow."""
        out = self.values.new_zeros(self.values.shape[1], n_latents)
        return out.scatter_add(1, self.atoms.T, self.values.T)

    def entries(self, n_latents: int) -> Values:
        """The same as a list with k entries per row, without gradients and without asking the device how many are
        real."""
        values, latents = topk(self.codes(n_latents).detach(), min(len(self.values), n_latents))
        return Values(numbers=values.reshape(-1), support=Support.from_rows(latents, n_latents), mask=None)


def pursue(
    x: Float[Tensor, "row d"],
    atoms: Float[Tensor, "latent d"],
    k: int,
    *,
    threshold: float = 0.0,
    among: Bool[Tensor, " latent"] | None = None,
    gram: bool | None = None,
    bf16: bool = False,
    fast: bool = True,
) -> Pursued:
    """Matching pursuit with gradients to rows and atoms; which atoms are taken is held fixed.

    Args:
        x: rows.
        atoms: unit vectors.
        k: steps.
        threshold: a row whose residual is shorter is done.
        among: atoms that may be taken; None for all.
        gram: choose by the products of atoms; None: where that is cheaper than a second look at all atoms.
        bf16: choose in bfloat16; numbers are in full precision all the same.
        fast: gradients in closed form; False: by autograd through every step.
    """
    with torch.no_grad():
        taken = choose(x, atoms, k, threshold=threshold, among=among, gram=gram, bf16=bf16)
    if fast:
        values, residual = _Pursuit.apply(x, atoms, taken, threshold)
    else:
        values, residual = _plain(x, atoms, taken, threshold)
    return Pursued(atoms=taken, values=values, residual=residual)


def choose(
    x: Float[Tensor, "row d"],
    atoms: Float[Tensor, "latent d"],
    k: int,
    *,
    threshold: float = 0.0,
    among: Bool[Tensor, " latent"] | None = None,
    gram: bool | None = None,
    bf16: bool = False,
) -> Int[Tensor, "k row"]:
    """Which atoms a pursuit takes. Arguments: see :func:`pursue`."""
    gram = len(atoms) <= len(x) and k > 1 if gram is None else gram
    residual, taken = x, []
    left = products(x, atoms, bf16)
    between = products(atoms, atoms, False) if gram else None
    for t in range(k):
        if t and not gram:
            left = products(residual, atoms, bf16)
        offered = left if among is None else left.masked_fill(~among, -torch.inf)
        j = offered.argmax(1)
        taken.append(j)
        if t + 1 == k:
            break
        v, residual = _take(residual, atoms[j], threshold)
        if gram:
            # In place of the residual's products: those of the row before, less what the atom took of each.
            left = left - v[:, None] * between[j]
    return torch.stack(taken)


def products(rows: Tensor, atoms: Tensor, bf16: bool) -> Tensor:
    """Inner products of rows and atoms, for choosing."""
    return (rows.bfloat16() @ atoms.bfloat16().T).to(rows.dtype) if bf16 else rows @ atoms.T


def _take(residual: Tensor, chosen: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """How much of an atom, and what is left over then."""
    v = (residual * chosen).sum(1).relu()
    if threshold > 0:
        v = torch.where(residual.detach().norm(dim=1) < threshold, 0.0, v)
    return v, residual - v[:, None] * chosen


def _plain(x: Tensor, atoms: Tensor, taken: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    residual, values = x, []
    for j in taken:
        v, residual = _take(residual, atoms[j], threshold)
        values.append(v)
    return torch.stack(values), residual


class _Pursuit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, atoms, taken, threshold):
        residual, values, before = x, [], []
        for j in taken:
            before.append(residual)
            v, residual = _take(residual, atoms[j], threshold)
            values.append(v)
        values = torch.stack(values)
        ctx.save_for_backward(atoms, taken, values, *before)
        return values, residual.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, to_values, to_residual):
        atoms, taken, values, *before = ctx.saved_tensors
        g, parts = to_residual, []
        for t in reversed(range(len(taken))):
            chosen = atoms[taken[t]]
            a = torch.where(values[t] > 0, to_values[t] - (g * chosen).sum(1), 0.0)[:, None]
            parts.append(a * before[t] - values[t][:, None] * g)
            g = g + a * chosen
        # Every (step, row) is a row of its own with one entry, so one sum per atom covers all steps.
        rows = rearrange(torch.stack(parts[::-1]), "k row d -> (k row) d")
        support = Support.from_rows(taken.reshape(-1, 1), len(atoms))
        to_atoms = segment_sum(torch.ones_like(rows[:, 0]), rows, support)
        return g, to_atoms, None, None
