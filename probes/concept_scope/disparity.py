"""Are explanations worse for one group of images than for another? Raw and matched (methods2.md 17.10).

    delta = mean q(first group) - mean q(second group),  standardised by the pooled standard deviation

for a quality `q` of explanations (faithfulness, robustness, complexity), with a permutation test over images, adjusted
by Holm over everything that is compared. A group on which the model is less sure often has worse explanations for that
reason alone. So the *matched* difference compares images of the same predicted class and confidence (5 bins) only, and
permutes within these cells.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import holm, interval_of


class Disparity(Record):
    """Differences of explanation quality between two groups; see :func:`explanation_disparity`."""

    KIND = "explanation_disparity"


def explanation_disparity(
    qualities: Mapping[str, Float[np.ndarray, " image"]],
    groups: np.ndarray,
    predicted: Int[np.ndarray, " image"],
    confidence: Float[np.ndarray, " image"],
    *,
    first: Any = None,
    bins: int = 5,
    permutations: int = 2000,
    resamples: int = 1000,
    seed: int = 0,
) -> Disparity:
    """Raw and matched difference of the quality of explanations between two groups.

    Args:
        qualities: name (explainer and metric) -> quality per image.
        groups: group of each image; exactly two.
        predicted: predicted class of each image.
        confidence: probability of the predicted class.
        first: the group whose mean comes first; default: the first in sorted order.
        bins: of the confidence, with equally many images each (**X**: quantiles).
        permutations: of the test; the smallest p is 1 / (permutations + 1).
        resamples: of the bootstrap.
        seed: of both.

    Returns:
        Disparity: `quality comparison delta low high standardised p p_adjusted n`, `comparison` is `raw` or `matched`;
        `n` counts images that have a partner in the other group.

    Raises:
        BadData: not two groups, or no cell with both of them.
        ShapeMismatch: not one value per image.
        NotFinite: NaN or Inf.
        OutOfRange: no bin or no permutation.

    Example:
        >>> explanation_disparity({"rollout, deletion": q}, groups, predicted, confidence).table   # doctest: +SKIP
    """
    groups, predicted = np.asarray(groups), np.asarray(predicted)
    confidence = np.asarray(confidence, np.float64)
    kinds = np.unique(groups)
    if len(kinds) != 2:
        raise BadData(f"a disparity is between two groups, got {len(kinds)}: {kinds[:5].tolist()}.")
    if first is not None and first not in kinds:
        raise BadData(f"no image is of the group {first!r}; groups are {kinds.tolist()}.")
    if bins < 1 or permutations < 1:
        raise OutOfRange(f"bins={bins}, permutations={permutations}: at least one of each.")
    if not qualities:
        raise BadData("no quality is given: nothing to compare.")
    names = {"predicted": predicted, "confidence": confidence, **qualities}
    for name, values in names.items():
        if np.shape(values) != groups.shape:
            raise ShapeMismatch(f"{name!r} has the shape {list(np.shape(values))}, groups {list(groups.shape)}.")
        if not np.isfinite(np.asarray(values, np.float64)).all():
            raise NotFinite(f"{name!r} holds NaN or Inf.")
    first = kinds[0] if first is None else first
    one = groups == first
    edges = np.quantile(confidence, np.linspace(0, 1, bins + 1)[1:-1])
    everything = np.zeros(len(groups), np.int64)
    matched = np.unique(np.stack([predicted, np.digitize(confidence, edges)]), axis=1, return_inverse=True)[1].ravel()
    rows = []
    for name, values in qualities.items():
        values = np.asarray(values, np.float64)
        for comparison, cells in (("raw", everything), ("matched", matched)):
            found = _compared(values, one, cells, permutations, resamples, seed)
            rows.append({"quality": name, "comparison": comparison, **found})
    table = pl.DataFrame(rows)
    table = table.with_columns(p_adjusted=pl.Series(holm(table["p"].to_numpy())))
    other = kinds[kinds != first][0]
    return Disparity(
        title=f"Quality of explanations: {first} against {other}",
        tables={"differences": table},
        facts={"first": str(first), "second": str(other), "bins": bins, "permutations": permutations},
        words={
            "delta": f"mean quality of {first} minus that of {other}; matched: within cells, weighted by their images",
            "standardised": "delta over the pooled standard deviation",
            "p": "permutation test over images (within cells if matched)",
            "p_adjusted": "adjusted for all rows (Holm)",
            "n": "images in cells that hold both groups",
        },
        caveats=("A raw difference that vanishes when matched is one of the model's confidence, not of explanations.",),
        provenance=provenance(seed=seed),
    )


def _compared(
    values: np.ndarray, one: np.ndarray, cells: np.ndarray, permutations: int, resamples: int, seed: int
) -> dict[str, Any]:
    both = [cell for cell in np.unique(cells) if one[cells == cell].any() and (~one[cells == cell]).any()]
    used = np.isin(cells, both)
    if not used.any():
        raise BadData("no predicted class and confidence holds images of both groups: use fewer bins or more images.")
    values, one, cells = values[used], one[used], cells[used]
    delta, low, high = interval_of(_difference, values, one, cells, resamples=resamples, seed=seed)
    spread = np.sqrt((values[one].var() * one.sum() + values[~one].var() * (~one).sum()) / len(values))
    generator, hits = np.random.default_rng(seed), 0
    members = [np.flatnonzero(cells == cell) for cell in np.unique(cells)]
    for _ in range(permutations):
        shuffled = one.copy()
        for where in members:
            shuffled[where] = one[generator.permutation(where)]
        hits += abs(_difference(values, shuffled, cells)) >= abs(delta) - 1e-12
    return {
        "delta": delta,
        "low": low,
        "high": high,
        "standardised": float(delta / spread) if spread > 0 else 0.0,
        "p": (hits + 1) / (permutations + 1),
        "n": len(values),
    }


def _difference(values: np.ndarray, one: np.ndarray, cells: np.ndarray) -> float:
    """Mean over cells of the difference, weighted by the cells' images; cells without both groups are left out."""
    _, index = np.unique(cells, return_inverse=True)
    n_one, n_other = np.bincount(index, one), np.bincount(index, ~one)
    both = (n_one > 0) & (n_other > 0)
    if not both.any():
        return float("nan")
    first = np.bincount(index, values * one)[both] / n_one[both]
    second = np.bincount(index, values * ~one)[both] / n_other[both]
    weight = (n_one + n_other)[both]
    return float(((first - second) * weight).sum() / weight.sum())
