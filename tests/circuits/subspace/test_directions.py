"""Baselines: mean difference, PCA, probe and random rows find what they should, and agree with others' code."""

import numpy as np
import pytest
import torch

from circuits.subspace import mean_difference_rows, pca_rows, probe_rows, random_rows
from circuits.subspace.directions import BASELINES, baseline_rows
from mechvis.errors import BadData, OutOfRange
from mechvis.testing import assert_close

WIDTH = 5


@pytest.fixture
def data():
    """Two values that differ along coordinate 0, and loud noise along coordinate 4."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 2, (400,), generator=generator)
    h = 0.1 * torch.randn(400, WIDTH, generator=generator, dtype=torch.float64)
    h[:, 0] += values
    h[:, 4] *= 50
    return h, values


def test_each_finds_its_own(data):
    h, values = data
    assert abs(float(mean_difference_rows(h - h[:, 4:] * torch.eye(WIDTH)[4], values, 1)[0, 0])) > 0.99
    assert abs(float(probe_rows(h, values, 1)[0, 0])) > 0.99, "the probe looks through the noise"
    assert abs(float(pca_rows(h, 1)[0, 4])) > 0.99, "PCA sees the noise only"


def test_all_are_orthonormal_and_nested(data):
    h, values = data
    several = (values + 2 * (h[:, 1] > 0)).long()
    for name in BASELINES:
        rows = baseline_rows(name, h, several, 2, seed=0)
        assert_close(rows @ rows.T, torch.eye(2, dtype=torch.float64), 1e-8, name)
        if name != "random":
            assert_close(baseline_rows(name, h, several, 1, seed=0), rows[:1], 1e-8, name)


def test_pca_equals_scikit_learn(data):
    from sklearn.decomposition import PCA

    h, _ = data
    theirs = torch.from_numpy(PCA(3).fit(h.numpy()).components_)
    overlap = (pca_rows(h, 3) @ theirs.T).abs()
    assert_close(overlap, torch.eye(3, dtype=torch.float64), 1e-8)


def test_two_class_mean_difference_is_the_difference(data):
    h, values = data
    difference = h[values == 1].mean(0) - h[values == 0].mean(0)
    assert_close(mean_difference_rows(h, values, 1)[0].abs(), (difference / difference.norm()).abs(), 1e-8)
    assert len(mean_difference_rows(h, values, 3)) == 1, "two means span one direction"


def test_random_rows_depend_on_the_seed_only(data):
    h, _ = data
    before = np.random.get_state()[1][:4].copy()  # noqa: NPY002
    one, same, other = (random_rows(WIDTH, 2, seed, like=h) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert (np.random.get_state()[1][:4] == before).all()  # noqa: NPY002


def test_refusals(data):
    h, values = data
    for find in (
        lambda k: pca_rows(h, k),
        lambda k: probe_rows(h, values, k),
        lambda k: mean_difference_rows(h, values, k),
    ):
        with pytest.raises(OutOfRange, match="k=6"):
            find(6)
    with pytest.raises(OutOfRange, match="k=0"):
        random_rows(WIDTH, 0, 0, like=h)
    with pytest.raises(BadData, match="need two values"):
        mean_difference_rows(h, values * 0, 1)
    with pytest.raises(BadData, match="a probe needs two values"):
        probe_rows(h, values * 0, 1)
