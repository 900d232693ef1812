"""What a concept explanation says, in numbers: concept vectors and their importance for each class (methods.md 7).

The last-layer setting: a class is explained by unit vectors `v_k` in the space that the head reads, and importances
`alpha_k`. Unit length is required: whoever may stretch a concept vector can hide an importance in it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData, ShapeMismatch
from mechvis.record import finite
from probes.null_space.head import LinearHead

Project = Callable[[Float[np.ndarray, "row d"], Float[np.ndarray, "concept d"]], Float[np.ndarray, "row concept"]]
"""How much of each concept is in a row, in units of the unit vectors: the method's own projection."""


def dot(rows: Float[np.ndarray, "row d"], concepts: Float[np.ndarray, "concept d"]) -> Float[np.ndarray, "row concept"]:
    """Inner products: the projection of methods that have no other."""
    return rows @ concepts.T


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """Concepts and importances of every class."""

    name: str
    """The method, in a word or two."""
    concepts: tuple[Float[np.ndarray, "concept d"], ...]
    """Unit vectors of each class; methods with one dictionary give the same for all."""
    importances: tuple[Float[np.ndarray, " concept"], ...]
    """Importance of each concept for its class, signed."""
    project: Project | tuple[Project, ...] = dot
    """The method's own projection onto its concepts; one for all classes, or one each."""
    offset: Float[np.ndarray, "*class d"] | None = None
    """What the method takes off the embeddings before it projects them (per class; `[d]` for all), as NMF must with
    signed activations. Its constant share of the logits is given to the surrogate, as the bias is."""

    def __post_init__(self):
        if not self.concepts or len(self.concepts) != len(self.importances):
            raise ShapeMismatch(
                f"{self.name!r}: {len(self.concepts)} classes with concepts, {len(self.importances)} with importances."
            )
        concepts, importances = [], []
        for index, (vectors, alpha) in enumerate(zip(self.concepts, self.importances, strict=True)):
            what = f"{self.name!r}, class {index}"
            vectors, alpha = np.asarray(vectors, np.float64), np.asarray(alpha, np.float64)
            finite(f"{what}: concepts", vectors), finite(f"{what}: importances", alpha)
            if vectors.ndim != 2 or 0 in vectors.shape or alpha.shape != vectors.shape[:1]:
                raise ShapeMismatch(
                    f"{what}: concepts are [concept d] with one importance each, got {list(vectors.shape)} and "
                    f"{list(alpha.shape)}."
                )
            length = np.linalg.norm(vectors, axis=1)
            if np.abs(length - 1).max() > 1e-6:
                raise BadData(
                    f"{what}: concept vectors must have length one, these have {length.min():.3g} to "
                    f"{length.max():.3g}. Divide by the length and put it into the importance."
                )
            concepts.append(vectors)
            importances.append(alpha)
        if len({vectors.shape[1] for vectors in concepts}) > 1:
            raise ShapeMismatch(f"{self.name!r}: concepts of different classes live in spaces of different width.")
        object.__setattr__(self, "concepts", tuple(concepts))
        object.__setattr__(self, "importances", tuple(importances))
        if isinstance(self.project, tuple) and len(self.project) != len(concepts):
            raise ShapeMismatch(f"{self.name!r}: {len(self.project)} projections for {len(concepts)} classes.")
        if self.offset is not None:
            offset = np.asarray(self.offset, np.float64)
            offset = np.broadcast_to(offset, (len(concepts), offset.shape[-1])) if offset.ndim == 1 else offset
            if offset.shape != (len(concepts), concepts[0].shape[1]):
                raise ShapeMismatch(f"{self.name!r}: the offset is [d] or [class d], got {list(offset.shape)}.")
            object.__setattr__(self, "offset", finite(f"{self.name!r}: offset", offset))

    @property
    def one_dictionary(self) -> bool:
        """Do all classes share concepts, projection and offset? Then codes are the same for all."""
        same = all(each is self.concepts[0] for each in self.concepts) and not isinstance(self.project, tuple)
        return same and (self.offset is None or bool((self.offset == self.offset[:1]).all()))

    def codes(self, rows: Float[np.ndarray, "row d"], index: int) -> Float[np.ndarray, "row concept"]:
        """How much of each concept of a class is in each row, by the method's own projection.

        Raises:
            ShapeMismatch: the projection gives another shape.
            NotFinite: it gives NaN or Inf.
        """
        concepts = self.concepts[index]
        project = self.project[index] if isinstance(self.project, tuple) else self.project
        found = np.asarray(project(rows if self.offset is None else rows - self.offset[index], concepts), np.float64)
        if found.shape != (len(rows), len(concepts)):
            raise ShapeMismatch(
                f"{self.name!r}: the projection of {len(rows)} rows onto {len(concepts)} concepts has the shape "
                f"{list(found.shape)}."
            )
        return finite(f"the projection of {self.name!r}", found)


def shared(
    name: str,
    concepts: Float[np.ndarray, "concept d"],
    head: LinearHead,
    *,
    project: Project = dot,
    offset: Float[np.ndarray, " d"] | None = None,
) -> Explanation:
    """One dictionary for all classes; a concept's importance for a class is its product with the class weights (**X**).

    Args:
        name: of the method.
        concepts: vectors of any length; they are brought to length one.
        head: whose classes are explained.
        project: the method's own projection onto *unit* vectors.
        offset: taken off the embeddings first.

    Raises:
        BadData: a concept that is zero.
        ShapeMismatch: concepts of another width than the head's.

    Example:
        >>> head = LinearHead(weight=np.eye(2, 3), bias=np.zeros(2))
        >>> shared("axes", np.eye(3), head).importances[1]
        array([0., 1., 0.])
    """
    vectors = unit_rows(name, concepts)
    if vectors.shape[1] != head.weight.shape[1]:
        raise ShapeMismatch(f"{name!r}: concepts of width {vectors.shape[1]}, the head reads {head.weight.shape[1]}.")
    importances = tuple(vectors @ row for row in head.weight)
    return Explanation(
        name=name,
        concepts=(vectors,) * len(head.weight),
        importances=importances,
        project=project,
        offset=offset,
    )


def unit_rows(name: str, concepts: Float[np.ndarray, "concept d"]) -> Float[np.ndarray, "concept d"]:
    """Concept vectors at length one.

    Raises:
        BadData: a vector of zeros.
    """
    vectors = np.asarray(concepts, np.float64)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not (length > 0).all():
        raise BadData(f"{name!r}: concept {int((length[:, 0] == 0).argmax())} is a vector of zeros.")
    return vectors / length
