"""Would any circuit of this size do? The faithfulness of a circuit among random ones like it (faithfulness.md 2.4,
**X**).

If the circuit were a random one of its size and layer profile (:mod:`circuits.evaluation.random_circuits`), every rank
among other ones would be equally likely, so `p = (1 + how many are at least as good) / (1 + how many there are)`. It
cannot fall below 1 / (1 + draws), nor below one over the number of circuits of this profile.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from circuits.circuit import Circuit
from circuits.evaluation.faithfulness import denominator
from circuits.evaluation.measured import Cost, check, measured
from circuits.evaluation.random_circuits import How, random_circuits
from circuits.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW = 100
"""Fewer random circuits than this make a poor control."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RandomControl:
    """A circuit's faithfulness among random circuits of its size and layer profile."""

    how: str
    """How they were drawn: `edges` or `heads`."""
    observed: float
    """F of the circuit."""
    values: Float[np.ndarray, " draw"]
    """F of each random circuit."""
    n_edges: int
    """Edges of each."""
    every: bool
    """All circuits of this profile were tried, so p is exact."""

    @property
    def percentile(self) -> float:
        """Share of the random circuits that are less faithful, in percent; equal ones count half."""
        below, same = (self.values < self.observed).mean(), (self.values == self.observed).mean()
        return float(100 * (below + same / 2))

    @property
    def p(self) -> float:
        """p-value of "a random circuit": how often F is at least as large."""
        return float((1 + (self.values >= self.observed).sum()) / (1 + len(self.values)))

    @property
    def p_closer(self) -> float:
        """The same for |1 - F|, at least as small: for circuits whose F is above 1."""
        own = abs(1 - self.observed)
        return float((1 + (np.abs(1 - self.values) <= own).sum()) / (1 + len(self.values)))

    def plot(self) -> "Figure":
        """The circuit among the random ones."""
        from mechvis import plots

        return plots.control_strip(
            self.values,
            self.observed,
            name="this circuit",
            control_name=f"random circuits ({self.how})",
            label="faithfulness F",
        )

    def row(self) -> dict[str, Any]:
        """The numbers of one line of a table."""
        low, middle, high = np.quantile(self.values, [0.025, 0.5, 0.975])
        return {
            "control": self.how,
            "observed": self.observed,
            "draws": len(self.values),
            "every": self.every,
            "random low": float(low),
            "random median": float(middle),
            "random high": float(high),
            "percentile": self.percentile,
            "p": self.p,
            "p closer": self.p_closer,
        }

    def __repr__(self) -> str:
        row = self.row()
        drawn = f"all {len(self.values)} others" if self.every else f"{len(self.values)} drawn"
        return (
            f"RandomControl({self.how}, {drawn} of {self.n_edges} edges: F {row['random median']:.3f} "
            f"[{row['random low']:.3f}, {row['random high']:.3f}]; this circuit {self.observed:.3f}, percentile "
            f"{self.percentile:.1f}, p = {self.p:.3g})"
        )


def random_control(
    task: Task,
    circuit: Circuit,
    *,
    n: int = 100,
    how: How = "edges",
    seed: int = 0,
    cost: Cost | None = None,
    progress: bool = True,
) -> RandomControl:
    """Compare a circuit with random ones of its size and layer profile.

    Args:
        task: images, ablation, metric.
        circuit: not empty.
        n: random circuits, at least 100 for a p-value that says much.
        how: `edges` or `heads`; see :mod:`circuits.evaluation.random_circuits`.
        seed: of the draws.
        cost: counts the passes.
        progress: show a progress bar.

    Raises:
        BadData: an empty circuit; no other circuit of this profile; a constant metric.
        OutOfRange: n below 1.
        ResultMismatch: a circuit of another architecture.

    Example:
        >>> random_control(task, circuit).p                                                        # doctest: +SKIP
        0.0099
    """
    check(task, circuit, empty=False)
    denominator(task, seed=seed)
    masks, every = random_circuits(task.graph, circuit.kept, n, how=how, seed=seed)
    values = measured(task, [circuit.kept, *masks], cost=cost, progress=progress, what=f"random circuits ({how})")
    shares = task.faithfulness(values)
    return RandomControl(how=how, observed=float(shares[0]), values=shares[1:], n_edges=len(circuit), every=every)
