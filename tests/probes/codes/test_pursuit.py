"""Matching pursuit: beside scikit-learn, beside its plain twin, and on planted codes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp

from mechvis.errors import NotFinite, OutOfRange, ShapeMismatch
from mechvis.testing.planted_codes import planted_dict
from probes.codes import omp
from probes.codes.pursuit import omp_plain


def drawn(seed=0, n=30, atoms=60, width=20):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, width)), generator.normal(size=(atoms, width))


@pytest.mark.parametrize("picks", [1, 3, 8])
def test_beside_scikit_learn(picks):
    vectors, atoms = drawn()
    unit = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    theirs = orthogonal_mp(unit.T, vectors.T, n_nonzero_coefs=picks).T
    np.testing.assert_allclose(omp(vectors, unit, picks).dense(), theirs, atol=1e-8)


@given(st.integers(0, 10_000), st.booleans(), st.integers(1, 6))
def test_together_as_one_by_one(seed, non_negative, picks):
    vectors, atoms = drawn(seed, n=4, atoms=25, width=12)
    found = omp(vectors, atoms, picks, non_negative=non_negative)
    for row, vector in enumerate(vectors):
        support, coefficients = omp_plain(vector, atoms, picks, non_negative=non_negative)
        assert found.support[row].tolist() == support
        np.testing.assert_allclose(found.coefficients[row], coefficients, atol=1e-8)
        left = vector - found.dense()[row] @ atoms
        assert found.residuals[row, -1] == pytest.approx(np.linalg.norm(left), abs=1e-8)


def test_residuals_fall_and_non_negative_fits_are_optimal():
    vectors, atoms = (np.abs(part) for part in drawn(3))
    found = omp(vectors, atoms, 6, non_negative=True)
    assert (np.diff(found.residuals, axis=1) <= 1e-12).all()
    assert (found.coefficients >= 0).all() and (found.coefficients == 0).any(), "the case that needs nnls occurs"
    for row in range(len(vectors)):
        _, norm = nnls(atoms[found.support[row]].T, vectors[row])
        assert found.residuals[row, -1] == pytest.approx(norm, abs=1e-8)


def test_planted_codes_are_found_and_the_control_is_not():
    planted = planted_dict(40, concepts=200, width=128, active=4, noise=0.1)
    found = omp(planted.vectors, planted.concepts, 4, non_negative=True)
    right = [set(row) == set(np.flatnonzero(code)) for row, code in zip(found.support, planted.codes, strict=True)]
    assert np.mean(right) > 0.95
    shuffled = omp(planted.vectors[:, np.random.default_rng(0).permutation(128)], planted.concepts, 4)
    assert shuffled.residuals[:, -1].mean() > 3 * found.residuals[:, -1].mean()


def test_stops_when_all_is_explained():
    found = omp(np.array([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]), np.eye(3), 3)
    assert found.support.tolist() == [[1, -1, -1], [-1, -1, -1]]
    assert found.dense().tolist() == [[0, 2, 0], [0, 0, 0]]
    assert found.named(["a", "b", "c"]) == [[("b", 2.0)], []]
    against = omp(np.array([[-1.0, -2.0]]), np.eye(2), 2, non_negative=True)
    assert against.support.tolist() == [[-1, -1]], "nothing points its way"
    twins = omp(np.array([[1.0, 1.0]]), np.array([[1.0, 0.0], [2.0, 0.0]]), 2)
    assert twins.support.tolist() == [[0, -1]], "a copy of a picked atom adds nothing"


def test_lengths_of_atoms_change_coefficients_only():
    vectors, atoms = drawn(5)
    scale = np.random.default_rng(1).uniform(0.1, 10, (len(atoms), 1))
    one, other = omp(vectors, atoms, 4), omp(vectors, atoms * scale, 4)
    np.testing.assert_array_equal(one.support, other.support)
    np.testing.assert_allclose(one.dense() @ atoms, other.dense() @ (atoms * scale), atol=1e-9)


def test_bad_input():
    vectors, atoms = drawn()
    with pytest.raises(OutOfRange, match="n_picks=61: give 1 to 60"):
        omp(vectors, atoms, 61)
    with pytest.raises(ShapeMismatch, match="of one width"):
        omp(vectors[:, :5], atoms, 2)
    with pytest.raises(ShapeMismatch, match="atom 2 is zero"):
        omp(vectors, np.where(np.arange(60)[:, None] == 2, 0, atoms), 2)
    with pytest.raises(NotFinite, match="the vectors holds 1 NaN"):
        omp(np.where(np.arange(600).reshape(30, 20) == 7, np.nan, vectors), atoms, 2)
    with pytest.raises(ShapeMismatch, match="60 atoms need as many names"):
        omp(vectors, atoms, 2).named(["a"])
