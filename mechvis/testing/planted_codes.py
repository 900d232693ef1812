"""F5 HierDict and F6 PlantedDict: embeddings whose codes are known, for everything that explains vectors by concepts.

F5 is a tree of concepts. Every node is its parent plus a difference that is orthogonal to the parent and shorter with
depth, so a leaf is the sum of the differences on its path, and the right explanation of `leaf + noise` is that path.

F6 is a dictionary: vectors are sparse non-negative combinations of known concepts plus noise. With a gap, concepts are
seen through two modalities, as in CLIP: texts and images each lie in a narrow cone around a mean of their own, and the
two means have nothing to do with each other. The concepts are in what is left when each mean is taken off.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from mechvis.errors import BadData

_NOISE = 1
"""Part of the seed of noise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HierDict:
    """F5: a tree with its embeddings. Node 0 is the root, at the origin; parents come before their children."""

    parents: Int[np.ndarray, " node"] = field(repr=False)
    """Parent of each node; -1 for the root."""
    embeddings: Float[np.ndarray, "node d"] = field(repr=False)
    """Embedding of each node."""
    depth: int
    """Levels below the root."""

    @property
    def leaves(self) -> Int[np.ndarray, " leaf"]:
        """The nodes without children."""
        return np.setdiff1d(np.arange(len(self.parents)), self.parents)

    def path(self, node: int) -> tuple[int, ...]:
        """The nodes from below the root down to a node, which is the last."""
        found = []
        while node != 0:
            found.append(int(node))
            node = int(self.parents[node])
        return tuple(reversed(found))

    def noisy(self, nodes: np.ndarray, noise: float, seed: int = 0) -> Float[np.ndarray, "row d"]:
        """Embeddings of nodes plus Gaussian noise whose expected norm is `noise` times each embedding's norm."""
        clean = self.embeddings[nodes]
        # Another stream than that of the tree: from the same numbers the noise would be made of the tree's own atoms.
        generator = np.random.default_rng((_NOISE, seed))
        drawn = generator.normal(size=clean.shape) / np.sqrt(clean.shape[1])
        return clean + noise * np.linalg.norm(clean, axis=1, keepdims=True) * drawn


def hier_dict(*, branching: int = 3, depth: int = 7, width: int = 50, decay: float = 0.75, seed: int = 0) -> HierDict:
    """F5.

    Args:
        branching: children of each node above the leaves.
        depth: levels below the root.
        width: of the embeddings.
        decay: the difference of a node at level `l` has the norm `decay ** (l - 1)`.
        seed: of the differences.

    Raises:
        BadData: a size below one.

    Example:
        >>> tree = hier_dict(depth=2)
        >>> len(tree.parents), len(tree.leaves), tree.path(12)
        (13, 9, (3, 12))
    """
    if min(branching, depth) < 1 or width < 2 or decay <= 0:
        raise BadData(f"branching={branching}, depth={depth}, width={width}, decay={decay}: a tree needs more.")
    generator = np.random.default_rng(seed)
    parents, embeddings, level = [-1], [np.zeros(width)], [0]
    for number in range(depth):
        below = []
        for parent in level:
            for _ in range(branching):
                difference = generator.normal(size=width)
                base = embeddings[parent]
                if base.any():
                    difference -= base * (difference @ base) / (base @ base)
                difference *= decay**number / np.linalg.norm(difference)
                below.append(len(parents))
                parents.append(parent)
                embeddings.append(base + difference)
        level = below
    return HierDict(parents=np.array(parents), embeddings=np.stack(embeddings), depth=depth)


@dataclass(frozen=True, kw_only=True, eq=False)
class PlantedDict:
    """F6: a dictionary, codes, and the vectors that they make."""

    concepts: Float[np.ndarray, "concept d"] = field(repr=False)
    """Unit-length directions."""
    codes: Float[np.ndarray, "row concept"] = field(repr=False)
    """Non-negative, few per row."""
    vectors: Float[np.ndarray, "row d"] = field(repr=False)
    """What is to be explained: codes times concepts plus noise; with a gap, unit length around the images' mean."""
    texts: Float[np.ndarray, "concept d"] = field(repr=False)
    """The dictionary as it is seen: the concepts themselves; with a gap, unit length around the texts' mean."""
    others: Float[np.ndarray, "row d"] = field(repr=False)
    """As many more vectors with other codes: a reference to take the mean from."""


def planted_dict(
    n: int = 64,
    *,
    concepts: int = 400,
    width: int = 256,
    active: int = 4,
    noise: float = 0.05,
    gap: float = 0.0,
    equal: bool = True,
    seed: int = 0,
) -> PlantedDict:
    """F6.

    Args:
        n: vectors.
        concepts: size of the dictionary.
        width: of the vectors.
        active: concepts per vector.
        noise: expected norm of the Gaussian noise, where a vector without noise has norm one.
        gap: norm of the mean that each modality adds to its unit-length vectors, in random directions; at 3, two
            random texts have a cosine of 0.9, and so have two images.
        equal: all weights of a vector are equal; else uniform between 0.5 and 1.5 before scaling.
        seed: of everything.

    Raises:
        BadData: more active concepts than there are, or a size below one.

    Example:
        >>> planted = planted_dict(8, concepts=20, width=16, active=3)
        >>> (planted.codes > 0).sum(1).tolist()
        [3, 3, 3, 3, 3, 3, 3, 3]
    """
    if not 1 <= active <= concepts or min(n, width) < 1:
        raise BadData(f"n={n}, width={width}, active={active} of {concepts} concepts cannot be drawn.")
    generator = np.random.default_rng(seed)
    directions = _unit(generator.normal(size=(concepts, width)))
    codes = np.zeros((2 * n, concepts))
    for row in codes:
        chosen = generator.choice(concepts, active, replace=False)
        row[chosen] = 1.0 if equal else generator.uniform(0.5, 1.5, active)
    mixed = codes @ directions
    length = np.linalg.norm(mixed, axis=1, keepdims=True)
    codes, mixed = codes / length, mixed / length
    mixed = mixed + noise * generator.normal(size=mixed.shape) / np.sqrt(width)
    texts = directions
    if gap:
        of_texts, of_images = _unit(generator.normal(size=(2, width))) * gap
        texts, mixed = _unit(directions + of_texts), _unit(mixed + of_images)
    return PlantedDict(concepts=directions, codes=codes[:n], vectors=mixed[:n], texts=texts, others=mixed[n:])


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
