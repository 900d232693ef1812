"""Explanation disparity: noise that is doubled for one group is seen, lower confidence alone is told apart."""

import numpy as np
import pytest

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch
from probes.concept_scope import explanation_disparity


def drawn(case, n=600, seed=0):
    """Quality falls with confidence in both groups; in `noise` group b's maps are noisier; in `confidence` group b is
    merely less sure."""
    generator = np.random.default_rng(seed)
    groups = np.array(["a", "b"])[generator.integers(0, 2, n)]
    predicted = generator.integers(0, 3, n)
    second = groups == "b"
    confidence = generator.uniform(0.4, 1.0, n)
    if case == "confidence":
        confidence = np.where(second, generator.uniform(0.4, 0.85, n), generator.uniform(0.55, 1.0, n))
    noise = np.where(second & (case == "noise"), 0.4, 0.2)
    quality = 2 * confidence - np.abs(noise * generator.normal(size=n))
    return quality, groups, predicted, confidence


def rows(*args, **settings):
    found = explanation_disparity({"map": args[0]}, *args[1:], permutations=500, resamples=200, **settings)
    return {row["comparison"]: row for row in found.table.iter_rows(named=True)}


def test_doubled_noise_is_found_raw_and_matched():
    found = rows(*drawn("noise"))
    assert found["raw"]["p_adjusted"] < 0.05 and found["matched"]["p_adjusted"] < 0.05
    expected = 0.2 * np.sqrt(2 / np.pi)
    assert found["matched"]["low"] < expected < found["matched"]["high"]


def test_lower_confidence_alone_differs_raw_and_not_matched():
    found = rows(*drawn("confidence"), bins=40)
    assert found["raw"]["p_adjusted"] < 0.01 and found["raw"]["delta"] > 0.2
    assert found["matched"]["p"] > 0.05 and abs(found["matched"]["delta"]) < 0.2 * found["raw"]["delta"]


def test_five_bins_remove_most_of_a_confidence_difference():
    """Bins are coarse: inside one, the groups' confidences still differ a little."""
    found = rows(*drawn("confidence"))
    assert abs(found["matched"]["delta"]) < 0.5 * found["raw"]["delta"]


def test_no_difference_is_no_finding():
    p = [rows(*drawn("none", seed=seed))["raw"]["p"] for seed in range(8)]
    assert sum(value < 0.05 for value in p) <= 2


def test_by_hand():
    quality = np.array([1.0, 2.0, 3.0, 10.0, 20.0, 5.0])
    groups = np.array(["a", "b", "a", "a", "b", "a"])
    predicted = np.array([0, 0, 0, 1, 1, 2])
    found = explanation_disparity(
        {"q": quality}, groups, predicted, np.full(6, 0.9), bins=1, permutations=10, resamples=20, first="b"
    )
    by = {row["comparison"]: row for row in found.table.iter_rows(named=True)}
    assert by["raw"]["delta"] == pytest.approx(11 - 19 / 4) and by["raw"]["n"] == 6
    # Cell 0: 2 - 2 = 0 (3 images); cell 1: 20 - 10 (2 images); cell 2 holds one group only.
    assert by["matched"]["delta"] == pytest.approx((0 * 3 + 10 * 2) / 5) and by["matched"]["n"] == 5


def test_bad_input():
    quality, groups, predicted, confidence = drawn("none", n=40)
    with pytest.raises(BadData, match="between two groups, got 1"):
        explanation_disparity({"q": quality}, np.full(40, "a"), predicted, confidence)
    with pytest.raises(BadData, match="no image is of the group 'c'"):
        explanation_disparity({"q": quality}, groups, predicted, confidence, first="c")
    with pytest.raises(ShapeMismatch, match="'q' has the shape"):
        explanation_disparity({"q": quality[:5]}, groups, predicted, confidence)
    with pytest.raises(NotFinite, match="'confidence' holds NaN"):
        explanation_disparity({"q": quality}, groups, predicted, confidence * np.nan)
    with pytest.raises(OutOfRange, match="bins=0"):
        explanation_disparity({"q": quality}, groups, predicted, confidence, bins=0)
    with pytest.raises(BadData, match="no quality"):
        explanation_disparity({}, groups, predicted, confidence)
    with pytest.raises(BadData, match="use fewer bins or more images"):
        explanation_disparity({"q": quality}, groups, (groups == "a").astype(int), confidence, permutations=5)
