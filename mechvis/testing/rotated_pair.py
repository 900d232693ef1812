"""F9, RotatedPair: eight rotated coordinates in which a perfect subspace patch can be an illusion (methods2.md 16.4).

The activation `h` has width 8. In hidden coordinates, which a random rotation mixes:

=========  =========================================================================================================
coordinate what it is
=========  =========================================================================================================
`a`, `b`   -1 or 1, independent, half each: the two variables
`dead`     0 on every image, but the next map reads it, three times as strongly as `a` and in its direction
`noise`    four coordinates of Gaussian noise, sd 0.5; nobody reads them
`copy`     equal to `a` on every image; nobody reads it
=========  =========================================================================================================

The next map reads `(a, b, 3 dead)`, and the head names the pair of signs (four classes). So the direction `copy`
follows `a` and does nothing, the direction `dead` does something and never moves, and half-way between them lies a
direction whose interchange changes `a` perfectly (interchange accuracy 1.0) though it contains nothing of `a`: the
planted illusion of Makelov et al. It is no vision transformer: it is for what works on activations.

The specification does not say how large the logits are. Their gain decides how far cross-entropy keeps pulling a
direction that already succeeds, and so how much seeds agree; 3 reproduces the published rows (as many mixtures as
seeds; one direction with the on-manifold penalty).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.errors import BadData, unknown

COORDINATES = ("a", "b", "dead", "noise 0", "noise 1", "noise 2", "noise 3", "copy")
"""The hidden coordinates, in order."""

WIDTH, NOISE, DEAD_WEIGHT, GAIN = len(COORDINATES), 0.5, 3.0, 3.0
CLASS_NAMES = ("a-, b-", "a-, b+", "a+, b-", "a+, b+")


@dataclass(frozen=True, kw_only=True, eq=False)
class RotatedImages:
    """What stands for images here: activations with their variables."""

    h: Float[Tensor, "image width"] = field(repr=False)
    """Activations, float64."""
    a: Int[Tensor, " image"] = field(repr=False)
    """0 where the coordinate is -1, 1 where it is 1."""
    b: Int[Tensor, " image"] = field(repr=False)
    """Likewise."""
    unusual: Bool[Tensor, " image"] = field(repr=False)
    """True where the first noise coordinate is above one standard deviation: images for a second test split."""

    @property
    def labels(self) -> Int[Tensor, " image"]:
        """The right class, an index into `CLASS_NAMES`."""
        return 2 * self.a + self.b

    def __len__(self) -> int:
        return len(self.h)


@dataclass(frozen=True, kw_only=True, eq=False)
class RotatedPair:
    """The model from the activation on; made by :func:`rotated_pair`."""

    rotation: Float[Tensor, "coordinate width"]
    """Row `i` is the direction of coordinate `i` in the activation."""
    read: Float[Tensor, "width out"]
    """The next map: `h @ read` is `(a, b, 3 dead)`."""

    def direction(self, *names: str) -> Float[Tensor, " width"]:
        """Unit vector of a coordinate, or half-way between several.

        Raises:
            UnknownName: no such coordinate.

        Example:
            >>> float(rotated_pair().direction("copy", "dead").norm().round(decimals=6))
            1.0
        """
        for name in names:
            if name not in COORDINATES:
                raise unknown("coordinate", name, COORDINATES)
        total = self.rotation[[COORDINATES.index(name) for name in names]].sum(0)
        return total / total.norm()

    def weights(self, rows: Float[Tensor, "row width"]) -> dict[str, Tensor]:
        """How much of each coordinate is in each row: `[row]` by name."""
        return dict(zip(COORDINATES, (rows @ self.rotation.T).T, strict=True))

    def head(self, out: Float[Tensor, "image out"]) -> Float[Tensor, "image class"]:
        """What the next map gives, to the four logits."""
        signs = out.new_tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]])
        return GAIN * torch.stack([out[:, 0] + out[:, 2], out[:, 1]], dim=1) @ signs.T

    def __call__(self, h: Float[Tensor, "image width"]) -> Float[Tensor, "image class"]:
        """Logits of activations."""
        return self.head(h @ self.read)

    def images(self, n: int, seed: int = 0) -> RotatedImages:
        """Draw activations.

        Args:
            n: how many.
            seed: fixes them.

        Raises:
            BadData: fewer than one.
        """
        if n < 1:
            raise BadData(f"n={n}: at least one image.")
        generator = torch.Generator().manual_seed(seed)
        a, b = torch.randint(0, 2, (2, n), generator=generator)
        noise = torch.randn(n, 4, generator=generator, dtype=torch.float64)
        hidden = torch.zeros(n, WIDTH, dtype=torch.float64)
        hidden[:, 0], hidden[:, 1], hidden[:, 3:7], hidden[:, 7] = 2 * a - 1, 2 * b - 1, NOISE * noise, 2 * a - 1
        return RotatedImages(h=hidden @ self.rotation, a=a, b=b, unusual=noise[:, 0] > 1)

    @property
    def answer(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The right class for given values of `a` and `b`."""
        return lambda a, b: 2 * a + b


def rotated_pair(seed: int = 0) -> RotatedPair:
    """The fixture F9.

    Args:
        seed: of the rotation.

    Example:
        >>> pair = rotated_pair()
        >>> images = pair.images(100)
        >>> bool((pair(images.h).argmax(1) == images.labels).all())
        True
    """
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(square).Q
    weights = torch.zeros(WIDTH, 3, dtype=torch.float64)
    weights[0, 0], weights[1, 1], weights[2, 2] = 1.0, 1.0, DEAD_WEIGHT
    return RotatedPair(rotation=rotation, read=rotation.T @ weights)
