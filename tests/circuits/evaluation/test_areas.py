"""CPR and CMD of curves whose areas are computed by hand."""

import numpy as np
import pytest
from sklearn.metrics import auc

from circuits.evaluation.areas import area, place_on
from mechvis.errors import BadData, ShapeMismatch, UnknownName

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def test_by_hand_on_the_nominal_axis():
    # Three points at 0.2, 0.5, 1 with F = 0.4, 1.2, 1.0.
    faithfulness, fractions, sizes = np.array([0.4, 1.2, 1.0]), np.array([0.2, 0.5, 1.0]), np.array([2, 5, 10])
    assert area("cpr", "nominal", faithfulness, sizes, fractions, 10) == pytest.approx(0.3 * 0.8 + 0.5 * 1.1)
    assert area("cmd", "nominal", faithfulness, sizes, fractions, 10) == pytest.approx(0.3 * 0.4 + 0.5 * 0.1)


def test_by_hand_on_the_realised_axis():
    # Pruning left 1 and 4 of 10 edges, where 2 and 5 were asked for; the axis starts at the empty circuit, F = 0.
    faithfulness, fractions, sizes = np.array([0.4, 1.2, 1.0]), np.array([0.2, 0.5, 1.0]), np.array([1, 4, 10])
    cpr = 0.1 * (0 + 0.4) / 2 + 0.3 * (0.4 + 1.2) / 2 + 0.6 * (1.2 + 1.0) / 2
    cmd = 0.1 * (1 + 0.6) / 2 + 0.3 * (0.6 + 0.2) / 2 + 0.6 * (0.2 + 0.0) / 2
    assert area("cpr", "realised", faithfulness, sizes, fractions, 10) == pytest.approx(cpr)
    assert area("cmd", "realised", faithfulness, sizes, fractions, 10) == pytest.approx(cmd)


def test_by_hand_on_the_log_axis():
    # log2(1 + size) = 1, 2, 3 of 3.
    faithfulness, fractions, sizes = np.array([0.5, 0.5, 1.0]), np.array([0.1, 0.4, 1.0]), np.array([1, 3, 7])
    cpr = (0.25 + 0.5 + 0.75) / 3
    assert area("cpr", "log", faithfulness, sizes, fractions, 7) == pytest.approx(cpr)
    assert area("cmd", "log", faithfulness, sizes, fractions, 7) == pytest.approx(1 - cpr)


def test_the_published_sum_written_out():
    generator = np.random.default_rng(0)
    faithfulness = generator.normal(size=10)
    cpr = cmd = 0.0
    for i in range(9):
        width = FRACTIONS[i + 1] - FRACTIONS[i]
        cpr += width * (faithfulness[i] + faithfulness[i + 1]) / 2
        cmd += width * (abs(1 - faithfulness[i]) + abs(1 - faithfulness[i + 1])) / 2
    sizes = np.floor(np.array(FRACTIONS) * 1000).astype(int)
    assert area("cpr", "nominal", faithfulness, sizes, np.array(FRACTIONS), 1000) == pytest.approx(cpr)
    assert area("cmd", "nominal", faithfulness, sizes, np.array(FRACTIONS), 1000) == pytest.approx(cmd)
    assert cpr == pytest.approx(auc(FRACTIONS, faithfulness)), "and scikit-learn's trapezoids"


@pytest.mark.parametrize("axis", ["realised", "nominal", "log"])
def test_perfect_and_many_curves_at_once(axis):
    sizes, fractions = np.array([1, 5, 10]), np.array([0.1, 0.5, 1.0])
    curves = np.stack([np.ones(3), np.full(3, 2.0)])
    cmd = area("cmd", axis, curves, sizes, fractions, 10)
    assert cmd.shape == (2,)
    # Only the stretch from the empty circuit to the first one is not perfect.
    first = 0.0 if axis == "nominal" else place_on(axis, sizes, fractions, 10)[0] / 2
    assert cmd[0] == pytest.approx(first)
    assert area("cpr", axis, curves[1], sizes, fractions, 10) == pytest.approx(
        2 * area("cpr", axis, curves[0], sizes, fractions, 10)
    )


def test_bad_input():
    sizes, fractions = np.array([1, 10]), np.array([0.1, 1.0])
    with pytest.raises(UnknownName, match="unknown axis 'linear'"):
        place_on("linear", sizes, fractions, 10)
    with pytest.raises(UnknownName, match="unknown area 'auc'"):
        area("auc", "log", np.ones(2), sizes, fractions, 10)
    with pytest.raises(BadData, match="sizes of a curve rise from 0 to 10"):
        place_on("realised", sizes[::-1], fractions, 10)
    with pytest.raises(BadData, match="sizes of a curve rise from 0 to 9"):
        place_on("realised", sizes, fractions, 9)
    with pytest.raises(ShapeMismatch, match="one of each per point"):
        place_on("realised", sizes, np.array([0.1, 0.5, 1.0]), 10)
    with pytest.raises(ShapeMismatch, match="values of faithfulness for 2 points"):
        area("cpr", "log", np.ones(3), sizes, fractions, 10)
