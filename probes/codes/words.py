"""A list of words (or any texts) with their directions: the dictionary of sparse text codes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData, ShapeMismatch, unknown
from mechvis.record import finite


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class WordList:
    """Texts and one unit-length direction for each. Made by :meth:`of_texts`, or by :meth:`of_matrix`.

    Example:
        >>> words = WordList.of_matrix(["up", "right"], np.array([[0.0, 2.0], [1.0, 0.0]]))
        >>> words.vectors.tolist(), words.centred().shape
        ([[0.0, 1.0], [1.0, 0.0]], (2, 2))
    """

    names: tuple[str, ...]
    """Different texts."""
    vectors: Float[np.ndarray, "word d"] = field()
    """Unit length, float64."""

    def __post_init__(self):
        if len(set(self.names)) != len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise BadData(f"the word {twice!r} is there twice: its weight would be split at random.")
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.names) or not len(self.names):
            raise ShapeMismatch(f"{len(self.names)} words need vectors [word d], got {list(self.vectors.shape)}.")

    @classmethod
    def of_matrix(cls, names: Sequence[str], vectors: Float[np.ndarray, "word d"]) -> "WordList":
        """Names with given directions, of any length but zero.

        Raises:
            BadData: a name twice.
            ShapeMismatch: not one row per name, or a row of zeros.
            NotFinite: NaN or Inf.
        """
        vectors = finite("the vectors of the words", np.asarray(vectors, dtype=np.float64))
        if vectors.ndim != 2 or len(vectors) != len(names):
            raise ShapeMismatch(f"{len(names)} words need vectors [word d], got {list(vectors.shape)}.")
        return cls(names=tuple(names), vectors=unit(vectors, "word"))

    @classmethod
    def of_texts(cls, clip: Any, texts: Sequence[str], templates: Any = ("{}",)) -> "WordList":
        """Texts through a CLIP's text tower, with prompts around them if asked for.

        Args:
            clip: a `HookedCLIP`.
            texts: different texts.
            templates: prompts with {} for a text; the mean of their unit embeddings counts.

        Raises:
            BadData: no or repeated texts.

        Example:
            >>> words = WordList.of_texts(clip, ["red", "star", "striped"])                    # doctest: +SKIP
        """
        found = clip.prompts(list(texts), templates).detach().cpu().double().numpy()
        return cls.of_matrix(list(texts), found)

    def centred(self) -> Float[np.ndarray, "word d"]:
        """Directions minus their mean, at unit length again.

        Raises:
            BadData: fewer than two words, or a word that is exactly the mean.
        """
        if len(self.names) < 2:
            raise BadData("one word alone has nothing left after its mean is taken off; give more, or do not centre.")
        return unit(self.vectors - self.vectors.mean(0), "centred word")

    def index(self, name: str) -> int:
        """Number of a word.

        Raises:
            UnknownName: not in the list.
        """
        if name not in self.names:
            raise unknown("word", name, self.names)
        return self.names.index(name)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        some = ", ".join(self.names[:5]) + (" ..." if len(self) > 5 else "")
        return f"WordList({len(self)}: {some})"


def unit(rows: Float[np.ndarray, "row d"], what: str = "vector") -> Float[np.ndarray, "row d"]:
    """Rows at unit length.

    Raises:
        ShapeMismatch: a row of zeros; says which.
    """
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    if (lengths == 0).any():
        raise ShapeMismatch(f"{what} {int((lengths == 0).argmax())} is zero: it has no direction.")
    return rows / lengths
