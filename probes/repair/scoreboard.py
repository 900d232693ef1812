"""One table for several ways to repair a classifier: accuracy of every group and of the worst one, with intervals."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from mechvis.errors import BadData, ShapeMismatch
from mechvis.stats import bootstrap, interval_of, paired_difference


def scoreboard(
    hits: Mapping[str, np.ndarray], groups: np.ndarray | None, *, first: str = "before", seed: int = 0
) -> pl.DataFrame:
    """Accuracies by group, the worst group's, and their change against the first row, paired by image.

    Args:
        hits: way of repair -> per test image 1 where the class is right, 0 where not (or a mean over draws).
        groups: group of each image; None: one row per way.
        first: what the others are compared with.
        seed: of the bootstrap.

    Returns:
        `what group accuracy low high n change change_low change_high`; the groups are `all`, each group, and `worst`.

    Raises:
        ShapeMismatch: arrays of different lengths.
        BadData: nothing to compare with.

    Example:
        >>> scoreboard({"before": np.array([0.0, 1.0]), "after": np.ones(2)}, None)["accuracy"].to_list()
        [0.5, 1.0]
    """
    if first not in hits:
        raise BadData(f"{first!r} is not among {', '.join(hits)}.")
    n = len(hits[first])
    for what, own in hits.items():
        if np.shape(own) != (n,) or (groups is not None and len(groups) != n):
            raise ShapeMismatch(f"{what!r} has {np.shape(own)} answers for {n} images (groups must have as many).")
    rows: list[dict[str, Any]] = []
    names = [] if groups is None else sorted(np.unique(groups).tolist())
    for what, own in hits.items():
        for group in ["all", *names]:
            some = np.ones(n, bool) if group == "all" else groups == group
            found, change = bootstrap(own[some], seed=seed), paired_difference(own[some], hits[first][some], seed=seed)
            rows.append(
                {
                    "what": what,
                    "group": group,
                    "accuracy": float(found.effect[0]),
                    "low": float(found.low[0]),
                    "high": float(found.high[0]),
                    "n": int(found.n[0]),
                    "change": float(change.effect[0]),
                    "change_low": float(change.low[0]),
                    "change_high": float(change.high[0]),
                }
            )
        if names:
            rows.append({"what": what, "group": "worst", **_worst(own, hits[first], groups, names, seed), "n": n})
    columns = ["what", "group", "accuracy", "low", "high", "n", "change", "change_low", "change_high"]
    return pl.DataFrame(rows).select(columns)


def against(hits: Mapping[str, np.ndarray], groups: np.ndarray | None, *, of: str, seed: int = 0) -> pl.DataFrame:
    """Accuracy of one way minus that of every other, paired by image: is it better than its controls?

    Args:
        hits, groups, seed: as in :func:`scoreboard`.
        of: the way in question.

    Returns:
        `than group difference low high n`.

    Raises:
        BadData: there is no such way.

    Example:
        >>> against({"a": np.ones(2), "b": np.zeros(2)}, None, of="a")["difference"].to_list()
        [1.0]
    """
    if of not in hits:
        raise BadData(f"{of!r} is not among {', '.join(hits)}.")
    rows = []
    for what, other in hits.items():
        for group in ["all", *([] if groups is None else sorted(np.unique(groups).tolist()))]:
            some = np.ones(len(other), bool) if group == "all" else groups == group
            if what != of:
                found = paired_difference(hits[of][some], other[some], seed=seed)
                ends = {"low": float(found.low[0]), "high": float(found.high[0]), "n": int(found.n[0])}
                rows.append({"than": what, "group": group, "difference": float(found.effect[0]), **ends})
    return pl.DataFrame(rows)


def _worst(own: np.ndarray, before: np.ndarray, groups: np.ndarray, names: list[str], seed: int) -> dict[str, float]:
    def worst(hit: np.ndarray, group: np.ndarray) -> float:
        return min((float(hit[group == name].mean()) if (group == name).any() else float("nan")) for name in names)

    value, low, high = interval_of(worst, own, groups, seed=seed, resamples=1000)
    change, change_low, change_high = interval_of(
        lambda a, b, group: worst(a, group) - worst(b, group), own, before, groups, seed=seed, resamples=1000
    )
    found = {"accuracy": value, "low": low, "high": high}
    return found | {"change": change, "change_low": change_low, "change_high": change_high}
