"""Would other images of the class give the same graph? The search, again and again on half of them."""

import itertools
from collections import Counter
from typing import Any

import numpy as np

from circuits.causal_paths.search import Found, Search

UNSTABLE = 0.5
"""Mean overlap of two half-samples below which a graph counts as unstable (methods2.md 22, **X**)."""


def stability(search: Search, halves: int, seed: int) -> dict[str, Any]:
    """Overlap of the units and edges that are found on random halves of the images, before any pruning.

    Args:
        search: on all of them; effects that it has measured are not measured again.
        halves: how many half-samples, at least two.
        seed: of the draws.

    Returns:
        `halves`, `images` (of each), `nodes`, `edges` (mean Jaccard index of two half-samples), `unstable`, and
        `frequency` (share of the halves in which each edge is found).
    """
    generator = np.random.default_rng(seed)
    n = len(search.runs)
    found: list[Found] = []
    for _ in range(halves):
        found.append(search.find(np.sort(generator.permutation(n)[: n // 2])))
    pairs = list(itertools.combinations(found, 2))
    nodes = float(np.mean([jaccard(set(a.nodes), set(b.nodes)) for a, b in pairs]))
    edges = float(np.mean([jaccard(set(a.edges), set(b.edges)) for a, b in pairs]))
    counted = Counter(f"{writer}->{reader}" for one in found for writer, reader in one.edges)
    return {
        "halves": halves,
        "images": n // 2,
        "nodes": nodes,
        "edges": edges,
        "unstable": min(nodes, edges) < UNSTABLE,
        "frequency": {edge: times / halves for edge, times in counted.most_common()},
    }


def jaccard(first: set, second: set) -> float:
    """Overlap of two sets; 1 for two empty ones.

    Example:
        >>> jaccard({1, 2}, {2, 3})
        0.3333333333333333
    """
    either = first | second
    return len(first & second) / len(either) if either else 1.0
