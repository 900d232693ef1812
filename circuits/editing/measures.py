"""The rows of a before/after table: what each one measures, on which images, and how sure the change is.

A measure is a statistic of columns of numbers per image, over some of the images. Every change is paired: both models
see the same images, so what an image is worth to either cancels. Means of one column get a bootstrap interval and the
p-value of the sign-flip test (for accuracies that is McNemar's exact test); other statistics (worst group, BIR,
calibration error) a percentile interval. The rows of groups and classes are one family for Holm's correction: the
question to them is whether *any* of them has lost (methods2.md 20.5).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from circuits.editing.measured import Known, PerImage
from circuits.information import background_influence_ratio
from circuits.outcome import calibration_error
from mechvis import stats

Columns = Mapping[str, PerImage]


@dataclass(frozen=True, kw_only=True, eq=False)
class Measure:
    """One row."""

    name: str
    """What it is called: also the name by which it can be the gain."""
    kind: Literal["all", "group", "class"] = "all"
    """What it is about."""
    columns: tuple[str, ...]
    """What it is made of."""
    statistic: Callable[..., float] | None = None
    """Of these columns; None: the mean of the one."""
    where: Bool[np.ndarray, " image"]
    """Which images."""
    better: Literal["higher", "lower"] = "higher"
    """Which way is an improvement."""

    @property
    def sign(self) -> int:
        """+1 where higher is better."""
        return 1 if self.better == "higher" else -1

    def value(self, found: Columns) -> float:
        """The measure of one model."""
        chosen = [found[name][self.where] for name in self.columns]
        return float(np.mean(chosen[0]) if self.statistic is None else self.statistic(*chosen))

    def row(self, before: Columns, after: Columns, seed: int) -> dict[str, Any]:
        """Before, after, and the change with its interval."""
        first = [before[name][self.where] for name in self.columns]
        second = [after[name][self.where] for name in self.columns]
        p = None
        if self.statistic is None:
            change = second[0] - first[0]
            found = stats.bootstrap(change, seed=seed)
            point, low, high = (float(value[0]) for value in (found.effect, found.low, found.high))
            p = float(stats.sign_flip_p(change, seed=seed)[0])
        else:
            k = len(first)

            def change_of(*both: np.ndarray) -> float:
                return self.statistic(*both[k:]) - self.statistic(*both[:k])

            point, low, high = stats.interval_of(change_of, *first, *second, seed=seed)
        ends = [None if np.isnan(end) else end for end in (low, high)]
        return {
            "measure": self.name,
            "kind": self.kind,
            "better": self.better,
            "before": self.value(before),
            "after": self.value(after),
            "change": point,
            "low": ends[0],
            "high": ends[1],
            "n": int(self.where.sum()),
            "p": p,
        }


def measures_of(known: Known, columns: Columns, untouched: Bool[np.ndarray, " image"]) -> list[Measure]:
    """All measures of some images.

    Args:
        known: about the images.
        columns: of either model; those of the views are there or not.
        untouched: images of the classes that the edit is not meant to change.
    """
    every = np.ones(len(known.images), dtype=bool)
    found = [
        Measure(name="accuracy", columns=("correct",), where=every),
        Measure(name=known.metric_name, columns=("metric",), where=every),
        Measure(name="NLL (nats)", columns=("nll",), where=every, better="lower"),
        Measure(
            name="calibration error",
            columns=("confidence", "correct"),
            statistic=calibration_error,
            where=every,
            better="lower",
        ),
        Measure(name="KL to before, untouched classes (nats)", columns=("kl",), where=untouched, better="lower"),
    ]
    if "big" in columns:
        found += [
            Measure(
                name="BIR",
                columns=("big", "fig"),
                statistic=background_influence_ratio,
                where=every,
                better="lower",
            ),
            Measure(name="BIG (nats)", columns=("big",), where=every, better="lower"),
            Measure(name="FIG (nats)", columns=("fig",), where=every),
            Measure(name="accuracy, object only", columns=("object_only",), where=every),
            Measure(name="accuracy, context only", columns=("context_only",), where=every, better="lower"),
        ]
    if known.groups is not None:
        codes = {name: code for code, name in enumerate(np.unique(known.groups))}
        found.append(Measure(name="worst group", columns=("correct", "group"), statistic=worst, where=every))
        for name in codes:
            found.append(Measure(name=f"group: {name}", kind="group", columns=("correct",), where=known.groups == name))
    for index in np.unique(known.labels):
        name = f"class: {known.class_name(int(index))}"
        found.append(Measure(name=name, kind="class", columns=("correct",), where=known.labels == index))
    return [measure for measure in found if measure.where.any()]


def with_groups(columns: Columns, known: Known) -> dict[str, PerImage]:
    """The columns with the groups as numbers, where there are groups."""
    if known.groups is None:
        return dict(columns)
    return {**columns, "group": np.unique(known.groups, return_inverse=True)[1].astype(np.float64)}


def worst(correct: PerImage, group: PerImage) -> float:
    """Accuracy of the worst group.

    Example:
        >>> worst(np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 1.0]))
        0.5
    """
    return float(min(correct[group == code].mean() for code in np.unique(group)))


def holm_family(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `p_holm` for groups and classes: adjusted over all of them together."""
    family = [place for place, row in enumerate(rows) if row["kind"] != "all"]
    adjusted = stats.holm(np.array([rows[place]["p"] for place in family], dtype=np.float64))
    by_place = dict(zip(family, adjusted.tolist(), strict=True))
    return [{**row, "p_holm": by_place.get(place)} for place, row in enumerate(rows)]
