"""The online code: the numbers of methods.md 3.2, the definition by hand, and that it is never negative."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from probes.linear import ClassProbe, control_labels, online_code


@pytest.fixture(scope="module")
def planted():
    """Ten Gaussian classes in 64 dimensions, and a vector for each of 200 types, which says nothing of the class."""
    rng = np.random.default_rng(1)
    y, types = rng.permutation(np.arange(2000) % 10), rng.integers(0, 200, 2000)
    x = 2 * rng.normal(size=(10, 64))[y] + 0.7 * rng.normal(size=(200, 64))[types] + rng.normal(size=(2000, 64))
    return x, y, types


def test_task_control_and_random_labels(planted):
    """methods.md 3.2: accuracy 1.00 and 0.28; compression 41, 0.73 (control), 0.61 (random labels)."""
    x, y, types = planted
    control = control_labels(y, types, seed=2)
    train, test = slice(0, 1400), slice(1400, None)
    accuracy = {
        name: ClassProbe().fit(x[train], labels[train]).score(x[test], labels[test])
        for name, labels in (("task", y), ("control", control))
    }
    assert accuracy["task"] == 1.0
    assert accuracy["control"] == pytest.approx(0.28, abs=0.08), "memory of types: above chance, far below the task"
    assert online_code(x, y).compression > 25
    assert online_code(x, control).compression < 1
    assert online_code(x, control_labels(y, seed=5)).compression < 1


def test_the_definition_by_hand():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 40)
    x = rng.normal(size=(40, 2)) + y[:, None]
    code = online_code(x, y, boundaries=(0.25, 0.5, 1.0), floor=1e-3, seed=4, tolerance=1e-9)
    order = np.random.default_rng(4).permutation(40)
    bits = 10 * np.log2(3)
    for start, stop in ((10, 20), (20, 40)):
        seen, new = order[:start], order[start:stop]
        mean, scale = x[seen].mean(0), x[seen].std(0)
        fitted = LogisticRegression(C=1.0, tol=1e-9, max_iter=5000).fit((x[seen] - mean) / scale, y[seen])
        p = np.full((len(new), 3), 1e-3)
        p[:, fitted.classes_] = fitted.predict_proba((x[new] - mean) / scale)
        bits -= np.log2(p / p.sum(1, keepdims=True))[np.arange(len(new)), y[new]].sum()
    assert code.bits == pytest.approx(bits, rel=1e-4)
    assert code.uniform_bits == pytest.approx(40 * np.log2(3)) and code.compression == code.uniform_bits / code.bits


def test_an_unseen_class_costs_the_floor():
    """The first block holds one class; the first label of another costs log2 of (1 + floor) / floor."""
    y = np.array([0, 0, 1])
    for seed in range(50):
        code = online_code(np.zeros((3, 1)), y, boundaries=(0.6, 1.0), floor=0.01, seed=seed)
        if (np.random.default_rng(seed).permutation(3)[:2] < 2).all():
            break
    assert code.blocks[1][2] == pytest.approx(np.log2(1.01 / 0.01))


def test_never_negative_and_seeded():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)), rng.integers(0, 2, 60)
    code = online_code(x, y, seed=3)
    assert all(bits >= 0 for _, _, bits in code.blocks) and code.n == 60
    assert code.blocks[0][:2] == (0, 1) and code.blocks[-1][1] == 60
    assert online_code(x, y, seed=3).bits == code.bits != online_code(x, y, seed=4).bits
    assert online_code(x, y, most=30).n == 30


def test_bad_codes():
    x, y = np.zeros((8, 1)), np.arange(8) % 2
    with pytest.raises(BadData, match="rising"):
        online_code(x, y, boundaries=(0.5, 0.2, 1.0))
    with pytest.raises(OutOfRange, match="floor=0"):
        online_code(x, y, floor=0)
    with pytest.raises(BadData, match="at least two"):
        online_code(x, np.zeros(8, int))
    with pytest.raises(ShapeMismatch, match="as many"):
        online_code(x, y[:4])
