"""How much an answer changes when a unit, or what one unit contributes to another, is replaced by its mean.

    E_u      = mean over images of KL(p || p_do(u))          everything after u computed anew
    E_{u->w} = mean over images of KL(p || p_do(u->w))       inside w's input only; then w, and everything after w

beside the signed change of the task's logit, `logit_c(clean) - logit_c(do)` (positive: it supports the class), since KL
saturates where the model is sure of itself, and beside whether the answer flips (necessity). Everything is per image,
measured once and kept: half-samples and prunings ask for the same numbers again (methods2.md 22, **X**).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.causal_paths.nodes import OUT, depth_of, unit_of
from circuits.causal_paths.reading import Norm, Reader, differences, tail
from circuits.causal_paths.runs import Batch, Recording, Runs
from mechvis import engine as engines
from mechvis import metrics
from mechvis.errors import NotFinite
from mechvis.units import Unit
from mechvis.wave import bytes_per_row

NUMBERS = ("kl", "logit", "flip")


@dataclass(frozen=True, eq=False)
class Effect:
    """One intervention on every image."""

    kl: Float[np.ndarray, " image"]
    """KL(clean || edited), nats."""
    logit: Float[np.ndarray, " image"]
    """Logit of the task's class, clean less edited."""
    flip: Float[np.ndarray, " image"]
    """1 where the answer changes."""

    def at(self, rows: Any) -> "Effect":
        """On some images."""
        return Effect(self.kl[rows], self.logit[rows], self.flip[rows])


class Effects:
    """Exact effects of units and edges on some images, each measured once.

    Args:
        runs: the images.
        means: what takes a unit's place, one row.
        target: the task's class, per image.
        norm: how norms see an edge's change; units are always replaced with norms computed anew.

    Example:
        >>> effects = Effects(runs, means, target)                                                 # doctest: +SKIP
        >>> effects.nodes(["L1N4"])["L1N4"].kl.mean()                                              # doctest: +SKIP
    """

    def __init__(self, runs: Runs, means: Recording, target: Tensor, norm: Norm = "frozen"):
        self.runs, self.means, self.target, self.norm = runs, means, target, norm
        self.model = runs.model
        self.reader = Reader(self.model, norm)
        self.rows = 0
        """Passes of one image through one intervention, so far."""
        self._nodes: dict[str, Effect] = {}
        self._edges: dict[tuple[str, str], Effect] = {}

    def nodes(self, names: Iterable[str], *, progress: bool = False) -> dict[str, Effect]:
        """Effects of units, everything after them computed anew: one wave front for all that are new.

        Args:
            names: units.
            progress: show a progress bar.
        """
        names = list(dict.fromkeys(names))
        new = [name for name in names if name not in self._nodes]
        if new:
            for name, effect in zip(new, self._measure_nodes(new, progress), strict=True):
                self._nodes[name] = effect
        return {name: self._nodes[name] for name in names}

    def edges(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Effect]:
        """Effects of what one unit contributes to another, or to `out`.

        Args:
            pairs: writer and reader.
        """
        pairs = list(dict.fromkeys(pairs))
        new: dict[str, list[str]] = {}
        for writer, reader in pairs:
            if (writer, reader) not in self._edges:
                new.setdefault(reader, []).append(writer)
        for reader, writers in new.items():
            for writer, effect in zip(writers, self._measure_edges(writers, reader), strict=True):
                self._edges[writer, reader] = effect
        return {pair: self._edges[pair] for pair in pairs}

    def _measure_nodes(self, names: Sequence[str], progress: bool) -> list[Effect]:
        order = sorted(range(len(names)), key=lambda place: _sorted_as(unit_of(names[place])))
        units = [unit_of(names[place]) for place in order]
        means = {}
        for unit in units:
            kept = self.means.post if unit.kind == "neurons" else self.means.z
            means[unit.site] = kept[unit.layer]

        def measure(clean: Tensor, edited: Tensor, part: range) -> dict[str, Tensor]:
            return dict(zip(NUMBERS, self._numbers(edited[:, 0], clean[0], part), strict=True))

        job = engines.Job(
            model=self.model,
            n_images=len(self.runs),
            views=lambda part: self.runs.pixels[part.start : part.stop][None],
            units=units,
            replace=lambda views, part: means.__getitem__,
            measure=measure,
        )
        found = engines.compute(job, budget=self.runs.budget, progress=progress, what="units")
        self.rows += len(units) * len(self.runs)
        effects: list[Any] = [None] * len(names)
        for row, place in enumerate(order):
            effects[place] = Effect(*(found[name][row] for name in NUMBERS))
        return effects

    @torch.no_grad()
    def _measure_edges(self, writers: Sequence[str], reader: str) -> list[Effect]:
        units = [unit_of(name) for name in writers]
        found = np.empty((len(NUMBERS), len(units), len(self.runs)))
        for batch in self.runs:
            at = slice(batch.rows.start, batch.rows.stop)
            # Nothing goes the same way, so that rounding cancels.
            clean = self._output(batch, reader, ())[0]
            for start, some in _pieces(units, self._at_once(len(batch.rows))):
                output = self._output(batch, reader, some)
                numbers = self._numbers(output, clean, batch.rows)
                for row, values in enumerate(numbers):
                    found[row, start : start + len(some), at] = values.double().cpu().numpy()
        if not np.isfinite(found).all():
            place = int(np.argwhere(~np.isfinite(found))[0, 1])
            raise NotFinite(f"the edge {writers[place]}->{reader} gives NaN or Inf.")
        self.rows += len(units) * len(self.runs)
        return [Effect(*found[:, row]) for row in range(len(units))]

    def _output(self, batch: Batch, reader: str, units: Sequence[Unit]) -> Float[Tensor, "change image class"]:
        """The output when a node hears each of some units at their mean; without units: the clean output."""
        if reader == OUT:
            return self.reader.out(batch.run, self._changes(batch, units))
        node = unit_of(reader)
        own = batch.run.value(node)
        if not units:
            return tail(self.model, node, batch.run, batch.layout, torch.zeros_like(own)[None])
        value = self.reader.without(node, batch.run, self.means, units) if node.kind == "neurons" else None
        if value is None:
            value = self.reader.value(node, batch.run, batch.layout, self._changes(batch, units))
        return tail(self.model, node, batch.run, batch.layout, value - own)

    def _changes(self, batch: Batch, units: Sequence[Unit]) -> Tensor:
        if not units:
            return torch.zeros_like(batch.run.final)[None]
        return differences(self.model, units, batch.run, self.means)

    def _numbers(self, edited: Tensor, clean: Tensor, rows: range) -> tuple[Tensor, Tensor, Tensor]:
        edited, clean = edited.double(), clean.double()
        target = self.target[rows.start : rows.stop].to(clean.device)
        kl = -metrics.kl(edited, target, target, clean)
        logit = metrics.logit(clean, target, target, clean) - metrics.logit(edited, target, target, clean)
        # Rounding can take a KL of zero below it.
        return kl.clamp(min=0), logit, (edited.argmax(-1) != clean.argmax(-1)).double()

    def _at_once(self, n_images: int) -> int:
        kept, working = bytes_per_row(self.model.parts, torch.finfo(self.model.dtype).bits // 8)
        # A change, the changed stream, and the norm of it, beside what a block needs.
        return max(1, self.runs.budget // (2 * (6 * kept + working) * n_images))


def _pieces(units: Sequence[Unit], size: int) -> Iterable[tuple[int, Sequence[Unit]]]:
    return ((start, units[start : start + size]) for start in range(0, len(units), size))


def _sorted_as(unit: Unit) -> tuple[int, str, int]:
    return unit.layer, unit.kind, unit.index


def sorted_names(model: Any, names: Iterable[str]) -> list[str]:
    """In the order of the forward pass."""
    n_layers = len(model.parts.blocks)

    def key(name: str) -> tuple[tuple[int, int], int]:
        return depth_of(name, n_layers), 0 if name == OUT else unit_of(name).index

    return sorted(names, key=key)
