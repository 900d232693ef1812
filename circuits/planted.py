"""Does a way to find circuits find a known one? Ways by name, run on the wired cue-lookup model.

Every edge of that model is known (`mechvis.testing.planted`): a few carry the answer when everything differs between
the two images of a pair, all others are loud and inert, and softmax is saturated, so that a gradient at the clean image
alone misses edges.
"""

from collections.abc import Callable
from typing import Any

from circuits.attribution.eap import eap
from circuits.edge_patching import patch_edges
from circuits.evaluation.grades import edge_grades
from circuits.evaluation.recovery import Recovery, recovery
from circuits.pairs.pairs import Pairs
from circuits.search.acdc import acdc
from circuits.task import Task, task
from mechvis.errors import unknown

METHODS: dict[str, Callable[[Task, int], Any]] = {
    **{
        name: (lambda given, seed, name=name: eap(given, method=name, verify=0, seed=seed, progress=False))
        for name in ("eap", "ig", "ig_activations", "clean_corrupt")
    },
    "acdc": lambda given, seed: acdc(given, 0.01, progress=False),
    "exact": lambda given, seed: patch_edges(given, progress=False),
}
"""Name -> scores of the edges of a task."""


def recover(name: str, *, n: int = 8, seed: int = 0) -> Recovery:
    """AUROC and average precision of a method's scores for the edges of cue-lookup.

    Args:
        name: one of `METHODS`.
        n: pairs of images.
        seed: of the pairs.

    Raises:
        UnknownName: no such method.

    Example:
        >>> recover("ig").auroc                                                                    # doctest: +SKIP
        1.0
    """
    from mechvis.testing.planted import cue_active, cue_lookup, cue_pairs

    if name not in METHODS:
        raise unknown("way to find circuits", name, METHODS)
    drawn = cue_pairs("all", n, seed=seed)
    pairs = Pairs(
        name=drawn.name,
        clean=drawn.clean,
        corrupt=drawn.corrupt,
        ids=tuple(f"{drawn.name} {i}" for i in range(len(drawn))),
        clean_labels=drawn.clean_labels,
        corrupt_labels=drawn.corrupt_labels,
    )
    given = task(cue_lookup(), pairs)
    return recovery(METHODS[name](given, seed), edge_grades(given.graph, cue_active("all")), graph=given.graph)


def method_of(provenance: Any) -> str:
    """The name of the method that a circuit's provenance tells of; empty if it tells of none that is known.

    Example:
        >>> method_of({"attribution": {"method": "ig"}})
        'ig'
    """
    attribution = provenance.get("attribution") or {}
    if attribution.get("method") in METHODS:
        return str(attribution["method"])
    if "acdc" in provenance:
        return "acdc"
    return "exact" if provenance.get("kind") == "edge_patching" else ""
