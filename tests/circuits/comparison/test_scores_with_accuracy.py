"""Correlation with accuracy, baselines, and alarms: against other people's numbers and planted tables."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

from circuits.comparison import Comparison, alarm_threshold
from circuits.comparison.agreement import agreement
from circuits.comparison.baselines import answers, thresholded_confidence
from mechvis.errors import BadData, NotFinite, OutOfRange, ResultMismatch, ShapeMismatch


def test_against_scipy():
    generator = np.random.default_rng(0)
    score = generator.normal(size=15)
    accuracy = score + generator.normal(size=15)
    found = {row["statistic"]: row for row in agreement({"s": score}, accuracy, resamples=200).iter_rows(named=True)}
    assert found["r2"]["value"] == pytest.approx(stats.linregress(score, accuracy).rvalue ** 2)
    assert found["spearman"]["value"] == pytest.approx(stats.spearmanr(score, accuracy).statistic)
    assert found["kendall"]["value"] == pytest.approx(stats.kendalltau(score, accuracy).statistic)
    for row in found.values():
        assert row["low"] < row["value"] < row["high"] and row["n"] == 15


def test_what_is_constant_or_unknown_has_no_number():
    accuracy = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    table = agreement({"flat": np.ones(5), "gap": np.array([1, 2, np.nan, 3, 4.0])}, accuracy, resamples=50)
    assert table.filter(score="flat")["value"].null_count() == 3
    gap = table.filter(score="gap", statistic="spearman").row(0, named=True)
    assert gap["value"] == 1 and gap["n"] == 4
    with pytest.raises(BadData, match="a correlation needs 4"):
        agreement({"s": np.ones(3)}, np.ones(3))
    with pytest.raises(ShapeMismatch, match=r"values \[4\] for accuracies \[5\]"):
        agreement({"s": np.ones(4)}, accuracy)


def test_answers(tiny, pictures):
    images = pictures(20, 1)
    found = answers(tiny, images, batch_size=7)
    p = tiny.run(tiny.inputs(images)).output.softmax(-1).numpy()
    np.testing.assert_allclose(found["confidence"], p.max(1), atol=1e-6)
    np.testing.assert_allclose(found["negative_entropy"], (p * np.log(p)).sum(1), atol=1e-6)
    np.testing.assert_array_equal(found["accuracy"], p.argmax(1) == images.labels)
    assert "accuracy" not in answers(tiny, images.pixels_for(tiny.preprocess).double())


def test_thresholded_confidence_is_the_accuracy_at_home():
    generator = np.random.default_rng(0)
    home = {"confidence": generator.random(200), "accuracy": (generator.random(200) < 0.7).astype(float)}
    assert thresholded_confidence(home, home).mean() == pytest.approx(home["accuracy"].mean(), abs=0.006)
    right = {**home, "accuracy": np.ones(200)}
    assert thresholded_confidence(right, {"confidence": np.array([0.0, 1.0])}).tolist() == [0, 1]
    wrong = {**home, "accuracy": np.zeros(200)}
    assert thresholded_confidence(wrong, {"confidence": np.array([1.0])}).tolist() == [0]
    with pytest.raises(BadData, match="has no labels"):
        thresholded_confidence({"confidence": np.ones(3)}, home)


def test_answers_refuse_what_cannot_be(tiny, pictures):
    headless = replace(tiny.parts, head=None)
    with pytest.raises(BadData, match="no head"):
        answers(type(tiny)(tiny.bare, headless, preprocess=tiny.preprocess), pictures(2, 0))
    broken = replace(tiny.parts, head=lambda pooled: tiny.parts.head(pooled) / torch.zeros(()))
    with pytest.raises(NotFinite, match="images 0 to 1"):
        answers(type(tiny)(tiny.bare, broken, preprocess=tiny.preprocess), pictures(2, 0))


def comparison(accuracy, shift, floor=0.2, n=50):
    sets = [f"set {i}" for i in range(len(accuracy))]
    table = pl.DataFrame(
        {
            "set": ["reference", *sets],
            "role": ["reference"] + ["other"] * len(sets),
            "matched": [0.1, *shift],
            "accuracy": [0.99, *accuracy],
            "n": [n] * (1 + len(sets)),
            "floor_99": [floor] * (1 + len(sets)),
        }
    )
    return Comparison(kind="data", title="planted", table=table)


def test_the_threshold_is_the_shift_of_the_set_nearest_to_what_is_tolerated():
    found = alarm_threshold(comparison([0.97, 0.91, 0.7, 0.5], [0.25, 0.4, 0.6, 0.8]), tolerated=0.9)
    assert (found.threshold, found.set_by, found.accuracy) == (0.4, "set 1", 0.91)
    assert (found.found, found.false, found.n_sets) == (1.0, 0.5, 4)  # set 1 is good, and is the threshold itself
    assert "alarm above 0.400 (n = 50), set by set 1" in str(found)


def test_the_threshold_is_never_below_the_floor():
    found = alarm_threshold(comparison([0.97, 0.91, 0.7], [0.05, 0.1, 0.6]), tolerated=0.9)
    assert (found.threshold, found.set_by, found.accuracy) == (0.2, "noise floor", 0.99)
    assert (found.found, found.false) == (1.0, 0.0)


def test_a_score_that_does_not_go_with_accuracy_says_so():
    found = alarm_threshold(comparison([0.97, 0.91, 0.7, 0.5], [0.8, 0.6, 0.3, 0.25]), tolerated=0.9)
    assert found.found == 0 and found.false == 1
    assert "alarm on 0% of the bad ones, on 100% of the good ones" in str(found)


def test_bad_alarms():
    good = comparison([0.97, 0.91], [0.3, 0.4])
    with pytest.raises(BadData, match=r"all 2 sets are better than the tolerated 0.900 \(the worst 0.910\)"):
        alarm_threshold(good, 0.9)
    with pytest.raises(OutOfRange, match="tolerated=90"):
        alarm_threshold(good, 90)
    with pytest.raises(BadData, match="whose accuracy is known"):
        alarm_threshold(replace(good, table=good.table.drop("accuracy")), 0.95)
    with pytest.raises(BadData, match="pass one window= for all"):
        alarm_threshold(replace(good, table=good.table.with_columns(n=pl.Series([50, 50, 40]))), 0.95)
    with pytest.raises(ResultMismatch, match="not of models"):
        alarm_threshold(replace(good, kind="models"), 0.95)


def test_intervals_are_those_of_a_plain_loop():
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(2, 12)).round(1)  # with ties
    table = agreement({"s": x}, y, resamples=60, seed=5)
    rows = np.random.default_rng(5).integers(0, 12, (60, 12))
    expected = {
        "r2": [np.corrcoef(x[i], y[i])[0, 1] ** 2 for i in rows],
        "spearman": [stats.spearmanr(x[i], y[i]).statistic for i in rows],
        "kendall": [stats.kendalltau(x[i], y[i]).statistic for i in rows],
    }
    for row in table.iter_rows(named=True):
        ends = np.quantile(expected[row["statistic"]], [0.025, 0.975])
        assert (row["low"], row["high"]) == pytest.approx(tuple(ends), abs=1e-9)
