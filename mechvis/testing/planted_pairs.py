"""PlantedPairs: activations of two models whose shared and exclusive concepts are known, for everything that compares.

1. Concepts are the same list of causes for both models: row r has the codes `codes[r]`, whatever the model.
2. Each model maps every concept to a random direction of its own, in a space of its own width. A concept that only one
   model has is mapped to nothing in the other.
3. A model's row is codes times its atoms, plus noise.

Traps: `weak` shared concepts are written by model a at a fifth of their strength, so that a penalty on norms takes them
for exclusive ones. `shuffled()` pairs rows that have nothing to do with each other: nothing is shared then.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData, unknown

Owner = Literal["shared", "a", "b"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PlantedPairs:
    """Rows of two models, and what they are made of."""

    a: Float[np.ndarray, "row d_a"] = field(repr=False)
    """Activations of model a."""
    b: Float[np.ndarray, "row d_b"] = field(repr=False)
    """Activations of model b on the same rows."""
    codes: Float[np.ndarray, "row concept"] = field(repr=False)
    """How much of each concept is in each row; non-negative, few per row."""
    atoms_a: Float[np.ndarray, "concept d_a"] = field(repr=False)
    """What model a writes per unit of a concept; zero where it does not have it."""
    atoms_b: Float[np.ndarray, "concept d_b"] = field(repr=False)
    """The same for model b."""
    owner: np.ndarray
    """`shared`, `a` or `b`, per concept."""
    weak: np.ndarray
    """Is it a shared concept that model a writes weakly? Per concept."""

    def concepts(self, owner: Owner) -> np.ndarray:
        """Numbers of the concepts of an owner.

        Raises:
            UnknownName: no such owner.
        """
        if owner not in ("shared", "a", "b"):
            raise unknown("owner", owner, ("shared", "a", "b"))
        return np.flatnonzero(self.owner == owner)

    def shuffled(self, seed: int = 0) -> "PlantedPairs":
        """The same rows with model b's in another order: pairs that have nothing in common. `codes` are those of a."""
        order = np.random.default_rng(seed).permutation(len(self.b))
        return PlantedPairs(
            a=self.a,
            b=self.b[order],
            codes=self.codes,
            atoms_a=self.atoms_a,
            atoms_b=self.atoms_b,
            owner=self.owner,
            weak=self.weak,
        )


def planted_pairs(
    n: int = 256,
    *,
    shared: int = 60,
    only_a: int = 10,
    only_b: int = 10,
    weak: int = 0,
    widths: tuple[int, int] = (48, 64),
    active: int = 4,
    strength: float = 0.2,
    noise: float = 0.05,
    seed: int = 0,
    rows_seed: int | None = None,
) -> PlantedPairs:
    """Two models with planted concepts.

    Args:
        n: rows.
        shared: concepts that both models have.
        only_a: concepts of model a alone.
        only_b: concepts of model b alone.
        weak: how many of the shared ones model a writes at `strength` times the size; the last of them.
        widths: of the two models.
        active: concepts per row, uniformly drawn; each with a weight between 0.5 and 1.5.
        strength: of weak concepts.
        noise: expected norm of the Gaussian noise of a row, in units of an atom's norm.
        seed: of the atoms, and of the rows unless they have a seed of their own.
        rows_seed: of the rows: other rows of the same two models.

    Raises:
        BadData: sizes that cannot be.

    Example:
        >>> pairs = planted_pairs(8, shared=5, only_a=2, only_b=1)
        >>> pairs.a.shape, pairs.b.shape, pairs.owner.tolist()
        ((8, 48), (8, 64), ['shared', 'shared', 'shared', 'shared', 'shared', 'a', 'a', 'b'])
    """
    concepts = shared + only_a + only_b
    if min(shared, only_a, only_b) < 0 or not 0 <= weak <= shared or not 1 <= active <= concepts or min(n, *widths) < 1:
        raise BadData(
            f"n={n}, shared={shared}, only_a={only_a}, only_b={only_b}, weak={weak}, active={active}, widths={widths} "
            "cannot be drawn: weak is at most shared, and active at most the number of concepts."
        )
    generator = np.random.default_rng((seed, 0))
    owner = np.array(["shared"] * shared + ["a"] * only_a + ["b"] * only_b)
    is_weak = np.arange(concepts) >= shared - weak
    is_weak &= owner == "shared"
    atoms = {}
    for name, width in zip("ab", widths, strict=True):
        drawn = generator.normal(size=(concepts, width))
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        atoms[name] = drawn * np.isin(owner, ["shared", name])[:, None]
    atoms["a"][is_weak] *= strength
    generator = np.random.default_rng((seed if rows_seed is None else rows_seed, 1))
    codes = np.zeros((n, concepts))
    for row in codes:
        row[generator.choice(concepts, active, replace=False)] = generator.uniform(0.5, 1.5, active)
    made = {
        name: codes @ atoms[name] + noise * generator.normal(size=(n, width)) / np.sqrt(width)
        for name, width in zip("ab", widths, strict=True)
    }
    return PlantedPairs(
        a=made["a"], b=made["b"], codes=codes, atoms_a=atoms["a"], atoms_b=atoms["b"], owner=owner, weak=is_weak
    )
