"""INVERT-like labels: a unit as a logical combination of concepts, by how well it tells the images apart.

"Red AND NOT circle" is a formula; an image has it or not; its score is the AUC of the unit as a detector of it (**K**).

1. Start from all concepts and their negations.
2. Beam search: extend the best formulas by AND or OR with a concept or a negation, up to `length` concepts.
3. Only formulas that a share of the images inside `coverage` has: without that bound, the best formula is the one of
   the single most active image.
4. A longer formula must gain at least `gain` in AUC (**X**), else the shorter one stands.

A search over thousands of formulas finds a good one for noise too: judge the winner on other images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.stats import rankdata

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.record import finite

COVERAGE = (0.02, 0.5)


@dataclass(frozen=True, kw_only=True)
class Formula:
    """A logical combination, read from left to right: `(a AND NOT b) OR c`."""

    steps: tuple[tuple[str, int, bool], ...]
    """(`AND` or `OR`, place of the concept, negated?) in order; the first word is not used."""
    names: tuple[str, ...]
    """Of the concepts in the steps."""
    auc: float = float("nan")
    """Of the unit as a detector of it, on the images of the search."""
    coverage: float = float("nan")
    """Share of these images that have it."""

    def __call__(self, presence: Shaped[np.ndarray, "image concept"]) -> Bool[np.ndarray, " image"]:
        """Which images have it."""
        there = np.asarray(presence) >= 0.5
        found = np.zeros(len(there), bool)
        for place, (word, concept, negated) in enumerate(self.steps):
            one = there[:, concept] ^ negated
            found = one if place == 0 else (found & one if word == "AND" else found | one)
        return found

    def __str__(self) -> str:
        text = ""
        for place, ((word, _, negated), name) in enumerate(zip(self.steps, self.names, strict=True)):
            one = f"NOT {name}" if negated else name
            text = one if place == 0 else f"{f'({text})' if place > 1 else text} {word} {one}"
        return text


def logical_explanation(
    activations: Float[np.ndarray, " image"],
    presence: Shaped[np.ndarray, "image concept"],
    names: Sequence[str],
    *,
    length: int = 3,
    beam: int = 5,
    coverage: tuple[float, float] = COVERAGE,
    gain: float = 0.005,
) -> Formula:
    """The formula that a unit detects best.

    Args:
        activations: of the unit.
        presence: of the same images; there is a concept at 0.5 and above.
        names: one per concept.
        length: concepts in a formula, at most.
        beam: formulas that are extended.
        coverage: least and largest share of images that have the formula (**K** that there is one, **X** its values).
        gain: least gain in AUC for one more concept (**X**).

    Raises:
        ShapeMismatch: arrays that do not fit together.
        OutOfRange: a coverage that is no range inside (0, 1).
        BadData: no formula has such a coverage; a constant unit.
        NotFinite: NaN or Inf.

    Example:
        >>> c = np.random.default_rng(0).integers(0, 2, (400, 4))
        >>> str(logical_explanation((c[:, 0] & ~c[:, 2] & 1).astype(float), c, list("abcd")))
        'a AND NOT c'
    """
    a, c = finite("activations", np.asarray(activations, np.float64)), np.asarray(presence)
    if a.ndim != 1 or c.shape != (len(a), len(names)):
        raise ShapeMismatch(f"activations {list(a.shape)}, presence {list(c.shape)} and {len(names)} names do not fit.")
    if not 0 < coverage[0] < coverage[1] < 1 or length < 1 or beam < 1:
        raise OutOfRange(f"coverage={coverage}, length={length}, beam={beam}: a range inside (0, 1), and 1 or more.")
    if a.std() == 0:
        raise BadData("the unit is constant: it detects nothing.")
    there, ranks = c >= 0.5, rankdata(a)
    literals = [(place, negated, there[:, place] ^ negated) for place in range(len(names)) for negated in (False, True)]

    def scored(masks: Bool[np.ndarray, "formula image"]) -> np.ndarray:
        """AUC of each; NaN outside the coverage."""
        n = masks.sum(1)
        inside = (n >= coverage[0] * len(a)) & (n <= coverage[1] * len(a)) & (n > 0) & (n < len(a))
        with np.errstate(invalid="ignore", divide="ignore"):
            found = (masks @ ranks - n * (n + 1) / 2) / (n * (len(a) - n))
        return np.where(inside, found, np.nan)

    values = scored(np.stack([mask for _, _, mask in literals]))
    level = [((("AND", p, neg),), mask, v) for (p, neg, mask), v in zip(literals, values, strict=True)]
    best = max((one for one in level if np.isfinite(one[2])), key=lambda one: one[2], default=None)
    # Formulas outside the coverage may lead to some inside: they stay in the beam if nothing better is there.
    level = _best(level, max(beam, 2))
    for _ in range(length - 1):
        longer = [
            ((*steps, (word, p, neg)), (mask & one) if word == "AND" else (mask | one))
            for steps, mask, _ in level
            for p, neg, one in literals
            for word in ("AND", "OR")
            if p not in [step[1] for step in steps]
        ]
        if not longer:
            break
        values = scored(np.stack([mask for _, mask in longer]))
        level = [(*one, v) for one, v in zip(longer, values, strict=True) if np.isfinite(v)]
        level = _best(level, beam)
        if not level:
            break
        if best is None or level[0][2] >= best[2] + gain:
            best = level[0]
    if best is None:
        raise BadData(f"no formula is true for {coverage[0]:.0%} to {coverage[1]:.0%} of the images; widen coverage.")
    steps, mask, value = best
    if len(steps) > 1 and steps[0][2] and not steps[1][2]:  # "a AND NOT b" reads better than "NOT b AND a"
        (_, *first), (word, *second) = steps[:2]
        steps = (("AND", *second), (word, *first), *steps[2:])
    return Formula(
        steps=steps, names=tuple(names[p] for _, p, _ in steps), auc=float(value), coverage=float(mask.mean())
    )


def _best(level: list[tuple], beam: int) -> list[tuple]:
    """The best formulas, one for each set of images: `a AND b` and `b AND a` share a place."""
    found: dict[bytes, tuple] = {}
    for one in sorted(level, key=lambda one: (-np.nan_to_num(one[2], nan=-1.0), len(one[0]))):
        found.setdefault(one[1].tobytes(), one)
        if len(found) == beam:
            break
    return list(found.values())
