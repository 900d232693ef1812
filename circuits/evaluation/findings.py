"""What an evaluation says: its numbers as one table, and what speaks against them."""

from collections.abc import Sequence
from typing import Any

from circuits.circuit import Circuit
from circuits.evaluation.completeness import Completeness
from circuits.evaluation.curve import Curve
from circuits.evaluation.faithfulness import Denominator, Share
from circuits.evaluation.random_control import FEW, RandomControl
from circuits.evaluation.sensitivity import spread
from circuits.task import Task
from mechvis.results import Result

UNRELIABLE = 0.05
"""Share of images left out of a mean, or with a denominator of the other sign, above which it is flagged
(faithfulness.md 2.7)."""
ORDERS_APART = 0.25
"""Difference between the two orders of averaging above which it is flagged."""


def measures(
    known: Denominator,
    enough: Share,
    needed: Share,
    controls: Sequence[RandomControl],
    found: Curve | None,
    complete: Completeness | None,
    minimal: Result | None,
    table: Any,
) -> Any:
    """The table of an evaluation: one row per number.

    Args:
        known: the denominator.
        enough: faithfulness.
        needed: necessity.
        controls: random circuits.
        found: the curve, if it was made.
        complete: completeness, if it was searched.
        minimal: minimality, if it was measured.
        table: the sensitivity block, if it was run.
    """
    import polars as pl

    rows: list[dict[str, Any]] = []

    def add(measure: str, value: float | None, n: int, better: str, about: str, **more: Any) -> None:
        if value is not None:
            rows.append({"measure": measure, "value": float(value), "n": n, "better": better, "about": about, **more})

    for name, one, about in (
        ("faithfulness", enough, "what the circuit alone keeps"),
        ("necessity", needed, "what is lost when only the circuit is cut"),
    ):
        add(name, one.value, one.n, "higher", f"{about}; ratio of means", low=one.low, high=one.high)
        ends = {"low": one.mean_low, "high": one.mean_high, "excluded": one.tiny}
        add(f"{name}, mean of ratios", one.mean_of_ratios, one.n - one.tiny, "higher", about, **ends)
    add("m(full) - m(empty)", known.value, enough.n, "", "what shares are shares of", low=known.low, high=known.high)
    for control in controls:
        draws, like = len(control.values), f"random circuits of its size and layer profile ({control.how})"
        add(f"percentile, random {control.how}", control.percentile, draws, "higher", f"of F among {like}")
        add(f"p, random {control.how}", control.p, draws, "lower", f"chance of such an F among {like}")
    if found is not None:
        for kind, better in (("cpr", "higher"), ("cmd", "lower")):
            row = found.area_row(kind)
            ends = {"low": row["low"], "high": row["high"]}
            order = "signed score" if kind == "cpr" else "size of score"
            add(kind.upper(), row["value"], enough.n, better, f"edges by {order}, sizes after pruning", **ends)
            row = found.area_row(kind, axis="log")
            ends = {"low": row["low"], "high": row["high"]}
            add(f"{kind.upper()}, log size", row["value"], enough.n, better, "on a logarithmic axis", **ends)
            row = found.area_row(kind, order="random")
            ends = {"low": row["low"], "high": row["high"]}
            add(f"{kind.upper()}, random order", row["value"], enough.n, "", "edges in random order", **ends)
    if complete is not None:
        ends = {"low": complete.low, "high": complete.high}
        about = f"widest gap to the model over {complete.tried} subsets: a lower bound"
        add("completeness gap", complete.gap, enough.n, "lower", about, **ends)
    if minimal is not None:
        edges = minimal.table
        about = f"share of edges that change nothing ({int(edges['ballast'].sum())} of {edges.height})"
        add("ballast", float(edges["ballast"].mean()), enough.n, "lower", about)
    if table is not None and table["faithfulness"].drop_nulls().len():
        low, high, n = spread(table)
        add("lowest F of all choices", low, n, "", "over ablations, metrics and orders of averaging")
        add("highest F of all choices", high, n, "", "over ablations, metrics and orders of averaging")
    kinds = {"measure": pl.String, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64, "n": pl.Int64}
    kinds |= {"excluded": pl.Int64, "better": pl.String, "about": pl.String}
    return pl.DataFrame(rows, schema=kinds)


def flags(
    task: Task,
    circuit: Circuit,
    judged: Circuit,
    known: Denominator,
    enough: Share,
    controls: Sequence[RandomControl],
    overlap: str,
    table: Any,
) -> tuple[str, ...]:
    """What speaks against the numbers, most serious first.

    Args:
        task: what was measured on.
        circuit: as it was given.
        judged: as it was measured.
        known: the denominator.
        enough: faithfulness.
        controls: random circuits.
        overlap: what is known about images that the circuit was found on.
        table: the sensitivity block, if it was run.
    """
    said = []
    if known.weak:
        said.append(f"m(full) - m(empty) is too small to divide by: {known.weak}")
    if enough.tiny > UNRELIABLE * len(task):
        said.append(
            f"{enough.tiny} of {len(task)} images have a tiny denominator and are left out of the mean of ratios: "
            "unreliable"
        )
    if known.reversed > UNRELIABLE * len(task):
        said.append(
            f"on {known.reversed} of {len(task)} images cutting every edge changes the metric the other way: a circuit "
            "that leaves out what helps on some and hurts on others can look faithful on average; judge them apart"
        )
    if enough.mean_of_ratios is not None and abs(enough.value - enough.mean_of_ratios) > ORDERS_APART:
        said.append(
            f"the two orders of averaging disagree: F is {enough.value:.3f} by the ratio of means, "
            f"{enough.mean_of_ratios:.3f} by the mean of ratios"
        )
    if overlap:
        said.append(overlap)
    if task.undistinguished:
        said.append(f"the model gives one class to both halves of {task.undistinguished} of {len(task)} pairs")
    if len(judged) < len(circuit):
        said.append(f"{len(circuit) - len(judged)} dangling edges are not counted: they lie on no path to the read-out")
    if len(task) < 2:
        said.append("a single image: no intervals")
    for control in controls:
        if len(control.values) < FEW:
            said.append(f"only {len(control.values)} random circuit(s) ({control.how}): p cannot be small")
    if table is not None and (weak := int((table["faithfulness"].is_not_null() & (table["note"] != "")).sum())):
        said.append(f"{weak} rows of the sensitivity block have a denominator too small to divide by (column note)")
    if enough.value > 1 and enough.low is not None and enough.low > 1:
        said.append("more than the whole model does: edges that were left out work against the behaviour")
    return tuple(said)
