"""Concept vectors: directions in feature space that lead towards a concept, with how far it goes.

A linear support vector machine tells images with the concept from images without it. The vector is its normal, of unit
length, and the *margin* is the largest signed distance of an image with the concept from the boundary: a step of
`margin * v` makes the strongest case of it (DISC after conceptual counterfactuals, methods2.md 17.8 **C**).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData, OutOfRange, ShapeMismatch


@dataclass(frozen=True, kw_only=True, eq=False)
class Vectors:
    """Named unit directions with margins."""

    names: tuple[str, ...]
    """One per concept."""
    directions: Float[np.ndarray, "concept d"]
    """Unit length."""
    margins: Float[np.ndarray, " concept"]
    """Largest distance of an image with the concept from the boundary, in the unit of the features."""
    accuracy: Float[np.ndarray, " concept"]
    """Share of the training examples on the right side; NaN for directions that were not fitted."""

    def __post_init__(self):
        n = len(self.names)
        if self.directions.ndim != 2 or len(self.directions) != n or self.margins.shape != (n,) or not n:
            raise ShapeMismatch(
                f"{n} concept names, directions {list(self.directions.shape)}, margins {list(self.margins.shape)}."
            )
        length = np.linalg.norm(self.directions, axis=1)
        if not np.allclose(length, 1.0, atol=1e-6):
            raise BadData(
                f"concept directions have unit length; that of {self.names[int(np.abs(length - 1).argmax())]!r} "
                f"has {length[int(np.abs(length - 1).argmax())]:.3g}."
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def scaled(self) -> Float[np.ndarray, "concept d"]:
        """Directions times margins."""
        return self.directions * self.margins[:, None]


def concept_vectors(
    features: Float[np.ndarray, "image d"],
    truth: Mapping[str, np.ndarray],
    *,
    c: float = 0.01,
    fewest: int = 10,
) -> Vectors:
    """One vector per concept by a linear support vector machine, classes weighted equally.

    Args:
        features: of the images of the concept bank `[image d]`.
        truth: name -> bool `[image]`, whether the image shows the concept.
        c: the machine's C, on standardised features (**X**).
        fewest: images with and without the concept that are needed.

    Raises:
        BadData: too few images with or without a concept.
        ShapeMismatch: truth that does not fit.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((100, 3))
        >>> np.abs(concept_vectors(x, {"first": x[:, 0] > 0}).directions[0]).argmax()
        np.int64(0)
    """
    from sklearn.svm import LinearSVC

    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or not features.size or not np.isfinite(features).all():
        raise ShapeMismatch(f"features are finite [image d], got {list(features.shape)}.")
    if not truth:
        raise BadData("no concept given: truth maps names to bool arrays, one entry per image.")
    scale = features.std(0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    directions, margins, accuracy = [], [], []
    for name, has in truth.items():
        has = np.asarray(has)
        if has.shape != (len(features),) or has.dtype != bool:
            raise ShapeMismatch(f"the truth of {name!r} is bool [{len(features)}], got {has.dtype} {list(has.shape)}.")
        if min(has.sum(), (~has).sum()) < fewest:
            raise BadData(f"{has.sum()} images show {name!r} and {(~has).sum()} do not; at least {fewest} of each.")
        machine = LinearSVC(C=c, class_weight="balanced", dual=False, tol=1e-4, max_iter=2000, random_state=0)
        machine.fit(features / scale, has)
        normal = machine.coef_[0] / scale
        length = np.linalg.norm(normal)
        distance = (features @ normal + machine.intercept_[0]) / length
        directions.append(normal / length)
        margins.append(distance[has].max())
        accuracy.append(float(((distance > 0) == has).mean()))
    return Vectors(
        names=tuple(truth), directions=np.stack(directions), margins=np.array(margins), accuracy=np.array(accuracy)
    )


def random_vectors(like: Vectors, *, seed: int = 0) -> Vectors:
    """As many random directions with the same margins: the control.

    Example:
        >>> real = Vectors(names=("a",), directions=np.eye(1, 3), margins=np.ones(1), accuracy=np.ones(1))
        >>> random_vectors(real).names
        ('random 0',)
    """
    drawn = np.random.default_rng(seed).standard_normal(like.directions.shape)
    return Vectors(
        names=tuple(f"random {i}" for i in range(len(like))),
        directions=drawn / np.linalg.norm(drawn, axis=1, keepdims=True),
        margins=like.margins,
        accuracy=np.full(len(like), np.nan),
    )


def given_vectors(names: Sequence[str], directions: np.ndarray, margins: np.ndarray | float = 1.0) -> Vectors:
    """Vectors that are known.

    Raises:
        OutOfRange: a direction of length zero.
    """
    directions = np.asarray(directions, dtype=np.float64)
    length = np.linalg.norm(directions, axis=-1, keepdims=True)
    if not length.all():
        raise OutOfRange("a concept direction has length zero.")
    margins = np.broadcast_to(np.asarray(margins, dtype=np.float64), len(directions)).copy()
    return Vectors(
        names=tuple(names), directions=directions / length, margins=margins, accuracy=np.full(len(directions), np.nan)
    )
