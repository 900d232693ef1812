"""Hartigan's dip: the published example, closed cases, and the definition itself as a linear programme."""

import numpy as np
import pytest
from scipy.optimize import linprog

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch
from probes.timeline import dip, dip_test

FACULTY = [
    30, 33, 35, 36, 37, 37, 39, 39, 39, 39, 39, 40, 40, 40, 40, 41, 42, 43, 43, 43, 44, 44, 45, 45, 46, 46, 47, 47,
    48, 48, 48, 49, 50, 50, 51, 52, 52, 53, 53, 53, 53, 53, 54, 54, 57, 57, 59, 60, 60, 60, 61, 61, 61, 61, 62, 62,
    62, 62, 63, 66, 70, 72, 72,
]  # fmt: skip
"""Quality of 63 statistics departments: the example of Hartigan and Hartigan (1985)."""


def test_published_value():
    """0.0595 in the paper; 0.05952381 in the reference implementation."""
    assert dip(np.array(FACULTY)) == pytest.approx(0.05952381, abs=1e-8)
    assert dip_test(np.array(FACULTY), draws=500).p == pytest.approx(0.09, abs=0.05)


def test_closed_cases():
    for n in (2, 5, 40):
        assert dip(np.arange(n)) == pytest.approx(0.5 / n), "evenly spaced: as flat as data can be"
        assert dip(np.zeros(n)) == pytest.approx(0.5 / n)
    assert dip(np.repeat([0.0, 1.0], 10)) == pytest.approx(0.25), "half here, half there: the largest dip there is"
    rng = np.random.default_rng(0)
    values = rng.normal(size=30)
    assert dip(3 * values + 7) == pytest.approx(dip(values)) == pytest.approx(dip(-values))
    assert dip(values) == dip(rng.permutation(values))


def by_linear_programme(values):
    """The smallest distance to a distribution function that is convex up to a mode, and concave after it."""
    x, counts = np.unique(values, return_counts=True)
    upper = np.cumsum(counts) / counts.sum()
    lower, m, best = upper - counts / counts.sum(), len(x), 1.0
    for mode in range(m):
        left, right = mode + 1, m - mode
        size, rows, bounds = left + right + 1, [], []

        def below(bound, size=size, rows=rows, bounds=bounds, **terms):
            row = np.zeros(size)
            for place, weight in terms.items():
                row[int(place[1:])] += weight
            rows.append(row)
            bounds.append(bound)

        last = size - 1
        for i in range(left):
            below(lower[i], **{f"v{i}": 1, f"v{last}": -1})
            below(-(upper[i] if i < mode else lower[i]), **{f"v{i}": -1, f"v{last}": -1})
        for i in range(mode, m):
            at = left + i - mode
            below(-upper[i], **{f"v{at}": -1, f"v{last}": -1})
            below(lower[i] if i > mode else upper[i], **{f"v{at}": 1, f"v{last}": -1})
        for i in range(size - 2):
            below(0, **{f"v{i}": 1, f"v{i + 1}": -1})
        for sign, start, places in ((1, 0, range(1, left - 1)), (-1, left - mode, range(mode + 1, m - 1))):
            for i in places:
                before, after, at = x[i] - x[i - 1], x[i + 1] - x[i], start + i
                weights = {f"v{at}": 1 / before + 1 / after, f"v{at - 1}": -1 / before, f"v{at + 1}": -1 / after}
                below(0, **{place: sign * weight for place, weight in weights.items()})
        goal = np.zeros(size)
        goal[-1] = 1
        found = linprog(goal, A_ub=np.array(rows), b_ub=bounds, bounds=[(None, None)] * last + [(0, None)])
        if found.status == 0:
            best = min(best, found.fun)
    return max(best, 0.5 / counts.sum())


def test_the_definition():
    rng = np.random.default_rng(0)
    for trial in range(40):
        n = int(rng.integers(2, 12))
        values = rng.normal(size=n) if trial % 2 else rng.integers(0, rng.integers(2, 9), n).astype(float)
        if trial % 3 == 0:
            values = np.concatenate([values, values + 5])
        assert dip(values) == pytest.approx(by_linear_programme(values), abs=1e-9), sorted(values)


def test_layers_are_compared_with_layers():
    """A flat histogram over twelve anchors is no sign of two peaks, though its ties make the dip large."""
    flat = np.random.default_rng(0).integers(0, 12, 300)
    assert dip_test(flat, anchors=12, draws=300).p > 0.05
    assert dip_test(flat, draws=100).p < 0.02, "against a continuous distribution it would be"
    assert dip_test(np.repeat([4, 5, 6, 7], [20, 120, 110, 30]), anchors=12, draws=300).p > 0.5, "one peak, few anchors"
    assert dip_test(np.repeat([1, 2, 9, 10], [50, 60, 70, 50]), anchors=12, draws=300).p == pytest.approx(1 / 301)
    assert dip_test(np.repeat([0, 11], 150), anchors=12, draws=300).p == pytest.approx(1 / 301)
    one_peak = np.random.default_rng(1).binomial(11, 0.5, 300)
    assert dip_test(one_peak, anchors=12, draws=300).p > 0.5
    first, second = (dip_test(flat, anchors=12, draws=50, seed=3) for _ in range(2))
    assert first == second and first.n == 300


def test_spread_counts_are_spread_values():
    """The twin: every image placed by itself in its anchor's cell, many to an anchor."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        layers = rng.choice(9, 600, p=rng.dirichlet(np.ones(9)))
        counts = np.bincount(layers, minlength=9)
        spread = np.concatenate([at - 0.5 + (np.arange(n) + 0.5) / n for at, n in enumerate(counts) if n])
        assert dip_test(layers, anchors=9, draws=1).dip == pytest.approx(dip(spread), abs=1 / 600)


def test_bad_input():
    with pytest.raises(ShapeMismatch, match="one axis of numbers"):
        dip(np.zeros((2, 2)))
    with pytest.raises(NotFinite, match="NaN"):
        dip(np.array([0.0, np.nan]))
    with pytest.raises(OutOfRange, match="draws=0"):
        dip_test(np.arange(3), draws=0)
    with pytest.raises(BadData, match="not all anchors 0 to 2"):
        dip_test(np.array([0, 3]), anchors=3)
