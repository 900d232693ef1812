"""A hierarchy of concepts: a tree, or a graph in which a concept has several parents, with an embedding per concept.

    shapes = Hierarchy.of({"thing": ["round", "angular"], "round": ["circle", "ring"], "angular": ["square", "star"]})
    shapes.children(0), shapes.leaves, shapes.paths(3)
    placed = shapes.placed(embeddings)             # one vector per concept; the root is the origin

The dictionary of a hierarchy is made of *differences*: one atom per edge, a(child) - a(parent). A concept is then the
sum of the atoms on its path, and the sparsest explanation of a leaf is its path. With absolute embeddings as atoms it
would be the leaf alone, and the hierarchy would explain nothing (methods.md 2.6 **N**).

On disk a hierarchy is a folder: `hierarchy.json` (concepts with their parents by name) and `embeddings.safetensors`.
Nothing in it can run code. To write one by hand, give `Hierarchy.of` a JSON object of names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt64

from mechvis import files
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, StoreCorrupt, unknown
from mechvis.record import finite

FORMAT, FORMAT_VERSION, MANIFEST = "mechvis.hierarchy", 1, "hierarchy.json"
MOST_PATHS = 10_000
"""Paths to one concept that are listed; a graph can have very many."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Hierarchy:
    """Concepts with their parents, the root first and every parent before its children."""

    names: tuple[str, ...]
    """Different names."""
    parents: tuple[tuple[int, ...], ...]
    """Parents of each concept; the root alone has none."""
    embeddings: Float[np.ndarray, "concept d"] | None = field(default=None)
    """Relative to the root, which is zero; None: not placed yet."""
    centre: Float[np.ndarray, " d"] | None = field(default=None)
    """Where the root lies: what is taken off a vector before it is explained."""
    placed_by: UInt64[np.ndarray, " image"] | None = field(default=None)
    """Digests of the embeddings that it was placed by, to notice when the same are explained."""

    def __post_init__(self):
        if len(set(self.names)) != len(self.names) or len(self.names) < 2:
            raise BadData("a hierarchy needs at least two concepts of different names.")
        if len(self.parents) != len(self.names):
            raise ShapeMismatch(f"{len(self.names)} concepts, but parents of {len(self.parents)}.")
        for node, above in enumerate(self.parents):
            if bool(above) == (node == 0):
                raise BadData(f"{self.names[node]!r}: the first concept is the root, and only it has no parent.")
            if len(set(above)) != len(above) or any(not 0 <= parent < node for parent in above):
                raise BadData(f"{self.names[node]!r}: parents come before their children, each once; got {above}.")
        if (self.embeddings is None) != (self.centre is None):
            raise BadData("embeddings and centre belong together.")
        if self.embeddings is not None:
            shape = (len(self.names), len(self.centre))
            if self.embeddings.shape != shape:
                raise ShapeMismatch(f"embeddings are {list(self.embeddings.shape)}, expected {list(shape)}.")
            finite("the embeddings of the hierarchy", self.embeddings)

    @classmethod
    def of(cls, children: Mapping[str, Sequence[str]]) -> "Hierarchy":
        """A hierarchy from names: each concept with its children.

        Raises:
            BadData: no single root, a circle, or a concept that is listed twice below one parent.

        Example:
            >>> Hierarchy.of({"shape": ["round", "angular"], "round": ["circle"]}).names
            ('shape', 'round', 'angular', 'circle')
        """
        above: dict[str, list[str]] = {}
        for parent, below in children.items():
            if isinstance(below, str):
                raise BadData(f"the children of {parent!r} are one text ({below!r}); give a list of names.")
            above.setdefault(parent, [])
            for child in below:
                above.setdefault(child, []).append(parent)
        roots = [name for name, parents in above.items() if not parents]
        if len(roots) != 1:
            raise BadData(
                f"a hierarchy has one root, a concept that is nobody's child; here are {len(roots)}"
                f"{': ' + ', '.join(roots[:5]) if roots else ' (a circle)'}."
            )
        place: dict[str, int] = {}
        waiting = list(above)
        while waiting:
            ready = [name for name in waiting if all(parent in place for parent in above[name])]
            if not ready:
                raise BadData(f"the hierarchy runs in a circle through {', '.join(waiting[:5])}.")
            place |= {name: len(place) + i for i, name in enumerate(ready)}
            waiting = [name for name in waiting if name not in place]
        order = list(place)
        return cls(names=tuple(order), parents=tuple(tuple(place[p] for p in above[name]) for name in order))

    # the graph

    def index(self, name: str) -> int:
        """Number of a concept.

        Raises:
            UnknownName: no such concept.
        """
        if name not in self.names:
            raise unknown("concept", name, self.names)
        return self.names.index(name)

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(parent, child) of each edge, by child; the atoms of the dictionary. In a tree, edge `i` leads to `i + 1`."""
        return tuple((parent, child) for child, above in enumerate(self.parents) for parent in above)

    @cached_property
    def _edge(self) -> dict[tuple[int, int], int]:
        return {edge: number for number, edge in enumerate(self.edges)}

    @cached_property
    def below(self) -> tuple[tuple[int, ...], ...]:
        """Edges that leave each concept."""
        found: list[list[int]] = [[] for _ in self.names]
        for edge, (parent, _) in enumerate(self.edges):
            found[parent].append(edge)
        return tuple(map(tuple, found))

    def children(self, node: int) -> tuple[int, ...]:
        """Concepts directly below one."""
        return tuple(self.edges[edge][1] for edge in self.below[node])

    @cached_property
    def leaves(self) -> tuple[int, ...]:
        """Concepts without children."""
        return tuple(node for node, edges in enumerate(self.below) if not edges)

    @cached_property
    def levels(self) -> Int[np.ndarray, " concept"]:
        """Edges of the longest path from the root to each concept."""
        found = np.zeros(len(self.names), int)
        for node, above in enumerate(self.parents[1:], start=1):
            found[node] = 1 + max(found[parent] for parent in above)
        return found

    @property
    def depth(self) -> int:
        """Edges of the longest path."""
        return int(self.levels.max())

    @property
    def is_tree(self) -> bool:
        """Does every concept have one parent?"""
        return all(len(above) == 1 for above in self.parents[1:])

    def paths(self, node: int) -> list[tuple[int, ...]]:
        """All paths from the root to a concept, each as its edges from above; one in a tree.

        Raises:
            OutOfRange: no such concept.
            BadData: more than 10,000 paths.
        """
        if not 0 <= node < len(self.names):
            raise OutOfRange(f"concept {node}: there are 0 to {len(self.names) - 1}.")
        above, waiting = {node}, [node]
        while waiting:
            fresh = set(self.parents[waiting.pop()]) - above
            above |= fresh
            waiting += fresh
        into: dict[int, list[tuple[int, ...]]] = {0: [()]}
        for child in sorted(above - {0}):
            into[child] = [
                (*path, self._edge[parent, child]) for parent in self.parents[child] for path in into[parent]
            ]
            if len(into[child]) > MOST_PATHS:
                raise BadData(f"more than {MOST_PATHS} paths lead to {self.names[child]!r}.")
        return into[node]

    @cached_property
    def _descendants(self) -> tuple[frozenset[int], ...]:
        found: list[frozenset[int]] = [frozenset()] * len(self.names)
        for node in reversed(range(len(self.names))):
            children = self.children(node)
            found[node] = frozenset(children).union(*(found[child] for child in children))
        return tuple(found)

    def descendants(self, node: int) -> frozenset[int]:
        """All concepts below one."""
        return self._descendants[node]

    # embeddings

    def placed(
        self, embeddings: Float[np.ndarray, "concept d"], centre: Float[np.ndarray, " d"] | None = None
    ) -> "Hierarchy":
        """This hierarchy with embeddings, which become relative to the root's (or to a given centre).

        Args:
            embeddings: one row per concept, root included.
            centre: where the root is put; None: its own embedding.

        Raises:
            ShapeMismatch: not one row per concept.
            NotFinite: NaN or Inf.
            BadData: a child that lies where its parent lies.
        """
        embeddings = np.asarray(embeddings, dtype=np.float64)
        if embeddings.ndim != 2 or len(embeddings) != len(self.names):
            raise ShapeMismatch(
                f"{len(self.names)} concepts need embeddings [concept d], got {list(embeddings.shape)}."
            )
        centre = embeddings[0] if centre is None else np.asarray(centre, dtype=np.float64)
        relative = embeddings - centre
        relative[0] = 0.0
        placed = replace(self, embeddings=relative, centre=centre)
        same = np.flatnonzero((placed.differences == 0).all(1))
        if len(same):
            parent, child = (self.names[node] for node in self.edges[int(same[0])])
            raise BadData(
                f"{child!r} has the embedding of its parent {parent!r} ({len(same)} such pairs): the difference has no "
                "direction. An only child placed by images, or words that the text tower does not know?"
            )
        return placed

    @property
    def differences(self) -> Float[np.ndarray, "edge d"]:
        """The dictionary: child minus parent of each edge.

        Raises:
            BadData: no embeddings yet.
        """
        if self.embeddings is None:
            raise BadData("this hierarchy has no embeddings yet: use .placed(...), or place_by_images, place_by_texts.")
        above, child = np.array(self.edges).T
        return self.embeddings[child] - self.embeddings[above]

    # files

    def save(self, folder: str | Path) -> Path:
        """Write the hierarchy into a folder.

        Raises:
            OutputNotWritable: says what and why.
        """
        from safetensors.numpy import save

        known = {"embeddings": self.embeddings, "centre": self.centre, "placed_by": self.placed_by}
        arrays = {name: np.ascontiguousarray(array) for name, array in known.items() if array is not None}
        manifest = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "concepts": [
                {"name": name, "parents": [self.names[parent] for parent in above]}
                for name, above in zip(self.names, self.parents, strict=True)
            ],
        }
        files.write_together(Path(folder), {"embeddings.safetensors": save(arrays)}, MANIFEST, manifest)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Hierarchy":
        """Read what :meth:`save` wrote, verified.

        Raises:
            StoreCorrupt: a file is missing or changed, or is no hierarchy.
            ResultMismatch: another format, or a later version.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        folder = Path(folder)
        check = files.only_format(folder / MANIFEST, FORMAT, FORMAT_VERSION, "a hierarchy")
        manifest = files.read_manifest(folder, MANIFEST, check=check)
        try:
            arrays = load(files.read_together(folder, manifest, "embeddings.safetensors"))
            names = tuple(concept["name"] for concept in manifest["concepts"])
            parents = tuple(tuple(names.index(p) for p in concept["parents"]) for concept in manifest["concepts"])
            return cls(names=names, parents=parents, **arrays)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(f"{folder} does not hold a hierarchy: {error}") from error

    def __repr__(self) -> str:
        kind = "tree" if self.is_tree else "graph"
        placed = "not placed" if self.embeddings is None else f"in {self.embeddings.shape[1]} dimensions"
        return (
            f"Hierarchy({kind} of {len(self.names)} concepts under {self.names[0]!r}, {len(self.leaves)} leaves, depth "
            f"{self.depth}, {placed})"
        )


def digests(rows: Float[np.ndarray, "row d"]) -> UInt64[np.ndarray, " row"]:
    """One number per row that tells it from others (as float32)."""
    small = np.ascontiguousarray(rows, dtype=np.float32)
    return np.array([int.from_bytes(blake2b(row.tobytes(), digest_size=8).digest()) for row in small], np.uint64)
