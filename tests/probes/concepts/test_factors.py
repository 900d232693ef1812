"""Factorisations on F6 (methods.md 0.5, 12): planted parts come back, losses never rise, codes are exact."""

import numpy as np
import pytest
import torch

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, UnknownName
from probes.concepts.coding import nonnegative_code, plain_code
from probes.concepts.factors import METHODS, factorise
from probes.concepts.planted import matched, planted_parts
from probes.concepts.semi_nmf import _step as fast_step
from probes.concepts.semi_nmf import plain_step, semi_nmf, start
from probes.concepts.sparse_parts import sparse_parts


@pytest.fixture(scope="module")
def planted():
    return planted_parts()


@pytest.mark.parametrize("init", ["kmeans", "svd", "random"])
def test_semi_nmf_finds_planted_parts_from_every_start(planted, init):
    found = factorise(planted.rows, "semi_nmf", 8, init=init)
    assert matched(found.bank, planted.bank)[1] > 0.99
    assert np.abs(np.linalg.norm(found.bank, axis=1) - 1).max() < 1e-9
    order, _ = matched(found.bank, planted.bank)
    together = [np.corrcoef(found.codes[:, order[i]], planted.codes[:, i])[0, 1] for i in range(8)]
    assert min(together) > 0.98


def test_without_a_price_semi_nmf_prefers_wrong_parts(planted):
    """Why there is a price: the loss of wrong directions lies below the loss of the true ones."""
    found = factorise(planted.rows, "semi_nmf", 8, init="random", sparsity=0)
    error = ((planted.rows - found.decode(found.codes)) ** 2).sum()
    true = nonnegative_code(planted.rows, planted.bank)
    assert matched(found.bank, planted.bank)[1] < 0.9
    assert error < ((planted.rows - true @ planted.bank) ** 2).sum()


@pytest.mark.parametrize(
    ("method", "signed", "least"),
    [("nmf", False, 0.99), ("semi_nmf", False, 0.99), ("dictionary", True, 0.9), ("dictionary", False, 0.9)],
)
def test_other_methods_find_planted_parts(method, signed, least):
    planted = planted_parts(signed=signed)
    assert matched(factorise(planted.rows, method, 8).bank, planted.bank)[1] > least


def test_methods_that_look_for_something_else_do_not(planted):
    for method in ("pca", "kmeans"):
        assert matched(factorise(planted.rows, method, 8).bank, planted.bank)[1] < 0.9


@pytest.mark.parametrize("init", ["kmeans", "svd", "random"])
def test_loss_of_snmf_never_rises_without_the_sparsity_step(planted, init):
    losses = semi_nmf(planted.rows, 8, init=init, iterations=200).losses
    assert len(losses) > 20
    assert (np.diff(losses) <= 1e-12).all()


def test_with_the_sparsity_step_the_loss_may_rise(planted):
    """The control: the sparsity step is no descent, so the test above can fail."""
    losses = semi_nmf(planted.rows, 8, sparsity=0.1, iterations=200).losses
    assert (np.diff(losses) > 1e-12).any()


def test_objective_of_sparse_parts_never_rises(planted):
    begun = semi_nmf(planted.rows, 8, init="random", iterations=5)
    *_, objectives = sparse_parts(planted.rows, begun.directions, begun.amounts, 0.1, tolerance=0)
    assert len(objectives) > 30 and (np.diff(objectives) <= 1e-12).all()


@pytest.mark.parametrize("keep", [None, 3])
def test_one_step_equals_the_plain_one(keep):
    planted = planted_parts(30, 4, 12, seed=1)
    amounts = start(planted.rows, 4, "random", 0)
    fast = fast_step(planted.rows, amounts, float((planted.rows**2).sum()), keep, 1e-8)
    plain = plain_step(planted.rows, amounts, keep)
    for ours, theirs in zip(fast, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-10)


def test_sparse_directions_of_neurons_come_back_with_the_sparsity_step():
    generator = np.random.default_rng(3)
    truth = np.zeros((8, 256))
    for row in truth:
        row[generator.choice(256, 3, replace=False)] = generator.choice([-1, 1], 3) * generator.uniform(0.7, 1.3, 3)
    amounts = generator.uniform(0.5, 1.5, (800, 8)) * (generator.random((800, 8)) < 0.3)
    rows = amounts @ truth + 0.02 * generator.normal(size=(800, 256))
    found = semi_nmf(rows, 8, sparsity=0.012)
    assert ((found.directions != 0).sum(0) <= 4).all()
    sparse, dense = (matched(each.directions.T, truth)[1] for each in (found, semi_nmf(rows, 8, init="random")))
    assert sparse > 0.95 > 0.85 > dense


@pytest.mark.parametrize("price", [0.0, 0.3])
@pytest.mark.parametrize("ridge", [None, 0.2])
def test_codes_equal_the_plain_twin(price, ridge):
    generator = np.random.default_rng(0)
    rows, bank = generator.normal(size=(20, 10)), generator.normal(size=(6, 10))
    penalty = None if ridge is None else np.full(6, ridge)
    fast = nonnegative_code(rows, bank, penalty, price)
    np.testing.assert_allclose(fast, plain_code(rows, bank, penalty, price), atol=1e-7)
    assert (fast >= 0).all() and (fast == 0).any()


def test_codes_with_a_price_equal_scikit_learn():
    from sklearn.decomposition import sparse_encode

    generator = np.random.default_rng(1)
    rows, bank = generator.normal(size=(15, 10)), generator.normal(size=(6, 10))
    options = {"algorithm": "lasso_cd", "alpha": 0.3, "positive": True, "max_iter": 100_000}
    np.testing.assert_allclose(nonnegative_code(rows, bank, price=0.3), sparse_encode(rows, bank, **options), atol=2e-3)


def test_nmf_codes_solve_scikit_learns_problem():
    from sklearn.decomposition import NMF

    planted = planted_parts(signed=False)
    found = factorise(planted.rows, "nmf", 8)
    model = NMF(8, init="nndsvda", alpha_W=1e-2, max_iter=4000, tol=1e-10, random_state=0).fit(planted.rows)
    lengths = np.linalg.norm(model.components_, axis=1)
    other = model.transform(planted.rows) * lengths
    order, cosine = matched(found.bank, model.components_)
    assert cosine > 0.999
    np.testing.assert_allclose(found.codes[:, order], other, atol=0.05)


def test_pca_equals_scikit_learn(planted):
    from sklearn.decomposition import PCA

    found, theirs = factorise(planted.rows, "pca", 5), PCA(5).fit(planted.rows)
    np.testing.assert_allclose(np.abs(np.diag(found.bank @ theirs.components_.T)), 1, atol=1e-8)
    np.testing.assert_allclose(
        found.decode(found.codes), theirs.inverse_transform(theirs.transform(planted.rows)), atol=1e-8
    )


@pytest.mark.parametrize("method", METHODS)
def test_codes_of_the_fitted_rows_are_those_of_encode(planted, method):
    rows = np.abs(planted.rows) if method == "nmf" else planted.rows
    found = factorise(rows, method, 6)
    np.testing.assert_array_equal(found.codes, found.encode(rows))
    np.testing.assert_allclose(found.encode(rows[7:9]), found.codes[7:9], atol=1e-12)
    assert found.decode(found.codes).shape == rows.shape
    if method == "kmeans":
        assert ((found.codes == 0) | (found.codes == 1)).all() and (found.codes.sum(1) == 1).all()
    if method in ("semi_nmf", "nmf", "dictionary"):
        assert (found.codes >= 0).all()


def test_centre_is_taken_off_and_put_back(planted):
    moved = planted.rows + 5.0
    found = factorise(moved, "semi_nmf", 8, centre=True)
    assert np.abs(moved - found.decode(found.codes)).mean() < 0.1
    np.testing.assert_allclose(found.centre, moved.mean(0))


class Given:
    """A dictionary such as an autoencoder's, in float32, with a bias."""

    def __init__(self, bank, bias=0.5, bend=False):
        self.bank, self.bias, self.bend = torch.from_numpy(bank).float(), bias, bend

    def encode(self, x):
        return torch.relu((x - self.bias) @ self.bank.T)

    def decode(self, z):
        return (z**2 if self.bend else z) @ self.bank + self.bias


def test_a_given_dictionary_keeps_its_own_encoder(planted):
    given = Given(planted.bank)
    found = factorise(planted.rows, "dictionary", dictionary=given)
    np.testing.assert_allclose(found.bank, planted.bank, atol=1e-5)
    np.testing.assert_allclose(found.centre, 0.5, atol=1e-6)
    own = given.encode(torch.from_numpy(planted.rows).float()).numpy()
    np.testing.assert_allclose(found.codes, own, atol=1e-6)
    np.testing.assert_allclose(found.encode(planted.rows[:3]), own[:3], atol=1e-5)


def test_bad_inputs_say_what_to_do(planted):
    with pytest.raises(BadData, match="use method='dictionary'"):
        factorise(planted.rows, "pca", dictionary=Given(planted.bank))
    with pytest.raises(BadData, match="not affine"):
        factorise(planted.rows, "dictionary", dictionary=Given(2 * planted.bank, bend=True))
    with pytest.raises(BadData, match="semi_nmf"):
        factorise(planted.rows, "nmf", 4)
    with pytest.raises(BadData, match="centre=True is impossible"):
        factorise(np.abs(planted.rows), "nmf", 4, centre=True)
    with pytest.raises(UnknownName, match="semi_nmf"):
        factorise(planted.rows, "seminmf", 4)
    with pytest.raises(OutOfRange, match="500 concepts from 400 rows"):
        factorise(planted.rows, "kmeans", 500)
    with pytest.raises(OutOfRange, match="orthogonal"):
        factorise(planted.rows, "pca", 33)
    with pytest.raises(OutOfRange, match="share of the mean length"):
        factorise(planted.rows, "semi_nmf", 4, sparsity=1.5)
    with pytest.raises(BadData, match="all rows are zero"):
        factorise(np.zeros((9, 3)), "semi_nmf", 2)
    with pytest.raises(ShapeMismatch, match=r"rows of activations \[row d\]"):
        factorise(np.zeros(9), "semi_nmf", 2)
    broken = planted.rows.copy()
    broken[3, 5] = np.nan
    with pytest.raises(NotFinite, match=r"the first at \[3, 5\]"):
        factorise(broken, "semi_nmf", 2)
    found = factorise(planted.rows, "semi_nmf", 4)
    with pytest.raises(ShapeMismatch, match=r"\[row 32\]"):
        found.encode(planted.rows[:, :5])
    with pytest.raises(ShapeMismatch, match=r"\[row 4\]"):
        found.decode(np.ones((2, 3)))
    with pytest.raises(ShapeMismatch, match="one width"):
        nonnegative_code(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(UnknownName, match="svd"):
        semi_nmf(planted.rows, 4, init="nndsvd")
    with pytest.raises(OutOfRange, match="share of entries"):
        semi_nmf(planted.rows, 4, sparsity=0)
    with pytest.raises(OutOfRange, match="price"):
        sparse_parts(planted.rows, planted.bank.T, planted.codes, -1)
    with pytest.raises(OutOfRange, match="active"):
        planted_parts(active=0)
    with pytest.raises(ShapeMismatch, match="two banks"):
        matched(np.eye(3), np.eye(4))
