"""Where predictions settle: the counts of F7, brute force, and shuffled anchors, which must fail."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch
from probes.timeline import by_anchor, decision_layer, fell_back, settle, settle_conf, shuffled_anchors, summary_of
from probes.timeline.depth import sweep_of
from probes.timeline.settle import NEVER, decision_layer_plain, settle_plain

T = 11


@pytest.fixture(scope="module")
def f7():
    """300 constant; 300 that change until anchor 9 and then stay; 300 that never repeat; 100 with anchors 0 to 3 equal,
    then changing, then constant from 9 (methods.md 3.1)."""
    changing = np.arange(T + 1)
    constant = np.zeros(T + 1, int)
    until_9 = np.where(changing < 9, changing, 9)
    stable_first = np.array([0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 6, 6])
    rows = [*[constant] * 300, *[until_9] * 300, *[changing] * 300, *[stable_first] * 100]
    return np.array(rows)


def counts(layers):
    return {int(value): int(n) for value, n in zip(*np.unique(layers, return_counts=True), strict=True)}


@pytest.mark.parametrize(
    ("k", "expected", "mean"),
    [
        (1, {0: 400, 9: 300, 11: 300}, 6.00),
        (2, {0: 400, 9: 300, 11: 300}, 6.00),
        (3, {0: 400, 11: 600}, 6.60),
        (4, {0: 300, 11: 700}, 7.70),
    ],
)
def test_f7(f7, k, expected, mean):
    layers = decision_layer(f7, k)
    assert counts(layers) == expected and layers.mean() == pytest.approx(mean)
    assert fell_back(f7, k).sum() == expected[11]
    np.testing.assert_array_equal(layers, decision_layer_plain(f7, k))


def test_f7_settles(f7):
    assert counts(settle(f7)) == {0: 300, 9: 400, 11: 300}
    np.testing.assert_array_equal(settle(f7), settle_plain(f7))


def test_the_two_definitions_differ_exactly_on_the_stable_that_change(f7):
    different = decision_layer(f7, 2) != settle(f7)
    assert different.sum() == 100 and different[-100:].all()


def test_shuffled_anchors_lose_the_counts(f7):
    mixed = f7[:, np.random.default_rng(0).permutation(T + 1)]
    assert counts(settle(mixed)) != counts(settle(f7)) and counts(decision_layer(mixed, 2)) != counts(
        decision_layer(f7, 2)
    )
    control = shuffled_anchors(f7, draws=30)
    assert control["settle"] > control["observed_settle"] and control["p"] == pytest.approx(1 / 31)
    never = np.tile(np.arange(4), (50, 1))
    assert shuffled_anchors(never, draws=10)["p"] == 1.0, "where order carries nothing, the control says so"


@given(st.integers(2, 8), st.integers(1, 3), st.integers(0, 10_000))
def test_brute_force(anchors, classes, seed):
    predictions = np.random.default_rng(seed).integers(0, classes, (6, anchors))
    for k in range(1, anchors):
        layers = decision_layer(predictions, k)
        np.testing.assert_array_equal(layers, decision_layer_plain(predictions, k))
        between = (layers > anchors - 1 - k) & (layers < anchors - 1)
        assert not between.any(), "anchors T-k+1 to T-1 can never come out"
        assert (fell_back(predictions, k) == (layers == anchors - 1)).all()
    np.testing.assert_array_equal(settle(predictions), settle_plain(predictions))


@given(st.integers(2, 6), st.floats(0, 1), st.integers(0, 10_000))
def test_settle_with_confidence_by_brute_force(anchors, p, seed):
    rng = np.random.default_rng(seed)
    probability = rng.dirichlet(np.ones(3) * 0.4, (5, anchors))
    predictions = probability.argmax(-1)
    found = settle_conf(predictions, probability, p)
    for image, at in enumerate(found):
        final = predictions[image, -1]
        holds = [predictions[image, m] == final and probability[image, m, final] >= p for m in range(anchors)]
        expected = next((start for start in range(anchors) if all(holds[start:])), NEVER)
        assert at == expected
    np.testing.assert_array_equal(settle_conf(predictions, probability, 0.0), settle(predictions))


def test_shares_and_cumulative_curves(f7):
    at = by_anchor(f7, k=2)
    assert at["decided"][0] == 0.4 and at["decided"][9] == 0.3 and at["decided"][11] == 0, "the fallback is apart"
    assert at["cumulative"][-1] == pytest.approx(0.7) and at["cumulative_settled"][-1] == pytest.approx(1.0)
    line = summary_of(f7, np.zeros(len(f7), int), k=2, draws=200, resamples=200)
    assert (line["early"], line["middle"], line["late"], line["fallback"]) == pytest.approx((0.4, 0.0, 0.3, 0.3))
    assert line["mean"] == pytest.approx(6.0) and line["mean_stable"] == pytest.approx(2700 / 700)
    assert line["mean_low"] < 6 < line["mean_high"] and line["n"] == 1000
    assert line["stable_wrong"] == pytest.approx(0.3) and line["wrong_if_stable"] == pytest.approx(3 / 7)
    assert line["stable_then_changes"] == pytest.approx(0.1), "stable on 0, finally 6"
    assert line["dip_p"] < 0.02, "two clusters"
    sweep = sweep_of(f7, resamples=100)
    assert [row["mean"] for row in sweep] == pytest.approx([6.0, 6.0, 6.6, 7.7])
    assert [row["fallback"] for row in sweep] == pytest.approx([0.3, 0.3, 0.6, 0.7])


def test_without_labels_nothing_is_said_of_right_and_wrong(f7):
    line = summary_of(f7, None, draws=0, resamples=50)
    assert "stable_wrong" not in line and "dip" not in line


def test_bad_input(f7):
    with pytest.raises(OutOfRange, match="1 to 11 for 12 anchors"):
        decision_layer(f7, 12)
    with pytest.raises(ShapeMismatch, match="two anchors or more"):
        settle(np.zeros((3, 1), int))
    with pytest.raises(BadData, match="class numbers"):
        settle(np.array([[0.5, 1.0]]))
    probability = np.full((1000, 12, 12), 1 / 12)
    with pytest.raises(ShapeMismatch, match=r"\[image anchor class\]"):
        settle_conf(f7, probability[:, :3], 0.5)
    with pytest.raises(OutOfRange, match="between 0 and 1"):
        settle_conf(f7, probability, 1.5)
    with pytest.raises(OutOfRange, match="classes 0 to 2"):
        settle_conf(f7, probability[..., :3], 0.5)
    with pytest.raises(NotFinite, match="NaN"):
        settle_conf(f7, np.full((1000, 12, 12), np.nan), 0.5)
    with pytest.raises(OutOfRange, match=r"early=0\.8"):
        summary_of(f7, None, early=0.8, late=0.7, draws=0, resamples=10)
