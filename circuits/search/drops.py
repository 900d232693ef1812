"""How far the metric falls when sets of edges are cut: what ACDC asks for, thousands of times, and counts.

    drop(kept) = mean over images of ( m(full) - m(only `kept`) )          for `kl`: KL(full || circuit), in nats

Logits are turned into numbers in float64, since the differences that ACDC compares with its threshold are far smaller
than the numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.edges.gated import gated
from circuits.search.held import SHARE, Held
from circuits.search.unheard import with_unheard_open
from circuits.task import Batch, Task
from mechvis import metrics
from mechvis.errors import NotFinite
from mechvis.wave import rows_at_once

Kept = Bool[np.ndarray, "circuit writer reader"]


@dataclass
class Counts:
    """What a search has cost so far."""

    circuits: int = 0
    """Sets of edges that were run."""
    rows: int = 0
    """Rows: circuit times image."""
    forwards: int = 0
    """Calls of the gated forward: several rows go through one call."""
    blocks: int = 0
    """Rows times blocks that they ran through; a run that restarts late runs through few."""
    remembered: int = 0
    """Sets of edges that had been run before, for another threshold."""

    def as_dict(self) -> dict[str, int]:
        """As JSON holds it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class Drops:
    """The drop of any circuit of a task.

    Args:
        task: images and ablation.
        metric: a name from `mechvis.metrics.METRICS` or a function; None: the task's own.
        restart: start each run at the first layer with a cut edge. False is the plain twin: every run is a whole one.
        lean: do not make the inputs of components that nobody hears (:mod:`circuits.search.unheard`).
        remember: do not run the same circuit twice.
        share: share of the task's memory in which its runs are kept.

    Raises:
        UnknownName: an unknown metric.

    Example:
        >>> Drops(task)(task.graph.allowed[None])                                                  # doctest: +SKIP
        array([0.])
    """

    def __init__(
        self,
        task: Task,
        metric: str | Callable | None = "kl",
        *,
        restart: bool = True,
        lean: bool = True,
        remember: bool = True,
        share: float = SHARE,
    ):
        self.task, self.restart, self.lean, self.remember = task, restart, lean, remember
        self.name, self.metric = (task.metric_name, task.metric) if metric is None else metrics.get(metric)
        self.counts = Counts()
        self._known: dict[bytes, float] = {}
        self._last_reader = {
            layer: task.graph.readers_of(layer).stop for layer in range(task.graph.n_layers)
        }  # the MLP, behind queries, keys and values
        at_once = task.rows_at_once()
        self._held = Held(task, at_once, share=share)
        if task.model.device.type == "cpu":  # a CPU gains nothing from more rows than fit its cache
            at_once = min(at_once, rows_at_once(task.model.parts, torch.finfo(task.model.dtype).bits // 8))
        self.most = max(1, at_once // self._held.size)
        """Circuits per call that are worth it and fit the memory."""
        self._clean: list[Tensor] = []

    def __call__(self, kept: Kept) -> Float[np.ndarray, " circuit"]:
        """Drops of some circuits.

        Args:
            kept: edges that are not cut.

        Raises:
            NotFinite: a circuit gives NaN or Inf.
        """
        kept = self._leaned(kept)
        names = [_digest(mask) for mask in kept]
        new = [place for place, name in enumerate(names) if name not in self._known]
        self.counts.remembered += len(kept) - len(new)
        found = {names[place]: value for place, value in zip(new, self._run(kept[new]), strict=True)}
        values = np.array([found.get(name, self._known.get(name)) for name in names], dtype=np.float64)
        if self.remember:
            self._known |= found
        return values

    def knows(self, kept: Bool[np.ndarray, "writer reader"]) -> bool:
        """Whether this circuit was run before.

        Args:
            kept: edges that are not cut.
        """
        return bool(self._known) and _digest(self._leaned(kept[None])[0]) in self._known

    def alone(self, kept: Bool[np.ndarray, "writer reader"]) -> float:
        """Drop of one circuit, run by itself: what a plain search would see, to the last bit.

        Args:
            kept: edges that are not cut.
        """
        return float(self._run(self._leaned(kept[None]))[0])

    def _leaned(self, kept: Kept) -> Kept:
        return with_unheard_open(self.task.graph, kept) if self.lean else kept

    @torch.no_grad()
    def _run(self, kept: Kept) -> Float[np.ndarray, " circuit"]:
        total = np.zeros(len(kept))
        for start in range(0, len(kept), self.most):
            some = torch.from_numpy(kept[start : start + self.most])
            blocks = self._blocks(kept[start : start + self.most])
            for place, batch in enumerate(self._held):
                values = self._clean_of(place, batch) - self._score(self._forward(batch, some), batch)
                if not torch.isfinite(values).all():
                    image = int((~torch.isfinite(values)).nonzero()[0, 1])
                    name = self.task.ids[batch.rows[image]]
                    raise NotFinite(f"cutting edges gives NaN or Inf in {self.name!r} on image {name!r}.")
                total[start : start + len(some)] += values.double().sum(1).cpu().numpy()
                self.counts.forwards += 1
                self.counts.rows += len(some) * len(batch.rows)
                self.counts.blocks += len(some) * len(batch.rows) * blocks
        self.counts.circuits += len(kept)
        return total / len(self.task)

    def _forward(self, batch: Batch, kept: Tensor) -> Tensor:
        model, wires = self.task.model, self.task.wires
        return gated(model, batch.clean, batch.base, kept, wires=wires, restart=self.restart)

    def _blocks(self, kept: Kept) -> int:
        """Blocks that a run of these circuits goes through."""
        n_layers = self.task.graph.n_layers
        if not self.restart:
            return n_layers
        cut = (self.task.graph.allowed & ~kept).any((0, 1))
        first = next((layer for layer in range(n_layers) if cut[: self._last_reader[layer] + 1].any()), n_layers)
        return n_layers - first

    def _clean_of(self, place: int, batch: Batch) -> Tensor:
        if place == len(self._clean):
            self._clean.append(self._score(batch.logits[None], batch))
        return self._clean[place]

    def _score(self, output: Float[Tensor, "circuit image class"], batch: Batch) -> Float[Tensor, "circuit image"]:
        return self.metric(output.double(), *batch.classes, batch.logits.double())


def _digest(kept: Bool[np.ndarray, "writer reader"]) -> bytes:
    return blake2b(np.packbits(kept).tobytes(), digest_size=16).digest()
