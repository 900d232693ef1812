"""Does a method find a planted circuit? AUROC and average precision of its scores against a known truth.

1. Units graded `active` count as positive, `out` as negative; `structural` as positive instead where that is asked for
   (scores from zero ablation, a second table). `free` and `conditional` are left out, and all grades are counted.
2. Scores count by size unless told otherwise. Ties are treated as ties: AUROC counts them half, average precision takes
   equal scores together (scikit-learn).
3. Exact permutation p-values (:mod:`circuits.evaluation.chance`): with few positives an AUROC says little by itself.
4. One row per family of pairs. Families of one model are never pooled, nor are units of several models: what is
   averaged is rows, over models (benchmark_apps.md A.7).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from circuits.edges.graph import EdgeGraph
from circuits.evaluation.chance import ap_p, auroc_p, checked
from circuits.evaluation.grades import GRADES, Grades, check_grades, edge_scores
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch

FEW = 5
"""Up to so many positives are called few."""


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How well one set of scores recovers the truth of one model under one family of pairs."""

    family: str
    """What the pairs change."""
    positives: str
    """Which grades count as positive."""
    auroc: float
    """Chance that a positive unit scores above a negative one; 0.5: by chance."""
    p_auroc: float
    """Share of all choices of positives with an AUROC at least as large."""
    p_auroc_exact: bool
    """It was counted exactly; otherwise by a normal approximation."""
    ap: float
    """Average precision."""
    p_ap: float
    """The same for the average precision."""
    p_ap_exact: bool
    """All choices were tried; otherwise 10,000 random ones."""
    n: int
    """Units scored."""
    n_positive: int
    """Positive units."""
    chance_ap: float
    """Share of positive units: the average precision of a random ranking is near it."""
    counts: Mapping[str, int]
    """Units of each grade, also of those left out."""
    ties: int
    """Units whose score is also that of a unit of the other kind: a ranking that does not tell them apart."""

    @property
    def few(self) -> bool:
        """So few positives that AUROC and AP must be read with their p-values."""
        return self.n_positive <= FEW

    def __repr__(self) -> str:
        left_out = ", ".join(
            f"{count} {grade}"
            for grade, count in self.counts.items()
            if count and grade not in ("out", *self.positives.split("+"))
        )
        return (
            f"Recovery({self.family!r}: AUROC {self.auroc:.3f} (p = {self.p_auroc:.2g}), AP {self.ap:.3f} "
            f"(p = {self.p_ap:.2g}), {self.n_positive} {self.positives} among {self.n} units"
            f"{f'; left out: {left_out}' if left_out else ''})"
        )


def recovery(
    scores: Any,
    truth: Grades,
    *,
    family: str = "all",
    graph: EdgeGraph | None = None,
    structural: bool = False,
    signed: bool = False,
    metric: str | None = None,
    seed: int = 0,
) -> Recovery:
    """AUROC and AP of scores against a truth.

    Args:
        scores: by name, or edges as a `Result`, a `Circuit` with scores, or `[writer reader]`.
        truth: unit -> grade; the units that are scored, no more and no fewer.
        family: name of the family of pairs that scores and truth are about.
        graph: for scores as an array.
        structural: count `structural` units as positive too (scores from zero ablation).
        signed: by the score with its sign instead of by its size.
        metric: of a result.
        seed: of the random choices behind `p_ap` where there are too many to try all.

    Raises:
        ShapeMismatch: units with a score but no grade, or the other way round; names some.
        UnknownName: no such grade.
        NotFinite: a graded unit whose score is NaN or Inf.
        BadData: no positive unit, or no negative one.

    Example:
        >>> recovery({"a": 3.0, "b": -1.0, "c": 0.5}, {"a": "active", "b": "out", "c": "free"})
        Recovery('all': AUROC 1.000 (p = 0.5), AP 1.000 (p = 0.5), 1 active among 2 units; left out: 1 free)
    """
    values = edge_scores(scores, graph, metric)
    check_grades(truth)
    _same_units(values, truth)
    positives = ("active", "structural") if structural else ("active",)
    names = [name for name, grade in truth.items() if grade in (*positives, "out")]
    numbers = np.array([values[name] for name in names], dtype=np.float64)
    if not np.isfinite(numbers).all():
        bad = [name for name, value in zip(names, numbers, strict=True) if not np.isfinite(value)]
        raise NotFinite(f"{len(bad)} graded units have no finite score, the first is {bad[0]!r}.")
    positive = np.array([truth[name] in positives for name in names], dtype=bool)
    counts = {grade: sum(value == grade for value in truth.values()) for grade in GRADES}
    if not positive.any():
        raise BadData(
            f"no unit is {' or '.join(positives)} under {family!r}: nothing can be found there. On such families count "
            "false alarms instead (circuits.evaluation.false_alarms)."
        )
    numbers, positive = checked(numbers if signed else np.abs(numbers), positive)
    p_auroc, counted = auroc_p(numbers, positive)
    p_ap, tried = ap_p(numbers, positive, seed=seed)
    return Recovery(
        family=family,
        positives="+".join(positives),
        auroc=float(roc_auc_score(positive, numbers)),
        p_auroc=p_auroc,
        p_auroc_exact=counted,
        ap=float(average_precision_score(positive, numbers)),
        p_ap=p_ap,
        p_ap_exact=tried,
        n=len(names),
        n_positive=int(positive.sum()),
        chance_ap=float(positive.mean()),
        counts=counts,
        ties=int(np.isin(numbers, np.intersect1d(numbers[positive], numbers[~positive])).sum()),
    )


def false_alarms(scores: Any, floor: float, *, graph: EdgeGraph | None = None, metric: str | None = None) -> list[str]:
    """Units that score above a noise floor on a family of pairs under which nothing is active, largest first.

    Args:
        scores: as for :func:`recovery`.
        floor: the size of score that noise reaches, in the metric's unit.
        graph: for scores as an array.
        metric: of a result.

    Raises:
        OutOfRange: a negative floor.
        NotFinite: a score that is NaN or Inf.

    Example:
        >>> false_alarms({"a": -0.3, "b": 0.01}, 0.1)
        ['a']
    """
    if not floor >= 0:
        raise OutOfRange(f"floor={floor!r}: a size, from 0 on.")
    values = edge_scores(scores, graph, metric)
    if bad := [name for name, value in values.items() if not np.isfinite(value)]:
        raise NotFinite(f"{len(bad)} scores are NaN or Inf, the first is that of {bad[0]!r}.")
    return sorted((name for name, value in values.items() if abs(value) > floor), key=lambda name: -abs(values[name]))


def recovery_table(found: Mapping[str, Sequence[Recovery]]) -> Any:
    """One row per model and family.

    Args:
        found: model -> its recoveries, one per family (and kind of positives).

    Raises:
        BadData: nothing, or one family twice within a model: pool nothing, average nothing.

    Example:
        >>> recovery_table({"cue-lookup": [cue, payload]})                                         # doctest: +SKIP
    """
    import polars as pl

    rows = []
    for model, each in found.items():
        seen = set()
        for one in each:
            key = (one.family, one.positives)
            if key in seen:
                raise BadData(f"{model!r} has two rows for the family {one.family!r} ({one.positives}).")
            seen.add(key)
            facts = asdict(one)
            counts = facts.pop("counts")
            rows.append({"model": model, **facts, **{f"n_{grade}": counts[grade] for grade in GRADES}})
    if not rows:
        raise BadData("no recovery to tabulate.")
    return pl.DataFrame(rows, infer_schema_length=None)


def over_models(table: Any) -> Any:
    """Means over models, family by family: `family`, `positives`, `models`, `auroc`, `ap`, and the lowest of each.

    Args:
        table: of :func:`recovery_table`.
    """
    import polars as pl

    return table.group_by("family", "positives", maintain_order=True).agg(
        pl.len().alias("models"),
        pl.col("auroc", "ap").mean(),
        pl.col("auroc").min().alias("lowest auroc"),
        pl.col("ap").min().alias("lowest ap"),
    )


def _same_units(scores: Mapping[str, float], truth: Grades) -> None:
    for what, names in (
        ("a score but no grade", [name for name in scores if name not in truth]),
        ("a grade but no score", [name for name in truth if name not in scores]),
    ):
        if names:
            raise ShapeMismatch(
                f"{len(names)} units have {what}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}. Scores and "
                "truth are about the same units; pair_scores and node_scores promote edges to pairs and nodes."
            )
