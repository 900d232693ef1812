"""Circuit shift score: how far a model's circuit moves between two sets of images (Inside-Out; methods.md 4.3)

    CSS = d( c on the reference images, c on the others )          the same model, no labels              (**C**)

With few images most of a CSS is sampling noise. So it comes with the noise floor of :mod:`circuits.comparison.floor`,
and what is tested against the floor is `matched`: the mean distance at the floor's number of images.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from circuits.comparison.distances import Distance, distance
from circuits.comparison.floor import Weigh, noise_floor, p_value, shifts
from circuits.comparison.scores import edge_scores
from circuits.edges.graph import EdgeGraph
from mechvis.errors import ResultMismatch

PERCENTILE = 0.99
"""Of the noise floor, which an alarm must exceed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CircuitShift:
    """One circuit shift score beside its noise floor."""

    value: float
    """CSS of all images against all images."""
    matched: float
    """Mean distance at n images a side: what the floor is to be compared with."""
    low: float
    """2.5th percentile of the matched distances over the draws."""
    high: float
    """97.5th percentile."""
    n: int
    """Images on each side of a draw."""
    p: float
    """Share of floors that reach `matched`; see :func:`circuits.comparison.floor.p_value`."""
    floor: Float[np.ndarray, " draw"] = field(repr=False)
    """Distances between disjoint halves of the reference set."""
    draws: Float[np.ndarray, " draw"] = field(repr=False)
    """Matched distances."""
    distance: str
    """Name of the distance."""

    @property
    def floor_mean(self) -> float:
        """Mean of the floor."""
        return float(self.floor.mean())

    @property
    def limit(self) -> float:
        """99th percentile of the floor."""
        return float(np.quantile(self.floor, PERCENTILE))

    @property
    def above_floor(self) -> bool:
        """Is the shift beyond the 99th percentile of what the reference set shows of itself?"""
        return self.matched > self.limit

    def __str__(self) -> str:
        return (
            f"CSS = {self.value:.3f} ({self.distance}); at n = {self.n}: {self.matched:.3f} [{self.low:.3f}, "
            f"{self.high:.3f}], noise floor {self.floor_mean:.3f} (99 %: {self.limit:.3f}), p = {self.p:.3g}"
        )


def css(
    reference: Any,
    other: Any,
    *,
    graph: EdgeGraph | None = None,
    kind: Distance = "spearman",
    top_mass: float = 0.95,
    window: int | None = None,
    draws: int = 200,
    metric: str | None = None,
    seed: int = 0,
) -> CircuitShift:
    """Circuit shift between two sets of images, from edge scores that were measured already.

    Args:
        reference: per-image scores on the reference images: a `Result` of `circuits.comparison.data_graph` or of
            `circuits.eap`, or `[edge image]`.
        other: the same on the other images.
        graph: the architecture, for scores as arrays.
        kind: distance, see :mod:`circuits.comparison.distances`.
        top_mass: share of the mass that the compared edges carry; 1 for all edges.
        window: images a side in the draws; default: as many as the other set has, at most half of the reference set.
        draws: of the noise floor, at least 20.
        metric: which metric of results.
        seed: of the draws.

    Raises:
        ResultMismatch: two architectures.
        BadData: scores of single images are missing, or there are too few of them.
        UnknownName, OutOfRange, ShapeMismatch, NotFinite.

    Example:
        >>> known, new = (circuits.comparison.data_graph(model, images) for images in (home, monday))  # doctest: +SKIP
        >>> print(circuits.comparison.css(known, new))                                             # doctest: +SKIP
    """
    first, second = edge_scores(reference, graph, metric), edge_scores(other, graph, metric)
    if first.graph != second.graph:
        raise ResultMismatch(f"the scores are of two architectures: {first.graph!r} and {second.graph!r}.")
    n = window or min(len(second), len(first) // 2)
    settings = {"kind": kind, "top_mass": top_mass}
    floor, firsts = noise_floor(first.of, len(first), n, draws=draws, seed=seed, **settings)
    return shift_of(first.weights, second.weights, second.of, len(second), floor, firsts, n, seed=seed, **settings)


def shift_of(
    reference: np.ndarray,
    other: np.ndarray,
    weigh: Weigh | Callable,
    n_images: int,
    floor: np.ndarray,
    firsts: list[np.ndarray],
    n: int,
    *,
    kind: Distance,
    top_mass: float,
    seed: int,
) -> CircuitShift:
    """The score, given the floor of a reference set; arguments as in :mod:`circuits.comparison.floor`."""
    found = shifts(weigh, n_images, n, firsts, kind=kind, top_mass=top_mass, seed=seed)
    low, high = np.quantile(found, [0.025, 0.975])
    return CircuitShift(
        value=distance(reference, other, kind, top_mass=top_mass),
        matched=float(found.mean()),
        low=float(low),
        high=float(high),
        n=n,
        p=p_value(float(found.mean()), floor),
        floor=floor,
        draws=found,
        distance=kind,
    )
