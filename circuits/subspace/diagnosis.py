"""Could a subspace that passes the interchange be an illusion? Eight numbers, never a verdict (methods2.md 16.3).

A patch can work by moving along a *disconnected* direction (it follows the variable on data, nobody reads it) and so
dragging along a *dormant* one (it is read, but never moves on data). With R = R_row + R_null, the parts inside and
outside of what is read:

=======================  ==========================================================================  ==================
number                   formula                                                                     alarm (X)
=======================  ==========================================================================  ==================
row share                sum R_row^2 / k                                                             < 0.5
component test           IIA(R) - max(IIA(R_row alone), IIA(R_null alone)), parts orthonormalised    > 0.2
variance on row part     Var(h u), u along R_row, over the mean of random directions                 < 0.1 while the row
                                                                                                     part moves answers
off-manifold             median percentile of h* among natural h, by Mahalanobis distance            > 0.99
implausible units        share of downstream pre-activations outside their observed range            > 0.05
generalisation drop      IIA(test) - IIA(unseen)                                                     > 0.1
stability                mean cos^2 of principal angles over pairs of seeds; the lowest pair         lowest < 0.5
mean-difference cosine   share of the class-mean differences inside R, as a cosine                   none
=======================  ==========================================================================  ==================

Where we differ (X): stability alarms on the lowest pair of seeds, which is stricter than the mean; the range of a
pre-activation is widened by 10 % of its own range, or of the average range where that is larger; the implausible share
alarms on what exceeds natural test images; a drop on unseen images counts only if the gain over doing nothing drops by
as much, since how often the answer need not change differs between image sets.

None of these numbers is a verdict. A reply to the definition shows that it also flags right directions: these are
rarely exactly inside the row space, and a perfect unread copy of a variable makes every interchange of it off-manifold.
So the word is at most *illusion possible*, and one kind of evidence is not enough for it (X): it takes alarms of two of

* the split: row share, component test;
* the data: variance on row part, off-manifold, implausible units;
* transfer: generalisation drop, stability over seeds;

or the variance alone, which is the definition of a dormant direction that the patch uses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from torch import Tensor

from circuits.subspace.accuracy import accuracy_of, by_rows, changed, judge, patched
from circuits.subspace.directions import mean_differences
from circuits.subspace.draws import Drawer, Draws
from circuits.subspace.interchange import Rows, checked_rows, interchange, orthonormal
from circuits.subspace.manifold import Manifold, percentiles
from circuits.subspace.row_space import RowSpace, row_space_of
from circuits.subspace.splits import Splits
from circuits.subspace.tail import Tail, in_chunks
from circuits.subspace.variable import Variable

ROW_SHARE, COMPONENT, VARIANCE, STRONG, OFF_MANIFOLD, IMPLAUSIBLE, DROP, STABILITY = (
    *(0.5, 0.2, 0.1, 0.2, 0.99, 0.05, 0.1, 0.5),
)
"""Limits of the alarms, in the order of the table; `STRONG`: by how much the row part must raise the accuracy."""

KINDS = {
    "row share": "the split into read and unread parts",
    "component test": "the split into read and unread parts",
    "variance on row part": "the data",
    "off-manifold": "the data",
    "implausible units": "the data",
    "generalisation drop": "transfer",
    "stability over seeds": "transfer",
}
"""Numbers -> the kind of evidence that an alarm of theirs is."""

SUFFICIENT = ("variance on row part",)
"""Numbers of which one alarm is enough for the suspicion."""

FLAGGED, NOT_FLAGGED, NO_EFFECT = "illusion possible", "not flagged", "no effect to judge"
EFFECT = 0.05
"""By how much an interchange must raise the accuracy over doing nothing, else there is nothing to diagnose."""

_PART = 1e-3
"""Parts of R shorter than this are not tested: normalised they would be rounding errors."""
_MARGIN = 0.1
_CHUNK = 32
"""Rows whose pre-activations are held together: there may be many per row."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Diagnosis:
    """The diagnostics of one subspace."""

    table: pl.DataFrame
    """One row per number: `number value alarm_when alarm note`; `alarm` is empty where a number cannot be judged."""
    iia: float
    """Interchange accuracy on the same test pairs."""
    no_edit: float
    """The same without an edit."""

    @property
    def alarms(self) -> tuple[str, ...]:
        """Numbers that alarm."""
        return tuple(self.table.filter(pl.col("alarm").fill_null(False))["number"])

    @property
    def verdict(self) -> str:
        """`illusion possible`, `not flagged`, or `no effect to judge`; never more than a suspicion, and never an
        acquittal."""
        return verdict_of(self.alarms, self.iia - self.no_edit)

    def __getitem__(self, number: str) -> float:
        """The value of one number."""
        return float(self.table.filter(pl.col("number") == number)["value"].item())

    def __repr__(self) -> str:
        return "\n".join(
            [
                f"Diagnosis: {self.verdict} (IIA {self.iia:.3f}, without an edit {self.no_edit:.3f})",
                *lines_of(self.table),
            ]
        )


def verdict_of(alarms: Sequence[str], gain: float = 1.0) -> str:
    """The word for some alarms.

    Args:
        alarms: numbers that alarm.
        gain: by how much the interchange raises the accuracy over doing nothing.

    Example:
        >>> verdict_of(["row share", "component test"]), verdict_of(["row share", "off-manifold"])
        ('not flagged', 'illusion possible')
    """
    if gain < EFFECT:
        return NO_EFFECT
    enough = set(alarms) & set(SUFFICIENT) or len({KINDS[name] for name in alarms}) > 1
    return FLAGGED if enough else NOT_FLAGGED


def lines_of(table: pl.DataFrame) -> list[str]:
    """The table as text."""
    return [
        f"  {row['number']:24} {_shown(row['value']):>7}  {'ALARM' if row['alarm'] else '     '}  "
        f"{row['note']}{' (alarm: ' + row['alarm_when'] + ')' if row['alarm_when'] else ''}"
        for row in table.iter_rows(named=True)
    ]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def diagnose(
    tail: Tail,
    variable: Variable,
    rows: Rows,
    splits: Splits,
    *,
    others: Sequence[Rows] = (),
    space: RowSpace | None = None,
    within: Any = None,
    pairs: int = 2000,
    seed: int = 0,
) -> Diagnosis:
    """Measure everything that is known to tell an illusion from a representation.

    Args:
        tail: activations and the model behind them.
        variable: what the interchange swaps.
        rows: the subspace, orthonormal `[k width]`.
        splits: natural activations are those of `train`; accuracies are on `test`, and on `unseen` where there is one.
        others: the same subspace from other seeds, for the stability.
        space: what is read; default: see :func:`circuits.subspace.row_space_of`.
        within: see :class:`circuits.subspace.Drawer`.
        pairs: number of test pairs, about.
        seed: draws them.

    Raises:
        ShapeMismatch, NotFinite: rows that are no subspace of this hook.

    Example:
        >>> diagnose(tail, variable, rows, splits).verdict       # doctest: +SKIP
        'illusion possible'
    """
    rows = checked_rows(rows, tail.width)
    test = Drawer(splits.test, within=within, seed=seed).rounds(pairs)
    joint, nothing = (accuracy_of(tail, variable, test, part).iia for part in (rows, rows[:0]))
    natural = Manifold.of(tail.h[splits.train])
    space = row_space_of(tail, splits.train, seed=seed) if space is None else space
    found = [
        *_parts(tail, variable, rows, test, (joint, nothing), space, natural),
        _off_manifold(tail, variable, rows, test, splits, natural),
        _units(tail, variable, rows, test, splits),
        _generalisation(tail, variable, rows, splits, (joint, nothing), within, pairs, seed),
        _stability(rows, others),
        _mean_difference(tail, variable, rows, splits),
    ]
    schema = {"number": pl.String, "value": pl.Float64, "alarm_when": pl.String, "alarm": pl.Boolean, "note": pl.String}
    table = pl.DataFrame(found, schema=schema, orient="row").with_columns(pl.col("value").fill_nan(None))
    return Diagnosis(table=table, iia=joint, no_edit=nothing)


Number = tuple[str, float | None, str, bool | None, str]


def _parts(
    tail: Tail,
    variable: Variable,
    rows: Rows,
    test: Draws,
    accuracies: tuple[float, float],
    space: RowSpace | None,
    natural: Manifold,
) -> list[Number]:
    """Row share, component test, variance on the row part."""
    names = (
        ("row share", f"< {ROW_SHARE}"),
        ("component test", f"> {COMPONENT}"),
        ("variance on row part", f"< {VARIANCE}"),
    )
    if space is None or space.everything:
        why = "not known what is read" if space is None else f"everything is read ({space.how}): no parts to compare"
        return [(name, None, limit, None, why) for name, limit in names]
    joint, nothing = accuracies
    inside = space.project(rows)
    share = float(inside.square().sum() / len(rows))
    row, null = (orthonormal(part, at_least=_PART) for part in (inside, rows - inside))
    alone, outside = (accuracy_of(tail, variable, test, part).iia for part in (row, null))
    gap = joint - max(alone, outside)
    found = [
        (*_first(names[0], share), share < ROW_SHARE, space.how),
        (
            *_first(names[1], gap),
            gap > COMPONENT,
            f"joint {joint:.3f}, row part alone {alone:.3f}, null part alone {outside:.3f}",
        ),
    ]
    if not len(row):
        return [*found, (names[2][0], None, names[2][1], None, "no row part")]

    def pushed(base: Tensor, source: Tensor) -> Tensor:
        return base + space.project(interchange(base, source, rows) - base)

    moves = judge(tail, variable, test, patched(tail, test, pushed)).iia - nothing
    raw = natural.variance(row)
    ratio = raw / natural.mean_variance
    note = f"Var {raw:.3g}; what the patch moves inside the row space changes the accuracy by {moves:+.3f}"
    return [*found, (*_first(names[2], ratio), ratio < VARIANCE and moves > STRONG, note)]


def _first(name: tuple[str, str], value: float) -> tuple[str, float, str]:
    return name[0], value, name[1]


def _differing(variable: Variable, pairs: Draws) -> Draws:
    """Pairs whose variable differs: the others are hardly changed, and would water the numbers down."""
    chosen = variable.values[pairs.base] != variable.values[pairs.source]
    return Draws(base=pairs.base[chosen], source=pairs.source[chosen])


def _off_manifold(tail: Tail, variable: Variable, rows: Rows, test: Draws, splits: Splits, natural: Manifold) -> Number:
    pairs = _differing(variable, test)
    own = natural.squared_distance(tail.h[splits.test])
    full = natural.squared_distance(tail.h[pairs.source])
    moved = changed(tail, pairs, by_rows(rows))
    median, swapped = (
        float(percentiles(distance, own).median()) for distance in (natural.squared_distance(moved), full)
    )
    near = float(percentiles(natural.neighbours(moved), natural.neighbours(tail.h[splits.test])).median())
    note = f"by 5 nearest neighbours {near:.3f}; natural activations {swapped:.3f}"
    return "off-manifold", median, f"> {OFF_MANIFOLD}", median > OFF_MANIFOLD, note


def _units(tail: Tail, variable: Variable, rows: Rows, test: Draws, splits: Splits) -> Number:
    name, limit = "implausible units", f"> {IMPLAUSIBLE}"
    if tail.units_of is None:
        return name, None, limit, None, "not known which units follow"
    low, high = _range(tail, splits.train)
    width = (high - low).clamp(min=0)
    margin = _MARGIN * torch.maximum(width, width.mean())
    pairs = _differing(variable, test)

    def outside(h: Tensor, images: Tensor) -> float:
        count = total = 0
        for start in range(0, len(h), _CHUNK):
            units = in_chunks(tail.units_of, h[start : start + _CHUNK], images[start : start + _CHUNK])
            count += int(((units < low - margin) | (units > high + margin)).sum())
            total += units.numel()
        return count / total

    share = outside(changed(tail, pairs, by_rows(rows)), pairs.base)
    before = outside(tail.h[splits.test], splits.test)
    note = f"natural test images {before:.3f}; {len(low)} units"
    return name, share, f"{limit} above natural", share - before > IMPLAUSIBLE, note


def _range(tail: Tail, images: Tensor) -> tuple[Tensor, Tensor]:
    low = high = None
    for start in range(0, len(images), _CHUNK):
        part = images[start : start + _CHUNK]
        least, most = torch.aminmax(in_chunks(tail.units_of, tail.h[part], part), dim=0)
        low = least if low is None else torch.minimum(low, least)
        high = most if high is None else torch.maximum(high, most)
    return low, high


def _generalisation(
    tail: Tail,
    variable: Variable,
    rows: Rows,
    splits: Splits,
    accuracies: tuple[float, float],
    within: Any,
    pairs: int,
    seed: int,
) -> Number:
    name, limit = "generalisation drop", f"> {DROP}"
    if splits.unseen is None:
        return name, None, limit, None, "not measured: hold images out with held_out="
    joint, before = accuracies
    drawn = Drawer(splits.unseen, within=within, seed=seed).rounds(pairs)
    there, nothing = (accuracy_of(tail, variable, drawn, part).iia for part in (rows, rows[:0]))
    drop, lost = joint - there, (joint - before) - (there - nothing)
    note = (
        f"test {joint:.3f} (without an edit {before:.3f}), {len(splits.unseen)} unseen images {there:.3f} "
        f"(without {nothing:.3f})"
    )
    return name, drop, f"{limit}, also over no edit", drop > DROP and lost > DROP, note


def _stability(rows: Rows, others: Sequence[Rows]) -> Number:
    limit = f"lowest < {STABILITY}"
    mean, lowest = stability_of([rows, *others])
    if mean is None:
        return "stability over seeds", None, limit, None, "not measured: one subspace only"
    chance = len(rows) / rows.shape[1]
    note = f"lowest pair {lowest:.3f} of {1 + len(others)} seeds; random subspaces {chance:.3f}"
    return "stability over seeds", mean, limit, lowest < STABILITY, note


def stability_of(subspaces: Sequence[Rows]) -> tuple[float | None, float | None]:
    """Mean cos^2 of the principal angles over all pairs of subspaces, and that of the pair that agrees least.

    Example:
        >>> stability_of([torch.eye(3)[:1], torch.eye(3)[1:2]])
        (0.0, 0.0)
    """
    found = [
        float((subspaces[i] @ subspaces[j].T).square().sum() / len(subspaces[i]))
        for i in range(len(subspaces))
        for j in range(i)
    ]
    return (sum(found) / len(found), min(found)) if found else (None, None)


def _mean_difference(tail: Tail, variable: Variable, rows: Rows, splits: Splits) -> Number:
    differences = mean_differences(tail.h[splits.train], variable.values[splits.train])
    inside = float(((differences @ rows.T).square().sum() / differences.square().sum().clamp(min=1e-30)).sqrt())
    note = f"of {len(differences)} class means; 1 = they lie inside the subspace"
    return "mean-difference cosine", inside, "", None, note
