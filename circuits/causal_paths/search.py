"""From the last hidden layer down: which units matter, which earlier ones speak to them, and so on.

1. Units of the last block (or of all): screened, the best measured exactly, tested against units as loud, at most ten
   kept.
2. For every kept unit w: the units before it, screened by what they contribute to w, the best measured exactly as edges
   into w, tested, at most five kept.
3. The strongest ten of the new units are looked into on the next level; again, to the chosen depth.

Tests of one level are one family. The same search runs on half of the images when stability is asked for: all effects
are per image and kept, so a half costs little (methods2.md 22, **X**).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Int

from circuits.causal_paths import against_random
from circuits.causal_paths.effects import Effect, Effects
from circuits.causal_paths.nodes import name_of, units_before
from circuits.causal_paths.reading import Norm
from circuits.causal_paths.screen import Screen, sizes_of
from mechvis.errors import BadData, OutOfRange, unknown
from mechvis.units import Unit


@dataclass(frozen=True, kw_only=True)
class PathSettings:
    """How a search goes; the defaults are those of methods2.md 22."""

    kinds: tuple[str, ...] = ("heads", "neurons")
    """Kinds of units."""
    start: Literal["last", "all"] = "last"
    """Where the first level looks: at the last block, or at all of them."""
    screen: int = 256
    """Units of the first level that are measured exactly."""
    screen_edges: int = 64
    """Edges into each unit that are measured exactly."""
    keep: int = 10
    """Units of the first level that are kept, and units of each later level that are looked into, at most."""
    parents: int = 5
    """Edges into each unit that are kept, at most."""
    depth: int = 4
    """Levels of units."""
    q: float = 0.05
    """False-discovery rate of each level."""
    matched: int = 5
    """Random units that each one is compared with."""
    norm: Norm = "frozen"
    """How the norm of the reading unit sees an edge's change."""
    seed: int = 0
    """Of the random units and the sign flips."""

    def __post_init__(self):
        if not self.kinds or any(kind not in ("heads", "neurons") for kind in self.kinds):
            raise unknown("kinds of units", self.kinds, ("heads", "neurons"))
        if self.start not in ("last", "all"):
            raise unknown("start of a search", self.start, ("last", "all"))
        if self.norm not in ("frozen", "recomputed"):
            raise unknown("treatment of norms", self.norm, ("frozen", "recomputed"))
        counts = {
            name: getattr(self, name) for name in ("screen", "screen_edges", "keep", "parents", "depth", "matched")
        }
        if wrong := [f"{name}={value!r}" for name, value in counts.items() if not isinstance(value, int) or value < 1]:
            raise OutOfRange(f"{wrong[0]}: a whole number of at least 1.")
        if not 0 < self.q < 1:
            raise OutOfRange(f"q={self.q}: a rate between 0 and 1.")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search has kept, strongest first."""

    nodes: dict[str, int]
    """Unit -> level, 0 for the first."""
    edges: tuple[tuple[str, str], ...]
    """(writer, reader) between them; those of the first level also to `out`."""
    p: dict[object, float] = field(default_factory=dict)
    """Adjusted p-value of each unit of the first level and of each edge."""
    tested: tuple[dict, ...] = ()
    """Per level: `level`, `candidates`, `measured`, `kept`."""


class Search:
    """The images, the effects on them, and what all searches on them share."""

    def __init__(self, effects: Effects, settings: PathSettings):
        self.effects, self.settings = effects, settings
        self.model, self.runs = effects.model, effects.runs
        self.screen = Screen(self.runs, effects.means, effects.target, effects.reader)
        self.units = units_before(self.model, "out", settings.kinds)
        self.names = [name_of(unit) for unit in self.units]
        self.sizes = sizes_of(self.runs, effects.means, self.units)
        self.groups = np.array([2 * unit.layer + (unit.kind == "neurons") for unit in self.units])
        self._first: np.ndarray | None = None

    def find(self, rows: Int[np.ndarray, " image"] | None = None, *, levels: int | None = None) -> Found:
        """Search on some images.

        Args:
            rows: which; default: all.
            levels: stop after so many; default: the depth of the settings.
        """
        rows = np.arange(len(self.runs)) if rows is None else rows
        levels = self.settings.depth if levels is None else levels
        nodes, tested, p = {}, [], {}
        kept, own_p, facts = self._first_level(rows)
        nodes |= dict.fromkeys(kept, 0)
        p |= own_p
        tested.append(facts)
        edges = [(name, "out") for name in kept]
        frontier = kept
        for level in range(1, levels):
            if not frontier:
                break
            kept_edges, own_p, facts = self._next_level(frontier, rows, level)
            p |= own_p
            tested.append(facts)
            edges += kept_edges
            strongest = sorted(kept_edges, key=lambda edge: -self.effects.edges([edge])[edge].kl[rows].mean())
            new = list(dict.fromkeys(name for name, _ in strongest if name not in nodes))
            nodes |= dict.fromkeys(new, level)
            frontier = new[: self.settings.keep]
        return Found(nodes=nodes, edges=tuple(edges), p=p, tested=tuple(tested))

    def _first_level(self, rows: np.ndarray) -> tuple[list[str], dict, dict]:
        last = len(self.model.parts.blocks) - 1
        places = [place for place, unit in enumerate(self.units) if self.settings.start == "all" or unit.layer == last]
        if self._first is None:
            self._first = self.screen.units([self.units[place] for place in places])
        best = _best(self._first[:, rows].mean(1), self.settings.screen)
        candidates = [places[i] for i in best]
        partners = against_random.partners(
            self.sizes, self.groups, candidates, self.settings.matched, self.settings.seed
        )
        needed = [*candidates, *(other for others in partners.values() for other in others)]
        effects = self.effects.nodes(self.names[place] for place in needed)

        def effect(place: int) -> Effect:
            return effects[self.names[place]].at(rows)

        others = [[effect(other) for other in partners[place]] for place in candidates]
        p = against_random.p_values([effect(place) for place in candidates], others, self.settings.seed)
        q = against_random.adjusted(dict(zip((self.names[place] for place in candidates), p.tolist(), strict=True)))
        order = sorted(candidates, key=lambda place: -effect(place).kl.mean())
        kept = [self.names[place] for place in order if q[self.names[place]] <= self.settings.q][: self.settings.keep]
        facts = {"level": 0, "candidates": len(places), "measured": len(candidates), "kept": len(kept)}
        return kept, {name: q[name] for name in kept}, facts

    def _next_level(self, frontier: Sequence[str], rows: np.ndarray, level: int) -> tuple[list, dict, dict]:
        p: dict[object, float] = {}
        strength: dict[tuple[str, str], float] = {}
        n_candidates = 0
        for reader in frontier:
            before = units_before(self.model, reader, self.settings.kinds)
            if not before:
                continue
            places = [self._place(unit) for unit in before]
            n_candidates += len(places)
            best = _best(self.screen.into(reader, before)[:, rows].mean(1), self.settings.screen_edges)
            candidates = [places[i] for i in best]
            # Only what the reader reads can be compared with: the units before it.
            allowed = set(places)
            groups = np.where([place in allowed for place in range(len(self.units))], self.groups, -1)
            partners = against_random.partners(
                self.sizes, groups, candidates, self.settings.matched, self.settings.seed
            )
            needed = {*candidates, *(other for others in partners.values() for other in others)}
            effects = self.effects.edges([(self.names[place], reader) for place in sorted(needed)])

            def effect(place: int, reader: str = reader, effects: dict = effects) -> Effect:
                return effects[self.names[place], reader].at(rows)

            pairs = [(self.names[place], reader) for place in candidates]
            own = [effect(place) for place in candidates]
            others = [[effect(other) for other in partners[place]] for place in candidates]
            p |= dict(zip(pairs, against_random.p_values(own, others, self.settings.seed).tolist(), strict=True))
            strength |= {pair: float(one.kl.mean()) for pair, one in zip(pairs, own, strict=True)}
        q = against_random.adjusted(p)
        kept = []
        for reader in frontier:
            own = [pair for pair in strength if pair[1] == reader and q[pair] <= self.settings.q]
            kept += sorted(own, key=lambda pair: -strength[pair])[: self.settings.parents]
        facts = {"level": level, "candidates": n_candidates, "measured": len(p), "kept": len(kept)}
        return kept, {pair: q[pair] for pair in kept}, facts

    def _place(self, unit: Unit) -> int:
        return self.names.index(name_of(unit))


def _best(values: np.ndarray, n: int) -> list[int]:
    """Positions of the largest values; all where there are no more than asked for."""
    return [int(place) for place in np.argsort(-values, kind="stable")[:n]]


def check_images(n: int) -> None:
    """A sign-flip test of fewer than six images cannot reach 0.05.

    Raises:
        BadData: too few images.
    """
    if n < 6:
        raise BadData(f"{n} images of the task's class: with fewer than 6 no test can be significant. Use more images.")
