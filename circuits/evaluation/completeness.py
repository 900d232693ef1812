"""Does the circuit hold everything that matters, also when parts of it are gone? (faithfulness.md 2.4 **K**)

    completeness gap = max over K in C of | m(C without K) - m(M without K) |  /  | m(M) - m(0) |

If C is complete, knocking out the same parts K of C and of the whole model hurts both alike. A gap at some K shows what
is missing: a backup that takes over in the model when K is gone, and that C has not. K = nothing is |1 - F|.

The maximum over all subsets cannot be had; what is found is a *lower bound* of it, and the number of subsets tried is
part of the result:

`random`   K of random size, uniform, at random
`greedy`   K grows by the part that widens the gap most, among some candidates drawn anew at each step

Parts are edges, or components: then K takes every edge that leaves it, also those outside C.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from circuits.circuit import Circuit
from circuits.evaluation.faithfulness import denominator, known
from circuits.evaluation.measured import Cost, check, measured
from circuits.evaluation.resampled import interval, ratio, resampled_means
from circuits.task import Task
from mechvis.errors import OutOfRange, unknown

Over = Literal["edges", "nodes"]
Places = Int[np.ndarray, "edge two"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Completeness:
    """The widest gap that was found between a circuit and the model, each without the same parts."""

    over: str
    """What K is made of: `edges` or `nodes`."""
    gap: float
    """| m(C without K) - m(M without K) | / | m(M) - m(0) | at the worst K: a lower bound of the maximum."""
    low: float | None
    """Lower end of its 95 % interval over images, for this K: the choice of K is not drawn anew."""
    high: float | None
    """Upper end."""
    worst: tuple[str, ...]
    """The worst K, by names; empty: nothing was worse than the circuit as it is."""
    at_nothing: float
    """The gap without knocking out anything: |1 - F|."""
    table: Any
    """polars, one row per K tried: `search` (nothing, random, greedy), `parts`, `circuit`, `model` (what is left of m,
    as shares between m(0) and m(M)), `gap`."""

    @property
    def tried(self) -> int:
        """Subsets K that were tried: the budget that the bound rests on."""
        return self.table.height

    def __repr__(self) -> str:
        ends = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return (
            f"Completeness(gap at least {self.gap:.3f}{ends} without {len(self.worst)} {self.over}, "
            f"{self.at_nothing:.3f} without nothing; {self.tried} subsets tried)"
        )


def completeness(
    task: Task,
    circuit: Circuit,
    *,
    over: Over = "edges",
    n_random: int = 50,
    steps: int = 5,
    candidates: int = 10,
    seed: int = 0,
    cost: Cost | None = None,
    progress: bool = True,
) -> Completeness:
    """Search for parts of the circuit without which it and the model differ.

    Args:
        task: images, ablation, metric.
        circuit: not empty.
        over: take out `edges` or `nodes`.
        n_random: random subsets; 0 for none.
        steps: size of the greedy subset; 0 for none.
        candidates: parts tried at each greedy step.
        seed: of the search and of the bootstrap.
        cost: counts the passes.
        progress: show a progress bar.

    Raises:
        BadData: an empty circuit, a constant metric.
        OutOfRange: a negative number, or no candidate.
        ResultMismatch: a circuit of another architecture.

    Example:
        >>> completeness(task, circuit, over="nodes").worst                                        # doctest: +SKIP
        ('L1H2', 'L2MLP')
    """
    check(task, circuit, empty=False)
    for name, value, least in (("n_random", n_random, 0), ("steps", steps, 0), ("candidates", candidates, 1)):
        if not isinstance(value, int) or value < least:
            raise OutOfRange(f"{name}={value!r}: a whole number from {least} on.")
    scale = denominator(task, seed=seed).value
    names, parts = _parts(circuit, over)
    generator = np.random.default_rng(seed)
    search = _Search(task, circuit, parts, cost, progress)
    search.measure("nothing", [np.zeros(len(parts), dtype=bool)])
    search.measure("random", _random(len(parts), n_random, generator))
    _greedy(search, len(parts), steps, candidates, generator)
    return _found(search, names, over, scale, task, seed)


class _Search:
    """The subsets that were tried, and what was measured on them."""

    def __init__(self, task: Task, circuit: Circuit, parts: list[Places], cost: Cost | None, progress: bool):
        self.task, self.circuit, self.parts, self.cost, self.progress = task, circuit, parts, cost, progress
        self.chosen: list[np.ndarray] = []
        self.how: list[str] = []
        self.values: list[tuple[np.ndarray, np.ndarray]] = []

    def measure(self, how: str, subsets: list[Bool[np.ndarray, " part"]]) -> Float[np.ndarray, " subset"]:
        """Gaps of some subsets, in the unit of the metric."""
        if not subsets:
            return np.zeros(0)
        graph = self.task.graph
        removed = [self._mask(chosen) for chosen in subsets]
        masks = [self.circuit.kept & ~gone for gone in removed] + [graph.allowed & ~gone for gone in removed]
        values = measured(self.task, masks, cost=self.cost, progress=self.progress, what=f"completeness ({how})")
        pairs = list(zip(values[: len(subsets)], values[len(subsets) :], strict=True))
        self.chosen += subsets
        self.how += [how] * len(subsets)
        self.values += pairs
        return np.array([abs(own.mean() - whole.mean()) for own, whole in pairs])

    def _mask(self, chosen: Bool[np.ndarray, " part"]) -> Bool[np.ndarray, "writer reader"]:
        mask = np.zeros(self.task.graph.shape, dtype=bool)
        for part in np.flatnonzero(chosen):
            mask[self.parts[part][:, 0], self.parts[part][:, 1]] = True
        return mask


def _parts(circuit: Circuit, over: str) -> tuple[list[str], list[Places]]:
    """Names of the parts and the edges that go with each."""
    graph = circuit.graph
    if over == "edges":
        names = list(circuit.edges)
        return names, [np.array([graph.edge(name)]) for name in names]
    if over != "nodes":
        raise unknown("kind of part", over, ("edges", "nodes"))
    names = [name for name in graph.writers if circuit.kept[graph.writer(name)].any()]
    return names, [np.argwhere(graph.allowed & ~graph.without_nodes([name])) for name in names]


def _random(n_parts: int, n: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Subsets of one part up to all of them, every size equally likely."""
    found = []
    for _ in range(n):
        chosen = np.zeros(n_parts, dtype=bool)
        chosen[generator.permutation(n_parts)[: generator.integers(1, n_parts + 1)]] = True
        found.append(chosen)
    return found


def _greedy(search: _Search, n_parts: int, steps: int, candidates: int, generator: np.random.Generator) -> None:
    chosen = np.zeros(n_parts, dtype=bool)
    for _ in range(min(steps, n_parts)):
        left = np.flatnonzero(~chosen)
        tried = []
        for part in np.sort(generator.permutation(left)[:candidates]):
            with_it = chosen.copy()
            with_it[part] = True
            tried.append(with_it)
        chosen = tried[int(np.argmax(search.measure("greedy", tried)))]


def _found(search: _Search, names: list[str], over: str, scale: float, task: Task, seed: int) -> Completeness:
    import polars as pl

    own, whole = (np.stack(side) for side in zip(*search.values, strict=True))
    gaps = np.abs(own.mean(1) - whole.mean(1)) / abs(scale)
    worst = int(np.argmax(gaps))
    rows = np.stack([own[worst], whole[worst], task.full, task.empty])
    means = resampled_means(rows, seed=seed)
    low, high = interval(
        ratio(np.abs(means[:, 0] - means[:, 1]) * np.sign(scale), means[:, 2] - means[:, 3], scale), len(task)
    )
    table = pl.DataFrame(
        {
            "search": search.how,
            "parts": [[names[i] for i in np.flatnonzero(chosen)] for chosen in search.chosen],
            "circuit": task.faithfulness(own),
            "model": task.faithfulness(whole),
            "gap": gaps,
        },
        schema_overrides={"parts": pl.List(pl.String)},
    )
    return Completeness(
        over=over,
        gap=float(gaps[worst]),
        low=known(low),
        high=known(high),
        worst=tuple(names[i] for i in np.flatnonzero(search.chosen[worst])),
        at_nothing=float(gaps[0]),
        table=table,
    )
