"""A neuron's direction as a sparse sum of words.

1. Dictionary: text embeddings, mean removed, each divided by its own length (**X**; the released script divides every
   *dimension* by its norm over the texts, which looks like a slip: `normalise="dimension"` does that).
2. Orthogonal matching pursuit: take the atom that fits the rest best, fit all chosen atoms again, until `atoms` are
   chosen or nothing is left (**C**: 128 atoms of about 30,000 common words).
3. Judge the sum `rec` as a direction: `(dev . rec) rec / |rec|^2` (**X**; the released evaluation leaves the division
   out).

Words are what the direction is near to, not what the neuron is for: a random direction gets words too, and its fit is
the number to compare with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.record import finite
from probes.codes.pursuit import omp

ATOMS = 128


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseText:
    """A direction written as words."""

    words: tuple[str, ...]
    """In the order in which they were chosen."""
    weights: Float[np.ndarray, " word"]
    """Their weights, all fitted together; a negative one speaks against the word."""
    reconstruction: Float[np.ndarray, " d_out"]
    """The weighted sum of their atoms."""
    cosine: float
    """Cosine of the sum with the direction."""

    def top(self, k: int = 3) -> list[str]:
        """The k words of largest absolute weight, `-` in front of negative ones."""
        order = np.argsort(-np.abs(self.weights))[:k]
        return [("-" if self.weights[i] < 0 else "") + self.words[i] for i in order]


def dictionary(
    texts: Float[np.ndarray, "word d_out"], *, normalise: Literal["atom", "dimension"] = "atom"
) -> Float[np.ndarray, "word d_out"]:
    """Atoms of a word list: embeddings without their mean, of unit length.

    Raises:
        BadData: fewer than two words, or a word that is the mean of all.
        NotFinite: NaN or Inf.
    """
    if normalise not in ("atom", "dimension"):
        raise unknown("normalisation", normalise, ("atom", "dimension"))
    texts = np.asarray(texts, dtype=np.float64)
    if texts.ndim != 2 or len(texts) < 2:
        raise BadData(f"a dictionary needs embeddings [word d_out] of two words or more, got {list(texts.shape)}.")
    centred = finite("the text embeddings", texts) - texts.mean(0)
    lengths = np.linalg.norm(centred, axis=1 if normalise == "atom" else 0, keepdims=True)
    if (lengths <= 1e-12).any():
        raise BadData(f"text {int((lengths <= 1e-12).argmax())} has no length of its own: it equals the mean of all.")
    return centred / lengths


def in_words(
    directions: Float[np.ndarray, "neuron d_out"],
    texts: Float[np.ndarray, "word d_out"],
    words: Sequence[str],
    *,
    atoms: int = ATOMS,
    normalise: Literal["atom", "dimension"] = "atom",
) -> list[SparseText]:
    """Directions as sparse sums of words.

    Args:
        directions: e.g. `rank_one(...).direction`; a row of zeros gets no words.
        texts: embeddings of the words in the same space as the directions (CLIP's joint space).
        words: one per text.
        atoms: words per direction, at most (**C**: 128; the script's own default is 32).
        normalise: see the module.

    Raises:
        ShapeMismatch: another number of words than texts, or another space.
        OutOfRange: atoms below 1.

    Example:
        >>> directions, texts = np.eye(4)[:1], np.concatenate([np.eye(4), -np.eye(4)])
        >>> in_words(directions, texts, list("abcdefgh"), atoms=1)[0].words
        ('a',)
    """
    directions = finite("the directions", np.asarray(directions, dtype=np.float64))
    if atoms < 1:
        raise OutOfRange(f"atoms={atoms}: give at least 1.")
    if len(words) != len(texts):
        raise ShapeMismatch(f"{len(texts)} text embeddings and {len(words)} words.")
    made = dictionary(texts, normalise=normalise)
    if directions.ndim != 2 or directions.shape[1] != made.shape[1]:
        raise ShapeMismatch(
            f"directions {list(directions.shape)} and texts {list(made.shape)} are in different spaces. Take effects "
            "on the embedding (of='embedding'), where texts live."
        )
    chosen = omp(directions, made, min(atoms, len(made)))
    found = []
    for direction, places, coefficients in zip(directions, chosen.support, chosen.coefficients, strict=True):
        index, weights = places[places >= 0], coefficients[places >= 0]
        total = weights @ made[index] if len(index) else np.zeros_like(direction)
        length = np.linalg.norm(total) * np.linalg.norm(direction)
        found.append(
            SparseText(
                words=tuple(words[i] for i in index),
                weights=weights,
                reconstruction=total,
                cosine=float(total @ direction / length) if length else 0.0,
            )
        )
    return found


def along(
    deviations: Float[np.ndarray, "image d_out"], direction: Float[np.ndarray, " d_out"], *, divide: bool = True
) -> Float[np.ndarray, "image d_out"]:
    """The part of deviations along a direction of any length.

    Args:
        divide: by |direction|^2 (**X**); False gives the released evaluation, which is off by that factor.

    Raises:
        BadData: a direction without length.
    """
    length = float(direction @ direction)
    if length == 0:
        raise BadData("the direction is zero: nothing lies along it.")
    return (deviations @ direction)[:, None] * direction / (length if divide else 1.0)
