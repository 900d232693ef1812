"""F12 and F13: made-up representations whose concepts are known, for methods that judge concepts (methods2.md 17).

`concept_bag` (F12): every image has four locations of width twelve. At each location each of four orthonormal concepts
is present with probability 1/4, with a little noise on top. The model behind it is linear in the mean location: classes
0 and 1 count concepts 0 and 1 (weight 2), class 2 counts concept 2 (weight 0.7), class 3 is a constant (0.6), so it
wins where neither of the first two concepts is seen often enough. Concept 3 is there and does nothing. So concepts 0
and 1 explain the answers, in equal parts, concept 2 hardly any, and concept 3 none.

`two_attributes` (F13): images in R^16 with two independent attributes, one of three and one of four values, each value
a corner of a regular polygon (radius 2 and 1.4) in a plane of its own, the planes orthogonal, with noise 0.25. A method
that finds compositional concepts must take the planes apart; clusters of the whole space mix the two.

The specification does not say how much noise F12 has, nor how many images; `NOISE` and the sizes here give its numbers.
Both are for what works on activations: no vision transformer is involved.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.errors import BadData

WIDTH, LOCATIONS, CONCEPTS, PRESENT = 12, 4, 4, 0.25
NOISE = 0.06
"""Standard deviation of F12's noise: with it four random vectors, a random basis and the true concepts reach about what
the specification has (.46, .77, .90); without noise all of them reach more."""
BAG_CLASSES = ("concept 0", "concept 1", "concept 2", "none")
BAG_WEIGHTS, BAG_CONSTANT = (2.0, 2.0, 0.7), 0.6

SPACE, CORNERS, RADII, SPREAD = 16, (3, 4), (2.0, 1.4), 0.25


@dataclass(frozen=True, kw_only=True, eq=False)
class ConceptBag:
    """F12: the concepts and the model behind the representation; made by :func:`concept_bag`."""

    concepts: Float[Tensor, "concept d"]
    """Orthonormal rows, float64."""
    noise: float
    """Standard deviation of the noise in every direction."""

    def tail(self, z: Float[Tensor, "image location d"]) -> Float[Tensor, "image class"]:
        """Logits of representations, in their type."""
        weights = self.concepts[:3].to(z) * z.new_tensor(BAG_WEIGHTS)[:, None]
        counted = einsum(z.mean(1), weights, "i d, c d -> i c")
        return torch.cat([counted, counted.new_full((len(z), 1), BAG_CONSTANT)], dim=1)

    def images(self, n: int, seed: int = 0) -> Float[Tensor, "image location d"]:
        """Draw representations.

        Args:
            n: how many images.
            seed: fixes them.

        Raises:
            BadData: fewer than one.
        """
        if n < 1:
            raise BadData(f"n={n}: at least one image.")
        generator = torch.Generator().manual_seed(seed)
        present = torch.rand(n, LOCATIONS, CONCEPTS, generator=generator, dtype=torch.float64) < PRESENT
        noise = torch.randn(n, LOCATIONS, WIDTH, generator=generator, dtype=torch.float64)
        return present.double() @ self.concepts + self.noise * noise


def concept_bag(seed: int = 0, noise: float = NOISE) -> ConceptBag:
    """The fixture F12.

    Args:
        seed: of the concepts' directions.
        noise: standard deviation of the noise in every direction.

    Example:
        >>> bag = concept_bag()
        >>> bag.tail(bag.images(5)).shape
        torch.Size([5, 4])
    """
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    return ConceptBag(concepts=torch.linalg.qr(square).Q[:CONCEPTS], noise=noise)


@dataclass(frozen=True, kw_only=True, eq=False)
class TwoAttributes:
    """F13: representations with two attributes in orthogonal planes."""

    z: Float[np.ndarray, "image d"] = field(repr=False)
    """Representations, float64."""
    first: Int[np.ndarray, " image"] = field(repr=False)
    """Value of the attribute with three values."""
    second: Int[np.ndarray, " image"] = field(repr=False)
    """Value of the attribute with four values, which is the weaker one."""
    planes: tuple[Float[np.ndarray, "d 2"], Float[np.ndarray, "d 2"]] = field(repr=False)
    """Orthonormal columns of the two planes."""
    corners: tuple[Float[np.ndarray, "value d"], Float[np.ndarray, "value d"]] = field(repr=False)
    """The true concept of every value."""

    def overlap(self, rotation: Float[np.ndarray, "d m"], attribute: int) -> float:
        """Share of a subspace (orthonormal columns) that lies in an attribute's plane: 1 inside, 0 orthogonal."""
        return float(np.square(self.planes[attribute].T @ rotation).sum() / rotation.shape[1])


def two_attributes(n: int = 600, seed: int = 0) -> TwoAttributes:
    """The fixture F13.

    Args:
        n: images.
        seed: of the planes, values and noise.

    Raises:
        BadData: fewer than one image.

    Example:
        >>> made = two_attributes(50)
        >>> made.z.shape, round(made.overlap(made.planes[0], 0), 6), round(made.overlap(made.planes[0], 1), 6)
        ((50, 16), 1.0, 0.0)
    """
    if n < 1:
        raise BadData(f"n={n}: at least one image.")
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.normal(size=(SPACE, SPACE)))[0]
    planes = (basis[:, :2], basis[:, 2:4])
    corners = []
    for plane, count, radius in zip(planes, CORNERS, RADII, strict=True):
        angle = 2 * np.pi * np.arange(count) / count
        corners.append(radius * np.stack([np.cos(angle), np.sin(angle)], axis=1) @ plane.T)
    first, second = (generator.integers(0, count, n) for count in CORNERS)
    z = corners[0][first] + corners[1][second] + SPREAD * generator.normal(size=(n, SPACE))
    return TwoAttributes(z=z, first=first, second=second, planes=planes, corners=(corners[0], corners[1]))
