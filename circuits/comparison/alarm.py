"""When is a circuit shift too large? A threshold from shifts whose accuracy is known (methods.md 4.3).

1. Compare labelled, corrupted copies of the reference images (:func:`circuits.comparison.corruptions.ladder`).
2. The threshold is the shift of the one whose accuracy is closest to what is tolerated (**N**).
3. It is never below the 99th percentile of the noise floor (**X**): what the reference set shows of itself is no alarm.

A score that does not go with accuracy gives a threshold all the same, so the result says how the rule does on the very
sets it comes from: the share of bad ones that it finds, and the share of good ones that it cries over.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from circuits.comparison.record import Comparison
from mechvis.errors import BadData, OutOfRange, ResultMismatch


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A threshold for circuit shifts, and how it does on the shifts that it was set by."""

    threshold: float
    """Alarm above it; on the scale of the column `matched`."""
    tolerated: float
    """The lowest accuracy that is accepted."""
    set_by: str
    """The data set whose shift is the threshold, or `noise floor`."""
    accuracy: float
    """Accuracy of that data set; of the reference, if the floor decides."""
    n: int
    """Images on each side of a shift; windows of another size need a threshold of their own."""
    found: float
    """Share of the sets below the tolerated accuracy with an alarm; NaN if there are none."""
    false: float
    """Share of the sets at or above it with an alarm; NaN if there are none."""
    n_sets: int
    """Data sets that it was set by."""

    def __str__(self) -> str:
        return (
            f"alarm above {self.threshold:.3f} (n = {self.n}), set by {self.set_by} (accuracy {self.accuracy:.3f}, "
            f"tolerated {self.tolerated:.3f}); of {self.n_sets} sets: alarm on {_share(self.found)} of the bad ones, "
            f"on {_share(self.false)} of the good ones"
        )


def alarm_threshold(comparison: Comparison, tolerated: float) -> Alarm:
    """Set an alarm by data sets whose accuracy is known.

    Args:
        comparison: of `circuits.compare_data` with labelled sets, all at one number of images.
        tolerated: the lowest accuracy that is accepted, a share such as 0.9.

    Raises:
        ResultMismatch: a comparison of models.
        BadData: no set with an accuracy; sets of different sizes; no set anywhere near the tolerated accuracy, because
            all are better.
        OutOfRange: tolerated is no share between 0 and 1.

    Example:
        >>> known = circuits.compare_data(model, reference, ladder(labelled))                      # doctest: +SKIP
        >>> print(alarm_threshold(known, tolerated=0.9))                                           # doctest: +SKIP
    """
    if comparison.kind != "data":
        raise ResultMismatch("an alarm is set by a comparison of data sets, not of models.")
    if not 0 < tolerated < 1:
        raise OutOfRange(f"tolerated={tolerated}: an accuracy between 0 and 1.")
    table = comparison.table
    sets = table.filter(pl.col("role") == "other")
    if "accuracy" not in table.columns or sets["accuracy"].null_count():
        raise BadData(
            "an alarm is set by sets whose accuracy is known; label all of them, for example with "
            "circuits.comparison.ladder."
        )
    if sets["n"].n_unique() > 1:
        raise BadData(f"the sets were compared at {sets['n'].unique().to_list()} images; pass one window= for all.")
    accuracy, shift = sets["accuracy"].to_numpy(), sets["matched"].to_numpy()
    if accuracy.min() > tolerated:
        raise BadData(
            f"all {len(accuracy)} sets are better than the tolerated {tolerated:.3f} (the worst {accuracy.min():.3f}), "
            "so none shows what too large means. Add stronger corruptions, or tolerate less."
        )
    closest = int(np.argmin(np.abs(accuracy - tolerated)))
    threshold, limit = float(shift[closest]), float(sets["floor_99"].max())
    by_floor = limit >= threshold
    alarms = shift > limit if by_floor else shift >= threshold
    bad = accuracy < tolerated
    home = table.filter(pl.col("role") == "reference")["accuracy"][0]
    return Alarm(
        threshold=max(threshold, limit),
        tolerated=tolerated,
        set_by="noise floor" if by_floor else sets["set"][closest],
        accuracy=float("nan" if home is None else home) if by_floor else float(accuracy[closest]),
        n=int(sets["n"][0]),
        found=float(alarms[bad].mean()) if bad.any() else float("nan"),
        false=float(alarms[~bad].mean()) if (~bad).any() else float("nan"),
        n_sets=len(sets),
    )


def _share(value: float) -> str:
    return "none at hand" if np.isnan(value) else f"{value:.0%}"
