"""Would other images have given the same circuit? A finder's answers on two disjoint halves, compared.

Per split: the Jaccard index of the two sets of edges beside that of two random sets of the same sizes, the rank
correlation of the two sets of scores, and what each half's circuit is worth on the other half's images: two circuits
can share few edges and still do the same. The spread over several splits is shown, not a confidence interval: splits of
the same images are not independent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from circuits.circuit import Circuit, scores_of
from circuits.evaluation.faithfulness import known
from circuits.evaluation.measured import check, measured
from circuits.search.select import select
from circuits.task import Task
from mechvis.errors import BadData, OutOfRange

Finder = Callable[[Task], Any]
"""Gives a `Circuit` or a `Result` of edges for a task."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Stability:
    """Agreement between circuits that were found on disjoint halves of the images."""

    table: Any
    """polars, one row per split: `split`, `edges first`, `edges second`, `jaccard`, `chance` (Jaccard of random sets of
    these sizes), `spearman` (of all scores; null without scores), `spearman size` (of their sizes), `first on second`
    (F of the first half's circuit on the second half's images), `second on first`."""
    n: int
    """Images in all."""

    def mean(self, column: str) -> float | None:
        """Mean of a column over the splits; None where it is unknown."""
        values = self.table[column].drop_nulls()
        return float(values.mean()) if len(values) else None

    @property
    def jaccard(self) -> float:
        """Mean Jaccard index of the sets of edges."""
        return self.mean("jaccard")

    @property
    def spearman(self) -> float | None:
        """Mean rank correlation of the scores; None for a finder without scores."""
        return self.mean("spearman")

    def __repr__(self) -> str:
        ranks = "" if self.spearman is None else f", Spearman {self.spearman:.3f}"
        low, high = self.table["jaccard"].min(), self.table["jaccard"].max()
        return (
            f"Stability({self.table.height} split(s) of {self.n} images: Jaccard {self.jaccard:.3f} [{low:.3f} to "
            f"{high:.3f}], by chance {self.mean('chance'):.3f}{ranks}; F on the other half "
            f"{self.mean('first on second'):.3f} and {self.mean('second on first'):.3f})"
        )


def stability(
    task: Task,
    finder: Finder,
    *,
    n_edges: int | None = None,
    n_splits: int = 1,
    seed: int = 0,
    signed: bool = False,
    metric: str | None = None,
) -> Stability:
    """Find the circuit on two halves of the images, and compare.

    Args:
        task: images, ablation, metric.
        finder: called with the task of each half; gives a `Circuit`, or a `Result` of edges, of which the best
            `n_edges` are taken.
        n_edges: for results.
        n_splits: how many random splits.
        seed: of the first split; the others follow.
        signed: take the best edges by signed score.
        metric: which metric of a result.

    Raises:
        OutOfRange: no split.
        BadData: fewer than two images; a result without `n_edges`; something that is neither circuit nor result.
        ResultMismatch: a circuit of another architecture.

    Example:
        >>> stability(task, lambda half: circuits.eap(half, progress=False), n_edges=50)            # doctest: +SKIP
    """
    import polars as pl

    if not isinstance(n_splits, int) or n_splits < 1:
        raise OutOfRange(f"n_splits={n_splits!r}: at least one split.")
    rows = []
    for split in range(n_splits):
        halves = task.halves(seed + split)
        first, second = (_found(finder(half), task, n_edges, signed, metric) for half in halves)
        rows.append({"split": split, **_compared(first, second, *halves)})
    numbers = ("jaccard", "chance", "spearman", "spearman size", "first on second", "second on first")
    return Stability(table=pl.DataFrame(rows, schema_overrides=dict.fromkeys(numbers, pl.Float64)), n=len(task))


def chance_jaccard(first: int, second: int, n_edges: int) -> float:
    """Jaccard index that two random sets of these sizes have, with the mean size of their intersection.

    Example:
        >>> round(chance_jaccard(10, 10, 100), 4)
        0.0526
    """
    shared = first * second / n_edges
    either = first + second - shared
    return shared / either if either else 1.0


def _found(answer: Any, task: Task, n_edges: int | None, signed: bool, metric: str | None) -> Circuit:
    if isinstance(answer, Circuit):
        check(task, answer)
        return answer
    if not hasattr(answer, "rows"):
        raise BadData(f"the finder gave a {type(answer).__name__}; it should give a Circuit or a Result of edges.")
    if n_edges is None:
        raise BadData("the finder gives scores, so say how many of the best edges make a circuit: n_edges=.")
    scores = scores_of(answer, task.graph, metric)
    return select(scores, n_edges, graph=task.graph, signed=signed)


def _compared(first: Circuit, second: Circuit, on_first: Task, on_second: Task) -> dict[str, Any]:
    graph = first.graph
    row = {
        "edges first": len(first),
        "edges second": len(second),
        "jaccard": first.overlap(second),
        "chance": chance_jaccard(len(first), len(second), graph.n_edges),
        "spearman": None,
        "spearman size": None,
        "first on second": float(on_second.faithfulness(measured(on_second, first.kept[None]))[0]),
        "second on first": float(on_first.faithfulness(measured(on_first, second.kept[None]))[0]),
    }
    if first.scores is not None and second.scores is not None:
        pair = [circuit.scores[graph.allowed] for circuit in (first, second)]
        both = ~np.isnan(pair[0]) & ~np.isnan(pair[1])
        a, b = (values[both] for values in pair)
        row["spearman"], row["spearman size"] = _spearman(a, b), _spearman(np.abs(a), np.abs(b))
    return row


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return known(spearmanr(a, b).statistic)
