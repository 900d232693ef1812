"""Orthogonal matching pursuit with non-negative coefficients: after every step all coefficients are solved for again.

1. Take the atom that the residual points along most, of those not taken yet.
2. Solve min_{z >= 0} ‖x - z D_S‖² on the atoms S taken so far, exactly (`nnls`).
3. The new residual; on to 1, k times. A row with no atom along its residual, or with a residual shorter than the
   threshold, is done.

`nnls` is Lawson and Hanson's active-set method for a batch of small problems at once (scipy.optimize.nnls solves one;
overcomplete's `OMPSAE` takes ten projected-gradient steps instead [code]). Dearer than matching pursuit by k solutions
of a k x k system per row, and never worse on the atoms that were taken.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.errors import FailedCheck
from sae.pursuit import Pursued


def orthogonal_pursue(
    x: Float[Tensor, "row d"], atoms: Float[Tensor, "latent d"], k: int, *, threshold: float = 0.0
) -> Pursued:
    """Atoms and coefficients of every row. Gradients flow through the last solution, whose support is held fixed.

    Args:
        x: rows.
        atoms: unit vectors.
        k: most atoms per row.
        threshold: a row whose residual is shorter takes no more.
    """
    with torch.no_grad():
        residual, taken, use = x, [], []
        free = torch.ones(len(x), len(atoms), dtype=torch.bool, device=x.device)
        for _ in range(min(k, len(atoms))):
            left = torch.where(free, residual @ atoms.T, -torch.inf)
            best, j = left.max(1)
            free.scatter_(1, j[:, None], False)
            taken.append(j)
            use.append((best > 0) & (residual.norm(dim=1) >= threshold))
            chosen = atoms[torch.stack(taken, 1)]
            values, positive = _solved(x, chosen, torch.stack(use, 1))
            residual = x - torch.einsum("bk,bkd->bd", values, chosen)
        indices = torch.stack(taken, 1)
    values = _on_support(x, atoms[indices], positive)
    return Pursued(atoms=indices.T, values=values.T, residual=x - torch.einsum("bk,bkd->bd", values, atoms[indices]))


def _solved(x: Tensor, chosen: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    gram = torch.einsum("bkd,bjd->bkj", chosen, chosen)
    return nnls(gram, torch.einsum("bkd,bd->bk", chosen, x), allowed)


def _on_support(x: Tensor, chosen: Tensor, positive: Tensor) -> Tensor:
    """Least squares on the atoms that are positive, with gradients."""
    gram = torch.einsum("bkd,bjd->bkj", chosen, chosen)
    return _least_squares(gram, torch.einsum("bkd,bd->bk", chosen, x), positive)


def _least_squares(gram: Tensor, target: Tensor, on: Tensor) -> Tensor:
    """Solution of the rows and columns that are on; zero elsewhere."""
    both = on[:, :, None] & on[:, None, :]
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    system = torch.where(both, gram, eye)
    return torch.where(on, torch.linalg.solve(system, torch.where(on, target, 0.0)), 0.0)


def nnls(
    gram: Float[Tensor, "row k k"], target: Float[Tensor, "row k"], allowed: Bool[Tensor, "row k"] | None = None
) -> tuple[Float[Tensor, "row k"], Bool[Tensor, "row k"]]:
    """min_{z >= 0} zᵀ G z / 2 - tᵀ z for many rows at once.

    A row either lets the variable with the largest positive slope in, or, where the solution on the variables that are
    in would have a negative number, goes as far towards it as it may and takes the variables out that reach zero.

    Args:
        gram: products of the atoms.
        target: products of the atoms with the row.
        allowed: variables that may be positive; None for all.

    Returns:
        coefficients, and which variables are in (the rest are zero).

    Raises:
        FailedCheck: no solution after 10 k rounds (atoms that are copies of each other up to rounding).
    """
    n_rows, k = target.shape
    allowed = torch.ones_like(target, dtype=torch.bool) if allowed is None else allowed
    tolerance = 10 * torch.finfo(target.dtype).eps * target.abs().amax(1, keepdim=True).clamp_min(1e-30) * k
    z, inside = torch.zeros_like(target), torch.zeros_like(allowed)
    settled = torch.ones(n_rows, dtype=torch.bool, device=target.device)
    for _ in range(10 * k + 1):
        slope = target - torch.einsum("bkj,bj->bk", gram, z)
        open_ = allowed & ~inside & (slope > tolerance)
        enters = settled & open_.any(1)
        if bool((settled & ~enters).all()):
            return z, inside
        best = torch.where(open_, slope, -torch.inf).argmax(1, keepdim=True)
        inside = inside | (torch.zeros_like(inside).scatter(1, best, True) & enters[:, None])
        busy = ~settled | enters
        s = _least_squares(gram, target, inside)
        blocks = inside & (s <= 0)
        # How far towards s: until the first of the blocking variables reaches zero.
        share = torch.where(blocks, z / (z - s).clamp_min(1e-300 if z.dtype == torch.float64 else 1e-38), torch.inf)
        step = share.amin(1, keepdim=True).clamp(max=1.0)
        z = torch.where(busy[:, None], z + step * (s - z), z)
        leaves = blocks & (share <= step) & busy[:, None]
        inside = inside & ~leaves
        z = torch.where(inside, z, 0.0)
        settled = ~busy | ~blocks.any(1)
    raise FailedCheck(
        f"non-negative least squares did not settle in {10 * k} rounds: atoms may be copies of each other. Use "
        "solve='pursuit'."
    )
