"""The part of an activation space that the rest of the model reads (methods2.md 16.3).

* The hook is followed by a linear map `W` (a head's z by its output matrix, an MLP's neurons by its second matrix):
  the row space is spanned by `W`'s directions, exactly; the null space is what it cannot see.
* No linear map follows, or it sees everything: the *effective* row space (X), the right-singular vectors that hold 99 %
  of the energy of the stacked Jacobians of what the next readers take in, over up to 256 images. Directions outside it
  are not unread, only read weakly: the split becomes a matter of degree.

The Jacobians are not stacked but their Gram matrix J^T J is summed, from products v^T J. With v running over all
outputs it is exact; where there are too many outputs, v are vectors of random signs, whose expectation is the same.

The row space is a diagnostic, never a verdict: a right direction is rarely exactly inside it.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.subspace.tail import Tail
from mechvis.errors import BadData, OutOfRange

ENERGY = 0.99
"""Share of the Jacobians' energy that the effective row space holds."""
EXACT = 256
"""Outputs per image up to which the Jacobians are exact."""
SAMPLES_PER_DIMENSION = 10
"""Random products per dimension of the hook, above that."""
_BATCH = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class RowSpace:
    """An orthonormal basis of what is read."""

    basis: Float[Tensor, "rank width"] = field(repr=False)
    """Orthonormal rows."""
    how: str
    """Where it comes from, in words."""
    exact: bool
    """True for a linear read: what lies outside is not read at all."""

    @property
    def rank(self) -> int:
        """Its dimension."""
        return len(self.basis)

    @property
    def everything(self) -> bool:
        """It is the whole space: then it tells nothing apart."""
        return self.rank == self.basis.shape[1]

    def project(self, rows: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """The part that is read."""
        return (rows @ self.basis.T) @ self.basis


def linear_row_space(read: Float[Tensor, "width out"], *, tolerance: float = 1e-6) -> RowSpace:
    """Row space of a linear read.

    Args:
        read: the map, acting as `h @ read`.
        tolerance: singular values below this share of the largest count as zero.

    Raises:
        BadData: the map is zero: nothing is read.

    Example:
        >>> linear_row_space(torch.eye(3)[:, :2]).rank
        2
    """
    left, sizes, _ = torch.linalg.svd(read.double(), full_matrices=False)
    if not len(sizes) or sizes[0] == 0:
        raise BadData("the linear map behind the hook is zero: nothing of the hook is read.")
    basis = left.T[sizes > tolerance * sizes[0]].to(read.dtype)
    return RowSpace(basis=basis, how=f"linear read, rank {len(basis)} of {len(read)}", exact=True)


def effective_row_space(
    tail: Tail, images: Int[Tensor, " image"], *, n: int = 256, energy: float = ENERGY, seed: int = 0
) -> RowSpace:
    """The directions of the hook that move what the next readers take in.

    Args:
        tail: with `reads_of`.
        images: positions of images to average over; the first `n` are taken.
        n: how many at most.
        energy: share of the summed squared Jacobians to hold.
        seed: of the random products.

    Raises:
        BadData: the tail does not say what is read, or nothing is.
        OutOfRange: energy outside (0, 1].
    """
    if not 0 < energy <= 1:
        raise OutOfRange(f"energy={energy}: a share above 0 and at most 1.")
    images = images[:n]
    gram, exact = jacobian_gram(tail, images, seed=seed)
    values, vectors = torch.linalg.eigh(gram)
    values = values.flip(0).clamp(min=0)
    if not values[0] > 0:
        raise BadData(f"nothing that comes after {tail.name} moves with it: the Jacobians are zero.")
    share = values.cumsum(0) / values.sum()
    rank = min(int((share < energy - 1e-12).sum()) + 1, len(values))
    how = f"effective: {energy:.0%} of the energy of {'' if exact else 'sampled '}Jacobians over {len(images)} images"
    basis = vectors.T.flip(0)[:rank].to(tail.h.dtype)
    return RowSpace(basis=basis, how=f"{how}, rank {rank} of {tail.width}", exact=False)


def jacobian_gram(
    tail: Tail, images: Int[Tensor, " image"], *, seed: int = 0, limit: int = EXACT
) -> tuple[Float[Tensor, "width width"], bool]:
    """Mean over images of J^T J, J the Jacobian of what is read with respect to the hook.

    Args:
        tail: with `reads_of`.
        images: positions of the images.
        seed: of the random products.
        limit: outputs per image up to which it is exact.

    Returns:
        The matrix, float64, and whether it is exact.

    Raises:
        BadData: the tail does not say what is read.
    """
    if tail.reads_of is None:
        raise BadData(f"{tail.name} does not say what is read behind it (reads_of); no effective row space without.")
    tail.check()
    generator = torch.Generator().manual_seed(seed)
    gram = torch.zeros(tail.width, tail.width, dtype=torch.float64, device=tail.h.device)
    exact, probes = True, 1
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH]
        with torch.enable_grad():
            h = tail.h[part].clone().requires_grad_(True)
            out = tail.reads_of(h, part).flatten(1)
            outputs = out.shape[1]
            exact = outputs <= limit
            probes = outputs if exact else max(1, math.ceil(SAMPLES_PER_DIMENSION * tail.width / len(images)))
            for probe in range(probes):
                if exact:
                    vector = torch.zeros_like(out)
                    vector[:, probe] = 1
                else:
                    vector = (torch.randint(0, 2, out.shape, generator=generator) * 2 - 1).to(out)
                (row,) = torch.autograd.grad(out, h, vector, retain_graph=probe + 1 < probes)
                gram += row.double().T @ row.double()
    return gram / (len(images) * (1 if exact else probes)), exact


def row_space_of(tail: Tail, images: Int[Tensor, " image"], *, seed: int = 0) -> RowSpace | None:
    """The row space that fits the hook: of its linear read where that leaves something out, else the effective one.

    Returns:
        None if the tail says nothing about what is read.
    """
    if tail.read is not None:
        found = linear_row_space(tail.read)
        if not found.everything or tail.reads_of is None:
            return found
    return None if tail.reads_of is None else effective_row_space(tail, images, seed=seed)
