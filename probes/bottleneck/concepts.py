"""Concept scores: how strongly features point along named directions.

`c = norm(z) T^T` (methods2.md 17.5 step 1), with one row of `T` per concept: the text embedding of a word for a CLIP
model, or any direction that was found elsewhere. Scores are standardised with the mean and deviation of training
images, which belong to the head (:mod:`probes.bottleneck.head`).

Random vocabularies are the reference of every check: a concept set that is no better than them names nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, SplitOverlap, unknown

Rows = Float[np.ndarray, "image d"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Concepts:
    """Named directions in feature space."""

    names: tuple[str, ...]
    """One per concept, all different."""
    directions: Float[np.ndarray, "concept d"]
    """One row per concept, float64."""
    normalise: bool = True
    """Bring features to unit length first, as the cosine with a text needs it."""

    def __post_init__(self):
        object.__setattr__(self, "names", tuple(self.names))
        directions = np.asarray(self.directions, dtype=np.float64)
        if directions.ndim != 2 or not len(directions) or len(directions) != len(self.names):
            raise ShapeMismatch(
                f"{len(self.names)} concept names and directions {list(directions.shape)}: give [concept d], one row "
                "per name, at least one."
            )
        if not np.isfinite(directions).all():
            raise NotFinite("the concept directions hold NaN or Inf.")
        if flat := [name for name, row in zip(self.names, directions, strict=True) if not row.any()]:
            raise BadData(f"the direction of {flat[0]!r} is zero; leave that concept out.")
        if len(set(self.names)) != len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise BadData(f"the concept name {twice!r} repeats.")
        object.__setattr__(self, "directions", directions)

    def __len__(self) -> int:
        return len(self.names)

    def scores(self, features: Rows) -> Float[np.ndarray, "image concept"]:
        """Raw scores of some features.

        Raises:
            ShapeMismatch: features of another width.
            NotFinite: NaN or Inf in them.
            BadData: a feature of length zero, which has no direction.
        """
        features = checked_rows("features", features)
        if features.shape[1] != self.directions.shape[1]:
            raise ShapeMismatch(
                f"the concepts are directions of {self.directions.shape[1]} dimensions, the features have "
                f"{features.shape[1]}. Were they taken at another site?"
            )
        return self.seen(features) @ self.directions.T

    def seen(self, features: Rows) -> Rows:
        """The features as the concepts see them: of unit length if `normalise`."""
        if not self.normalise:
            return features
        length = np.linalg.norm(features, axis=1, keepdims=True)
        if not length.all():
            raise BadData(f"feature {int((length == 0).argmax())} has length zero; it cannot be normalised.")
        return features / length

    def take(self, chosen: Sequence[int] | np.ndarray) -> "Concepts":
        """Some of the concepts, by position, in that order.

        Raises:
            BadData: none is left.
            OutOfRange: a position that is none.
        """
        places = [int(i) for i in chosen]
        if not places:
            raise BadData("no concept is left in this choice.")
        if outside := [i for i in places if not 0 <= i < len(self)]:
            raise OutOfRange(f"concept {outside[0]} does not exist: there are {len(self)}.")
        names = tuple(self.names[i] for i in places)
        return Concepts(names=names, directions=self.directions[places], normalise=self.normalise)

    def index(self, name: str | int) -> int:
        """Position of a concept by name (a position is checked and given back).

        Raises:
            UnknownName, OutOfRange.
        """
        if isinstance(name, str):
            if name not in self.names:
                raise unknown("concept", name, self.names)
            return self.names.index(name)
        if not 0 <= name < len(self):
            raise OutOfRange(f"concept {name} does not exist: there are {len(self)}.")
        return int(name)


def concepts_of_texts(
    clip: Any, words: Sequence[str], templates: Sequence[str] = ("a photo of a {}",), *, batch_size: int = 256
) -> Concepts:
    """Concepts that are texts: unit-length text embeddings of a CLIP model, averaged over templates.

    Args:
        clip: a wrapped model of two towers (`mechvis.load("scenes-clip")`).
        words: one per concept.
        templates: prompts around each word.
        batch_size: prompts that go through the text tower together.

    Raises:
        BadData: no or repeated words.

    Example:
        >>> concepts_of_texts(clip, ["star", "striped background"]).directions.shape      # doctest: +SKIP
        (2, 64)
    """
    directions = clip.prompts(list(words), templates, batch_size=batch_size).detach().double().cpu().numpy()
    return Concepts(names=tuple(words), directions=directions)


def random_concepts(
    n: int,
    d: int | None = None,
    *,
    words: Concepts | None = None,
    orthonormal: bool = False,
    normalise: bool = True,
    seed: int = 0,
) -> Concepts:
    """A random vocabulary: the reference that a concept set must beat.

    Args:
        n: how many.
        d: width of the features, where no `words` are given: then the directions are random, of unit length.
        words: a pool of real words with nothing to do with the task, to draw from without replacement (CLIP's texts
            share a cone, so random words are closer to a real set than random directions are).
        orthonormal: random directions at right angles (n at most d).
        normalise: as in :class:`Concepts`.
        seed: fixes the draw.

    Raises:
        BadData: neither or both of `d` and `words`.
        OutOfRange: more than there are.

    Example:
        >>> random_concepts(3, 8, seed=1).directions.shape
        (3, 8)
    """
    if (d is None) == (words is None):
        raise BadData("a random vocabulary needs d= (random directions) or words= (a pool to draw from), one of both.")
    if n < 1:
        raise OutOfRange(f"n={n}: at least one concept is needed.")
    generator = np.random.default_rng(seed)
    if words is not None:
        if n > len(words):
            raise OutOfRange(f"{n} random words asked for, the pool has {len(words)}.")
        return words.take(generator.choice(len(words), n, replace=False))
    directions = generator.standard_normal((n, d))
    if orthonormal:
        if n > d:
            raise OutOfRange(f"{n} directions at right angles do not fit into {d} dimensions.")
        directions = np.linalg.qr(directions.T)[0].T
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    names = tuple(f"random {i}" for i in range(n))
    return Concepts(names=names, directions=directions, normalise=normalise)


def checked_rows(what: str, rows: Any) -> Rows:
    """Features as float64 `[image d]`.

    Raises:
        ShapeMismatch, NotFinite.
    """
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or not rows.size:
        raise ShapeMismatch(f"{what} are [image d] with at least one of both, got {list(rows.shape)}.")
    if not np.isfinite(rows).all():
        raise NotFinite(f"{what} hold NaN or Inf, the first at row {int((~np.isfinite(rows)).any(1).argmax())}.")
    return rows


def checked_labels(labels: Any, n: int, n_classes: int | None = None) -> np.ndarray:
    """Class indices int64 `[image]`, at least two classes.

    Raises:
        ShapeMismatch: not one whole number per row.
        BadData: one class only, or an index that is none.
    """
    labels = np.asarray(labels)
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise ShapeMismatch(f"labels are one class index for each of {n} images, got {labels.dtype} {labels.shape}.")
    if labels.min() < 0 or (n_classes is not None and labels.max() >= n_classes):
        raise BadData(
            f"labels run from {labels.min()} to {labels.max()}; there are {n_classes or 'no negative'} classes."
        )
    return labels.astype(np.int64)


def refuse_same_images(train: Any, test: Any, what: str) -> None:
    """Raise if two feature sets share an image (by its id, where the images have ids of their own).

    Raises:
        SplitOverlap: says how many and which.
    """
    if train is test:
        raise SplitOverlap(f"{what}: the same features were given twice. Collect features of other images.")
    own = [ids for ids in (train.ids, test.ids) if ids and not ids[0].startswith("image ")]
    shared = sorted(set(own[0]) & set(own[1])) if len(own) == 2 else []
    if shared:
        some = ", ".join(shared[:3]) + (" ..." if len(shared) > 3 else "")
        raise SplitOverlap(f"{what} must not share images: {len(shared)} in both ({some}).")
