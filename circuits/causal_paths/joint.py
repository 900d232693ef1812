"""How much of the behaviour the kept units and edges carry together.

Everything outside is at its mean: a unit with known inputs reads the mean stream, plus what its kept inputs write more
or less than on average; a unit whose inputs were not looked for (the deepest level), or of which none was found, does
what it does in the clean run; the read-out reads the mean stream plus the kept units of its own. Then

    faithfulness = (m(graph) - m(empty)) / (m(full) - m(empty))                            (methods.md 5.7)

with m the logit of the task's class less that of the runner-up. Norms see the stream that results (`recomputed`): a
stream that is mostly mean has no clean length to freeze.

Pruning: from the weakest edge on, drop what costs less than half a percent. A unit that has lost all its inputs is not
a unit of which none was found: it stands still, at what it does on the mean stream.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.causal_paths.effects import Effects, sorted_names
from circuits.causal_paths.nodes import OUT, unit_of
from circuits.causal_paths.reading import Reader, written
from circuits.causal_paths.runs import Batch
from mechvis import metrics
from mechvis.errors import BadData

Edges = tuple[tuple[str, str], ...]


class Joint:
    """Faithfulness of graphs of units.

    Args:
        effects: the images, and what they are measured against.

    Raises:
        BadData: the model with everything at its mean answers as the whole model does: there is nothing to explain.
    """

    def __init__(self, effects: Effects):
        self.effects, self.model = effects, effects.model
        self.reader = Reader(self.model, "recomputed")
        logits = effects.runs.logits
        target = effects.target.to(logits.device)
        self.classes = metrics.classes_of(logits, target)
        self.full = self._score(logits, range(len(logits)))
        self.empty = self.measure((), ())
        gap = abs(self.full.mean() - self.empty.mean())
        if gap <= 1e-6 * max(abs(self.full.mean()), abs(self.empty.mean()), 1e-30):
            raise BadData("with every unit at its mean the model answers as it does: there is nothing to explain.")

    def faithfulness(
        self, edges: Edges, expanded: Iterable[str], rows: Int[np.ndarray, " image"] | None = None
    ) -> float:
        """The share of the behaviour that a graph carries, as a ratio of means over images.

        Args:
            edges: (writer, reader), those to `out` included.
            expanded: units whose inputs are known, also where the graph has none of them.
            rows: images; default: all.
        """
        rows = slice(None) if rows is None else rows
        own, full, empty = self.measure(edges, expanded)[rows], self.full[rows], self.empty[rows]
        return float((own.mean() - empty.mean()) / (full.mean() - empty.mean()))

    @torch.no_grad()
    def measure(self, edges: Edges, expanded: Iterable[str]) -> Float[np.ndarray, " image"]:
        """The metric of a graph, per image."""
        inputs: dict[str, list[str]] = {name: [] for name in expanded}
        for writer, reader in edges:
            inputs.setdefault(reader, []).append(writer)
        names = {writer for writer, _ in edges}
        order = sorted_names(self.model, names)
        found = np.empty(len(self.effects.runs))
        for batch in self.effects.runs:
            logits = self._output(batch, order, inputs)
            found[batch.rows.start : batch.rows.stop] = self._score(logits, batch.rows)
        return found

    def _output(self, batch: Batch, order: Sequence[str], inputs: dict[str, list[str]]) -> Tensor:
        means, n = self.effects.means, len(batch.rows)
        wrote: dict[str, Tensor] = {}
        for name in order:
            unit = unit_of(name)
            value = batch.run.value(unit)
            if name in inputs:
                value = self.reader.value(unit, means, batch.layout, -_sum(wrote, inputs[name], means.final, n))[:, 0]
            wrote[name] = written(self.model, unit, value - means.value(unit))
        change = -_sum(wrote, inputs.get(OUT, []), means.final, n)
        return self.reader.out(means, change)[:, 0]

    def _score(self, logits: Tensor, rows: range) -> Float[np.ndarray, " image"]:
        target, contrast = (classes[rows.start : rows.stop] for classes in self.classes)
        return metrics.logit_diff(logits.double(), target, contrast, logits).cpu().numpy()


def _sum(wrote: dict[str, Tensor], names: Sequence[str], like: Tensor, n: int) -> Float[Tensor, "image 1 token d"]:
    """What some units write together, as changes of the mean run's one row."""
    total: Any = torch.zeros(n, *like.shape[1:], device=like.device, dtype=like.dtype)
    for name in names:
        total = total + wrote[name]
    return total[:, None]


def prune(
    joint: Joint, edges: Edges, expanded: Iterable[str], strength: dict[tuple[str, str], float], *, allowed: float
) -> Edges:
    """Drop edges that the whole does not need, the weakest first.

    Args:
        joint: measures.
        edges: of the graph.
        expanded: units whose inputs are known.
        strength: of each edge.
        allowed: loss of faithfulness that one edge may cost.

    Returns:
        The edges that are left, in their order; those on no way to `out` are gone too.
    """
    kept = connected(edges)
    now = joint.faithfulness(kept, expanded)
    for edge in sorted(kept, key=lambda edge: strength[edge]):
        if edge not in kept:
            continue
        fewer = connected(tuple(other for other in kept if other != edge))
        if not fewer:
            continue
        then = joint.faithfulness(fewer, expanded)
        if now - then < allowed:
            kept, now = fewer, then
    return kept


def connected(edges: Edges) -> Edges:
    """Only the edges on a way to `out`.

    Example:
        >>> connected((("L0N1", "L1N2"), ("L1N3", "out")))
        (('L1N3', 'out'),)
    """
    reached, grew = {OUT}, True
    while grew:
        more = {writer for writer, reader in edges if reader in reached} - reached
        reached, grew = reached | more, bool(more)
    return tuple((writer, reader) for writer, reader in edges if reader in reached)
