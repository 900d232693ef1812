"""Does a score go with accuracy? R squared, Spearman and Kendall over models or data sets, with intervals.

The unit of resampling is the model (or the data set): with a dozen of them intervals are wide, and that is the point.
Kendall's is tau-b. R squared is that of a straight line, so it does not know the sign: read it beside the others.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData, ShapeMismatch
from mechvis.stats import RESAMPLES

FEWEST = 4
"""Fewer models or data sets than this have no correlation worth a number."""
STATISTICS = ("r2", "spearman", "kendall")


def agreement(
    scores: Mapping[str, Float[np.ndarray, " item"]],
    accuracy: Float[np.ndarray, " item"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Any:
    """Correlation of each score with accuracy.

    Args:
        scores: by name, one number per model or data set; NaN where it is unknown: that one is left out.
        accuracy: the true accuracies, in the same order.
        resamples: of the bootstrap over models or data sets.
        seed: of the bootstrap.

    Returns:
        A polars table, one row per score and statistic: `score`, `statistic` (`r2`, `spearman`, `kendall`), `value`,
        `low`, `high` (95 %), `n`. The value is null where a score or the accuracy does not vary.

    Raises:
        ShapeMismatch: scores and accuracies of different length.
        BadData: fewer than four models or data sets.

    Example:
        >>> agreement({"ddb": np.array([1.0, 2.0, 3.0, 4.0])}, np.array([0.5, 0.6, 0.7, 0.9]))["value"][1]
        1.0
    """
    import polars as pl

    accuracy = np.asarray(accuracy, dtype=np.float64)
    rows = []
    for name, values in scores.items():
        values = np.asarray(values, dtype=np.float64)
        if values.shape != accuracy.shape or values.ndim != 1:
            raise ShapeMismatch(
                f"{name!r} has values {list(values.shape)} for accuracies {list(accuracy.shape)}; one each is needed."
            )
        known = np.isfinite(values) & np.isfinite(accuracy)
        if known.sum() < FEWEST:
            raise BadData(
                f"{name!r} is known of {known.sum()} models or data sets with an accuracy; a correlation needs "
                f"{FEWEST}."
            )
        x, y = values[known], accuracy[known]
        # One set of resamples for every score: differences between scores are not those of luck.
        drawn = np.random.default_rng(seed).integers(0, len(x), (resamples, len(x)))
        for statistic in STATISTICS:
            value = float(_statistic(statistic, x, y))
            low, high = _ends(_statistic(statistic, x[drawn], y[drawn]))
            rows.append({"score": name, "statistic": statistic, "value": value, "low": low, "high": high, "n": len(x)})
    return pl.DataFrame(rows).with_columns(pl.col("value", "low", "high").fill_nan(None))


def _statistic(name: str, x: Float[np.ndarray, "*draw item"], y: Float[np.ndarray, "*draw item"]) -> np.ndarray:
    """The statistic over the last axis; NaN where a side does not vary."""
    if name == "kendall":
        # Tau-b over all pairs: scipy's makes a p-value with every call, and the bootstrap asks thousands of times.
        x, y = (
            np.sign(values[..., :, None] - values[..., None, :]).reshape(*values.shape[:-1], -1) for values in (x, y)
        )
    elif name == "spearman":
        from scipy.stats import rankdata

        x, y = rankdata(x, axis=-1), rankdata(y, axis=-1)
    x, y = (values - values.mean(-1, keepdims=True) for values in (x, y))
    constant = (np.ptp(x, axis=-1) == 0) | (np.ptp(y, axis=-1) == 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.where(constant, np.nan, np.clip(r * r if name == "r2" else r, -1, 1))


def _ends(draws: Float[np.ndarray, " draw"]) -> tuple[float, float]:
    """The middle 95 % of the resamples; none if more than 5 % of them are undefined."""
    defined = draws[np.isfinite(draws)]
    if len(defined) < 0.95 * len(draws):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)
