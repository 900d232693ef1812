"""Which k of many units have the largest mean effect, from as few images as a guarantee allows: successive elimination.

A full sweep measures every unit on every image. To know the *top* units that is wasteful: most units are far from the
boundary and show it on a few images. So:

1. Put the images into one random order, stratified by class (:func:`mechvis.certified.order.draw`). Every unit sees a
   prefix of that order.
2. In rounds of doubling size (64, 128, 256, ... images in all) measure the *live* units on the next images.
3. Bound each live unit's mean over all images. All bounds of all units and rounds hold together with probability
   1 - delta (a union bound: each fails with at most delta / (units x rounds)).
4. *Reject* a unit if as many live units as there are free places lie surely above it. *Accept* a unit if so few live
   units may lie more than the tolerance above it that it belongs on a free place. Both leave the round's live set.
5. Stop when all places are taken. Where the images run out the means are exact, and so is the answer.

The tolerance is eps x |theta_k|, theta_k the k-th largest mean of all units, and of |theta_k| the lower bound is taken.
So with probability 1 - delta every unit that is returned has a mean of at least theta_k - eps |theta_k|. (Rejecting
keeps the k-th largest mean of the rest; accepting, within the tolerance, never lowers it: errors do not add up.)

A random share of the rejected units is measured to the end all the same (the audit): a unit that turns out to lie above
a returned one withdraws the certificate.

Nothing here knows of models: `evaluate(units, images)` gives effects, from an engine, a table, or a simulated world.
What it assumes is in `mechvis.certified.bounds.TAILS`. Successive elimination: Even-Dar, Mannor, Mansour 2006; for
top-k: Kalyanakrishnan et al. 2012, whose accept and reject rules these are, with the tolerance in the accept rule.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mechvis.certified.bounds import FIRST, TAILS, bounds, checked_control, largest_deviation
from mechvis.certified.order import schedule
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, unknown

Evaluate = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Units `[unit]`, images `[image]` (both positions) -> effects `[unit image]`; NaN = undefined, left out."""

STATUS = ("accepted", "rejected", "undecided")
"""`undecided`: live at the end. All places were taken, and it may lie within the tolerance of what took them; or the
images did not suffice."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Elimination:
    """The top units and how sure that is. Arrays are `[unit]` unless said otherwise."""

    selected: np.ndarray = field()
    """Positions of the top units `[top]`, largest mean first."""
    certified: bool
    """Does the guarantee hold? Not if `max_images` images did not suffice or the audit contradicts it."""
    status: tuple[str, ...]
    """One of `STATUS` per unit."""
    mean: np.ndarray = field()
    """Mean effect on the images on which the unit was decided. Of selected units too large on average (the winner's
    curse): :func:`fresh` says on which images to estimate it again."""
    low: np.ndarray = field()
    """Lower end of the interval that decided; all intervals together cover with probability 1 - delta."""
    high: np.ndarray = field()
    """Upper end."""
    n: np.ndarray = field()
    """Images drawn when the unit was decided, int64."""
    round: np.ndarray = field()
    """Round of the decision, from 1, int64."""
    acting: np.ndarray = field()
    """On how many of these images the effect was other than zero, int64."""
    audited: np.ndarray = field()
    """Rejected units that were measured to the end, bool."""
    contradicted: tuple[int, ...] = ()
    """Audited units that turned out to lie above a selected one."""
    tolerance: float
    """eps x |theta_k| in the unit of the effect: what a selected unit may lack."""
    shortfall: float
    """What a selected unit lacks at most, by the bounds: not above `tolerance` where the guarantee holds."""
    exhausted: bool
    """Did the images run out? The means of the units live in the last round are then exact."""
    rounds: tuple[dict[str, int], ...] = ()
    """Per round: `images` drawn so far, units `live` before it, `accepted`, `rejected`, `audited`, `evaluations`."""

    @property
    def evaluations(self) -> int:
        """Effects measured: unit x image, the audit included."""
        return sum(row["evaluations"] for row in self.rounds)

    @property
    def audit_evaluations(self) -> int:
        """Those of the audit."""
        return sum(row["audited"] * row["new"] for row in self.rounds)

    @property
    def uniform(self) -> int:
        """What the same certificate costs if every unit is measured until the last one is decided."""
        return len(self.mean) * self.rounds[-1]["images"]


def eliminate(
    evaluate: Evaluate,
    order: np.ndarray,
    n_units: int,
    top: int,
    *,
    eps: float = 0.1,
    delta: float = 0.05,
    by: Literal["effect", "size"] = "effect",
    tails: Literal["student", "guarded", "bernstein"] = "guarded",
    value_range: float | None = None,
    z: float | None = None,
    max_images: int | None = None,
    first: int = FIRST,
    audit: float = 0.0,
    control: np.ndarray | None = None,
    uniform: bool = False,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> Elimination:
    """Find the `top` units of largest mean over all images, with a guarantee (see the top of this module).

    Args:
        evaluate: effects of some units on some images; called once per round.
        order: all images, from :func:`mechvis.certified.order.draw`; a prefix of it is measured.
        n_units: number of units.
        top: how many to find.
        eps: tolerance: a returned unit may lie below the k-th largest mean by this share of it.
        delta: probability with which the guarantee may fail.
        by: largest mean `effect`, or largest absolute value of it (`size`).
        tails: how means are bounded, see `mechvis.certified.bounds.TAILS`.
        value_range: for `bernstein`: largest minus smallest possible effect, e.g. 2 for a change of probability.
        z: half-widths in standard errors instead of those of the union bound (a calibrated guarantee only).
        max_images: images to draw at most; the answer may then come without a certificate. Default: all.
        first: images of the first round.
        audit: share of all units that, if rejected, are measured to the end.
        control: a cheap estimate of the effects on the first images of the order `[unit image]`, e.g. from gradients.
            It lowers the variance as far as it is correlated with the effects; the means stay those of the effects,
            whatever it is (regression on the other half of the images).
        uniform: measure every unit in every round: what elimination is compared with.
        seed: of the choice of audited units.
        names: what errors call the units; default: their numbers.

    Returns:
        Elimination: the selected units, a status and bounds for every unit, rounds and cost.

    Raises:
        OutOfRange: a setting out of range, such as `top` not below the number of units.
        ShapeMismatch: effects or controls of another shape than units and images.
        BadData: no images, or a control with `bernstein`.
        NotFinite: an infinite effect, or a unit without a defined effect on any image.

    Example:
        >>> from mechvis.certified.order import draw
        >>> means = np.array([3.0, 0.1, 2.0, 0.0])
        >>> noise = np.random.default_rng(0).normal(size=(4, 5000))
        >>> found = eliminate(lambda units, images: (means[:, None] + noise)[np.ix_(units, images)], draw(5000), 4, 2)
        >>> found.selected.tolist(), found.certified, found.evaluations < 5000
        ([0, 2], True, True)
    """
    order = np.asarray(order)
    check_settings(
        n_units, top, len(order), eps=eps, delta=delta, by=by, tails=tails, first=first, max_images=max_images,
        audit=audit, z=z, value_range=value_range,
    )  # fmt: skip
    steps = schedule(len(order), max_images, first)
    alpha = delta / (n_units * len(steps))
    flagged = np.zeros(n_units, dtype=bool)
    if audit:
        chosen = np.random.default_rng(seed).permutation(n_units)[: max(1, round(audit * n_units))]
        flagged[chosen] = True
    if control is not None and tails == "bernstein":
        raise BadData(
            "tails='bernstein' bounds effects, not what a control leaves of them. Use 'guarded', or no control."
        )
    control = None if control is None else checked_control(control, n_units, len(order))

    mean, low, high = np.zeros(n_units), np.full(n_units, -np.inf), np.full(n_units, np.inf)
    n, decided = np.zeros(n_units, dtype=np.int64), np.zeros(n_units, dtype=np.int64)
    accepted, rejected = np.zeros(n_units, dtype=bool), np.zeros(n_units, dtype=bool)
    acting = np.zeros(n_units, dtype=np.int64)
    final = np.full((3, n_units), np.nan)  # mean, low and high of audited units where the others stopped
    active = np.arange(n_units)
    values = np.empty((n_units, 0))
    rounds: list[dict[str, int]] = []
    for number, drawn in enumerate(steps, 1):
        done = steps[number - 2] if number > 1 else 0
        values = np.concatenate([values, _measured(evaluate, active, order[done:drawn])], axis=1)
        known = None if control is None else control[active]
        live = ~(accepted | rejected)
        here = live[active]
        # Of live units only: one huge unit, surely in by now, says nothing about what the small ones could still do.
        largest = largest_deviation(values[here])
        centre, half = bounds(
            values, len(order), alpha, tails=tails, z=z, largest=largest, value_range=value_range, control=known
        )
        ids = active[here]
        if np.isnan(centre).any():
            unit = int(active[np.isnan(centre)][0])
            unit = unit if names is None else names[unit]
            raise NotFinite(f"unit {unit} has no defined effect on any of the {len(order)} images.")
        mean[ids], low[ids], high[ids] = centre[here], (centre - half)[here], (centre + half)[here]
        n[ids], decided[ids] = drawn, number
        acting[ids] = (np.nan_to_num(values[here]) != 0).sum(1)
        final[:, active] = centre, centre - half, centre + half
        lower, upper = _sided(low, high, by)
        tolerance = eps * _floor(lower, upper, top)
        into, out = _decide(
            ids, np.abs(mean) if by == "size" else mean, lower, upper, top - int(accepted.sum()), tolerance
        )
        accepted[into], rejected[out] = True, True
        rounds.append(
            {
                "images": drawn,
                "new": drawn - done,
                "live": len(ids),
                "accepted": len(into),
                "rejected": len(out),
                "audited": 0 if uniform else int((~here).sum()),
                "evaluations": len(active) * (drawn - done),
            }
        )
        if accepted.sum() == top:
            break
        keep = np.ones(len(active), dtype=bool) if uniform else ~(accepted | (rejected & ~flagged))[active]
        active, values = active[keep], values[keep]
    return _summary(
        top=top, by=by, mean=mean, low=low, high=high, n=n, decided=decided, acting=acting, accepted=accepted,
        rejected=rejected, audited=flagged & rejected & (decided < len(rounds)) & (not uniform), final=final,
        tolerance=float(tolerance), exhausted=rounds[-1]["images"] == len(order), rounds=rounds,
    )  # fmt: skip


def fresh(found: Elimination, n_images: int, count: int) -> list[tuple[np.ndarray, range]]:
    """Where to estimate the effects of the selected units again: on images that had no part in their selection.

    A unit decided on the first n images of the order is measured on the next `count`.

    Args:
        found: what was decided.
        n_images: images in the order.
        count: images per unit; fewer where the order ends.

    Returns:
        Units `[unit]` and the positions in the order, for each round in which units were accepted; units for which no
        image is left are not in it.
    """
    parts = []
    for drawn in np.unique(found.n[found.selected]):
        units = np.sort(found.selected[found.n[found.selected] == drawn])
        where = range(int(drawn), min(int(drawn) + count, n_images))
        if len(where):
            parts.append((units, where))
    return parts


def _decide(
    live: np.ndarray, score: np.ndarray, low: np.ndarray, high: np.ndarray, places: int, tolerance: float
) -> tuple[list[int], list[int]]:
    """Units to accept and to reject now; places: how many are still to be found among the live ones."""
    surely = high[live] < np.sort(low[live])[-places]
    out, rest = live[surely], live[~surely]
    rest = rest[np.argsort(-score[rest], kind="stable")]  # largest first, ties in the order of the units
    into: list[int] = []
    reach = high[rest] - tolerance
    for place, unit in enumerate(rest):
        if len(into) == places:
            break
        above = int((reach > low[unit]).sum()) - int(reach[place] > low[unit])
        if above < places - len(into):
            into.append(int(unit))
            reach[place] = -np.inf
    return into, out.tolist()


def _sided(low: np.ndarray, high: np.ndarray, by: str) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of what is ranked: of the mean, or of its absolute value."""
    if by == "effect":
        return low, high
    return np.maximum(np.maximum(low, -high), 0.0), np.maximum(np.abs(low), np.abs(high))


def _floor(low: np.ndarray, high: np.ndarray, top: int) -> float:
    """A lower bound of |theta_k|."""
    return float(max(np.sort(low)[-top], -np.sort(high)[-top], 0.0))


def _measured(evaluate: Evaluate, units: np.ndarray, images: np.ndarray) -> np.ndarray:
    values = np.asarray(evaluate(units, images), dtype=np.float64)
    if values.shape != (len(units), len(images)):
        raise ShapeMismatch(
            f"evaluate gave effects of shape {list(values.shape)} for {len(units)} units and {len(images)} images."
        )
    if np.isinf(values).any():
        unit, image = np.argwhere(np.isinf(values))[0]
        raise NotFinite(f"the effect of unit {units[unit]} on image {images[image]} is infinite.")
    return values


def _summary(
    *, top: int, by: str, mean: np.ndarray, low: np.ndarray, high: np.ndarray, n: np.ndarray, decided: np.ndarray,
    acting: np.ndarray, accepted: np.ndarray, rejected: np.ndarray, audited: np.ndarray, final: np.ndarray,
    tolerance: float, exhausted: bool, rounds: list[dict[str, int]],
) -> Elimination:  # fmt: skip
    score = np.abs(mean) if by == "size" else mean
    lower, upper = _sided(low, high, by)
    # Where places are left (no certificate) the best of the live units take them.
    order = sorted(range(len(mean)), key=lambda unit: (not accepted[unit], bool(rejected[unit]), -score[unit]))
    selected = np.array(sorted(order[:top], key=lambda unit: -score[unit]))
    worst = selected[np.argmin(lower[selected])]
    outside = np.setdiff1d(np.arange(len(mean)), selected)
    filled = int(accepted.sum()) == top
    # Units still live when the last place was taken are out as well, where they surely lie below all that are in.
    rejected = rejected | (~accepted & (upper < lower[worst]) & filled)
    # An audited unit contradicts its rejection if it surely lies above a selected one.
    last_low, _ = _sided(final[1], final[2], by)
    above = [int(unit) for unit in np.flatnonzero(audited) if last_low[unit] > upper[selected].min() + tolerance]
    gap = float(max(0.0, upper[outside].max() - lower[worst]))
    return Elimination(
        selected=selected,
        certified=filled and not above,
        status=tuple(np.where(accepted, "accepted", np.where(rejected, "rejected", "undecided")).tolist()),
        mean=mean,
        low=low,
        high=high,
        n=n,
        round=decided,
        acting=acting,
        audited=audited,
        contradicted=tuple(above),
        tolerance=tolerance,
        shortfall=min(gap, tolerance) if filled else gap,
        exhausted=exhausted,
        rounds=tuple(rounds),
    )


def check_settings(
    n_units: int,
    top: int,
    n_images: int,
    *,
    eps: float = 0.1,
    delta: float = 0.05,
    by: str = "effect",
    tails: str = "guarded",
    first: int = FIRST,
    max_images: int | None = None,
    audit: float = 0.0,
    z: float | None = None,
    value_range: float | None = None,
) -> None:
    """Refuse settings of :func:`eliminate` that make no sense, with the errors listed there."""
    if by not in ("effect", "size"):
        raise unknown("ranking", by, ("effect", "size"))
    if tails not in TAILS:
        raise unknown("bound", tails, TAILS)
    if not 1 <= top < n_units:
        raise OutOfRange(
            f"top={top} of {n_units} units: a top-K needs at least 1 and fewer than all. All units are ranked by "
            "mechvis.sweep."
        )
    if n_images == 0:
        raise BadData("no images to draw from.")
    for name, value, fits, range_ in (
        ("eps", eps, 0 <= eps < 1, "at least 0 and below 1"),
        ("delta", delta, 0 < delta < 1, "between 0 and 1"),
        ("audit", audit, 0 <= audit <= 1, "between 0 and 1"),
        ("first", first, first >= FIRST, f"at least {FIRST} (nothing is decided on fewer)"),
        ("max_images", max_images, max_images is None or max_images >= 1, "at least 1"),
        ("z", z, z is None or z > 0, "positive"),
        ("value_range", value_range, value_range is None or value_range > 0, "positive"),
    ):
        if not fits:
            raise OutOfRange(f"{name}={value} must be {range_}.")
