"""Importance of concepts (methods2.md 17.4): the identity of linear tails, F6 with a known head, curves."""

import itertools

import numpy as np
import pytest
import torch

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, UnknownName
from probes.concepts.curves import compare_importance, concept_curves
from probes.concepts.factors import factorise
from probes.concepts.game import game_of
from probes.concepts.importance import METHODS, importance
from probes.concepts.planted import matched, planted_parts
from probes.concepts.shapley import all_sets, drawn_orders
from probes.concepts.sobol import design_of, jansen

SIGNED = ("grad_input", "ig", "occlusion", "shapley")


@pytest.fixture(scope="module")
def linear():
    """A factorisation, a linear head on what it decodes, and the exact importances."""
    planted = planted_parts(40, 6, 16, seed=2)
    found = factorise(planted.rows, "semi_nmf", 6)
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=16))
    bank = torch.from_numpy(found.bank)
    exact = found.codes * (found.bank @ weight.numpy())
    return found, lambda u: u @ bank @ weight + 0.7, exact


@pytest.mark.parametrize("method", SIGNED)
def test_linear_tail_identity(linear, method):
    found, tail, exact = linear
    np.testing.assert_allclose(importance(tail, found.codes, method), exact, atol=1e-10, rtol=0)


def test_linear_tail_identity_for_sampled_orders_and_places(linear):
    found, tail, exact = linear
    drawn = importance(tail, found.codes, "shapley", exact=0, permutations=2)
    np.testing.assert_allclose(drawn, exact, atol=1e-10)
    placed = found.codes.reshape(10, 4, 6)
    for method in SIGNED:
        ours = importance(lambda u: tail(u).sum(1), placed, method)
        np.testing.assert_allclose(ours, exact.reshape(10, 4, 6).sum(1), atol=1e-10, err_msg=method)


def test_methods_differ_where_the_tail_is_not_linear(linear):
    """The control: the identity is one of linear tails only."""
    found, tail, _ = linear
    values = {method: importance(lambda u: torch.tanh(3 * tail(u)), found.codes, method) for method in SIGNED}
    for first, second in itertools.combinations(SIGNED, 2):
        assert np.abs(values[first] - values[second]).max() > 0.01, (first, second)


def test_baseline_moves_the_importance_by_what_it_holds(linear):
    found, tail, exact = linear
    middle = found.codes.mean(0)
    expected = exact - exact / np.where(found.codes == 0, 1, found.codes) * middle
    expected = (found.codes - middle) * (exact.sum(0) / found.codes.sum(0))
    for method in SIGNED:
        np.testing.assert_allclose(importance(tail, found.codes, method, baseline=middle), expected, atol=1e-9)


def test_tcav_is_the_sign_of_the_slope(linear):
    found, tail, exact = linear
    signs = importance(tail, found.codes, "tcav")
    slope = np.sign(exact.sum(0))
    np.testing.assert_array_equal(signs, np.broadcast_to(slope, signs.shape))


def test_shapley_adds_up_and_sampled_orders_are_exact_for_pairs():
    generator = np.random.default_rng(0)
    pairs = torch.from_numpy(generator.normal(size=(7, 7)))
    codes = generator.uniform(0.5, 1, (5, 7))
    game = game_of(lambda u: torch.einsum("rp,pq,rq->r", u, pairs, u), codes, takes_images=False)
    exact = all_sets(game)
    whole = game.on_every_image(torch.stack([torch.zeros(7), torch.ones(7)]).double())
    np.testing.assert_allclose(exact.sum(1), whole[:, 1] - whole[:, 0], atol=1e-10)
    np.testing.assert_allclose(drawn_orders(game, 1, 0).sum(1), exact.sum(1), atol=1e-10)
    # An order and its reverse count each pair once from either side: two-way games are exact with one of them.
    np.testing.assert_allclose(drawn_orders(game, 1, 5), exact, atol=1e-10)


def test_shapley_by_hand():
    """v = 2[0] + 3[1] + 5[0 and 1]: the pair is shared."""
    found = importance(lambda u: 2 * u[:, 0] + 3 * u[:, 1] + 5 * u[:, 0] * u[:, 1], np.ones((1, 3)), "shapley")
    np.testing.assert_allclose(found, [[4.5, 5.5, 0.0]], atol=1e-12)


def test_ig_is_complete_where_the_slope_at_the_image_is_not():
    codes = np.random.default_rng(1).uniform(0, 1, (4, 3))

    def tail(u):
        return torch.exp(u[:, 0]) + u[:, 1] * u[:, 2]

    whole = tail(torch.from_numpy(codes)) - 1
    np.testing.assert_allclose(importance(tail, codes, "ig", steps=400).sum(1), whole, atol=1e-5)
    assert np.abs(importance(tail, codes, "grad_input").sum(1) - whole.numpy()).max() > 0.1


# independent implementations


def bent(u):
    return torch.tanh(u[:, 0] * u[:, 1]) + torch.exp(0.5 * u[:, 2]) * u[:, 3]


def test_gradients_occlusion_and_shapley_equal_captum():
    from captum.attr import FeatureAblation, InputXGradient, IntegratedGradients, ShapleyValues

    codes = np.random.default_rng(3).uniform(0, 1.5, (4, 4))
    inputs = torch.from_numpy(codes).requires_grad_(True)
    theirs = {
        "grad_input": InputXGradient(bent).attribute(inputs),
        "occlusion": FeatureAblation(bent).attribute(inputs),
        "shapley": ShapleyValues(bent).attribute(inputs),
    }
    for method, expected in theirs.items():
        # captum keeps Shapley values in single precision.
        near = 1e-6 if method == "shapley" else 1e-10
        np.testing.assert_allclose(importance(bent, codes, method), expected.detach(), atol=near, err_msg=method)
    path = IntegratedGradients(bent).attribute(inputs, n_steps=200, method="riemann_middle").detach()
    np.testing.assert_allclose(importance(bent, codes, "ig", steps=200), path, atol=1e-10)


def test_jansen_equals_scipys_total_index():
    from scipy.stats import sobol_indices, uniform

    def numpy_bent(x):
        return bent(torch.from_numpy(x.T)).numpy()

    theirs = sobol_indices(func=numpy_bent, n=4096, dists=[uniform()] * 4, rng=np.random.default_rng(0)).total_order
    ours = importance(bent, np.ones((1, 4)), "sobol", design=4096)[0]
    np.testing.assert_allclose(ours, theirs, atol=0.02)


# Sobol


def test_sobol_order_is_weight_order_on_f6_with_three_parts():
    """methods.md 12: F6 with 3 parts and a known linear head, the concepts being found, not given."""
    planted = planted_parts(300, 3, 24, active=0.6, seed=4)
    weights = np.array([0.5, 2.0, 1.0])
    head = torch.from_numpy(np.linalg.pinv(planted.bank) @ weights)  # reads each part with its weight
    found = factorise(planted.rows, "semi_nmf", 3)
    order, cosine = matched(found.bank, planted.bank)
    assert cosine > 0.99
    bank = torch.from_numpy(found.bank)
    everywhere = found.codes[(found.codes > 0.3).all(1)]
    assert len(everywhere) > 20
    total = importance(lambda u: u @ bank @ head, everywhere, "sobol", design=32).mean(0)
    assert np.argsort(-total[order]).tolist() == [1, 2, 0]
    np.testing.assert_allclose(total[order], weights**2 / (weights**2).sum(), atol=0.15)


def test_sobol_of_a_linear_tail_is_its_share_of_the_variance():
    weights = np.array([3.0, 2.0, 1.0, 0.0])
    found = importance(lambda u: u @ torch.from_numpy(weights), np.ones((2, 4)), "sobol", design=4096)
    np.testing.assert_allclose(found, np.tile(weights**2 / (weights**2).sum(), (2, 1)), atol=0.01)


def test_sobol_counts_interactions_for_all_that_take_part():
    """f = m0 m1 for m uniform: the first order of each is 3/7 of the variance, the total 4/7."""
    found = importance(lambda u: u[:, 0] * u[:, 1], np.ones((1, 3)), "sobol", design=8192)
    np.testing.assert_allclose(found, [[4 / 7, 4 / 7, 0]], atol=0.01)


def test_sobol_of_a_constant_is_zero_and_has_no_sign():
    assert (importance(lambda u: 0 * u.sum(1) + 7, np.ones((2, 3)), "sobol") == 0).all()
    assert (importance(lambda u: -u[:, 0], np.ones((1, 2)), "sobol")[0] >= 0).all()


def test_jansen_by_hand():
    first, changed = np.array([[1.0, 3.0]]), np.array([[[1.0, 5.0], [1.0, 3.0]]])
    np.testing.assert_allclose(jansen(first, changed), [[1.0, 0.0]])


def test_plain_halton_is_no_design_for_many_concepts():
    """In bases above the number of points the plain sequence only rises: 32 points, 20 concepts."""
    plain, _ = design_of(20, 32, scramble=False)
    mixed, _ = design_of(20, 32, seed=1)
    later = slice(12, 20)  # the 13th prime is 41
    together = np.corrcoef(plain[1:, later].T)
    assert together.min() > 0.99 and plain[:, later].max() < 0.8
    assert np.abs(np.corrcoef(mixed[:, later].T) - np.eye(8)).max() < 0.8
    assert (mixed.max(0) > 0.8).all() and (mixed.min(0) < 0.2).all()


# the interface


def test_own_methods_plug_in(linear):
    found, tail, _ = linear

    def size(game):
        return game.codes.sum(1).double().numpy()

    np.testing.assert_allclose(importance(tail, found.codes, size), found.codes)
    with pytest.raises(ShapeMismatch, match=r"\[40, 6\]"):
        importance(tail, found.codes, lambda game: np.zeros(3))


def test_batches_change_nothing(linear):
    found, tail, _ = linear
    for method in METHODS:
        small, large = (importance(tail, found.codes, method, batch_size=size) for size in (3, 10_000))
        np.testing.assert_allclose(small, large, atol=1e-12, err_msg=method)


def test_errors(linear):
    found, tail, _ = linear
    with pytest.raises(UnknownName, match="sobol"):
        importance(tail, found.codes, "sobool")
    with pytest.raises(BadData, match="grad_input takes no options, not steps"):
        importance(tail, found.codes, "grad_input", steps=3)
    with pytest.raises(BadData, match="has no gradient"):
        importance(lambda u: u.detach().sum(1), found.codes, "ig")
    with pytest.raises(ShapeMismatch, match="one number per row"):
        importance(lambda u: u, found.codes, "occlusion")
    with pytest.raises(NotFinite, match="tail gives NaN"):
        importance(lambda u: u.sum(1) / 0 * 0, found.codes, "occlusion")
    with pytest.raises(NotFinite, match="codes hold NaN"):
        importance(tail, found.codes * np.nan, "occlusion")
    with pytest.raises(ShapeMismatch, match="codes"):
        importance(tail, found.codes[0], "occlusion")
    with pytest.raises(ShapeMismatch, match="baseline"):
        importance(tail, found.codes, "occlusion", baseline=np.zeros(5))
    with pytest.raises(OutOfRange, match="2 points"):
        importance(tail, found.codes, "sobol", design=1)
    with pytest.raises(OutOfRange, match="permutations=0"):
        importance(tail, found.codes, "shapley", permutations=0)
    with pytest.raises(OutOfRange, match="steps=0"):
        importance(tail, found.codes, "ig", steps=0)


# curves


def test_exact_importances_are_optimal_for_a_linear_tail(linear):
    found, tail, exact = linear
    game = game_of(tail, found.codes[:8], takes_images=False)
    ours = concept_curves(game, exact[:8])
    deletions, insertions = [], []
    generator = np.random.default_rng(0)
    for _ in range(100):
        ranks = generator.permutation(6).astype(float)
        other = concept_curves(game, np.tile(-ranks, (8, 1)), orders=1, sets=3)
        deletions.append(other.deletion.mean(1))
        insertions.append(other.insertion.mean(1))
    assert (ours.deletion.mean(1) <= np.min(deletions, axis=0) + 1e-9).all()
    assert (ours.insertion.mean(1) >= np.max(insertions, axis=0) - 1e-9).all()
    np.testing.assert_allclose(ours.fidelity[~np.isnan(ours.fidelity)], 1, atol=1e-9)
    assert np.isnan(ours.fidelity).sum() == (np.abs(exact[:8]).max(1) == 0).sum() < 4


def test_curves_by_hand_and_against_random_orders(linear):
    game = game_of(lambda u: u @ torch.tensor([1.0, 2.0, 4.0]).double(), np.ones((3, 3)), takes_images=False)
    found = concept_curves(game, np.tile([1.0, 2.0, 4.0], (3, 1)))
    np.testing.assert_allclose(found.deletion, np.tile([7.0, 3.0, 1.0, 0.0], (3, 1)))
    np.testing.assert_allclose(found.insertion, np.tile([0.0, 4.0, 6.0, 7.0], (3, 1)))
    codes, tail, exact = linear[0].codes, linear[1], linear[2]
    game = game_of(tail, codes, takes_images=False)
    table = {row["measure"]: row for row in concept_curves(game, exact).table.iter_rows(named=True)}
    assert table["deletion"]["over_random_high"] < 0 < table["insertion"]["over_random_low"]
    assert table["mu-fidelity"]["mean"] == pytest.approx(1) and table["mu-fidelity"]["n"] > 30


def test_methods_side_by_side(linear):
    """On a linear tail the exact methods are the best there is, signs and Sobol know less, and random nothing."""
    table = compare_importance(game_of(linear[1], linear[0].codes, takes_images=False))
    assert table["method"].unique().len() == 7
    area = {row["method"]: row["mean"] for row in table.iter_rows(named=True) if row["measure"] == "deletion"}
    for method in SIGNED:
        assert area[method] == pytest.approx(area["ig"], abs=1e-9)
    assert all(area["ig"] < area[method] - 1e-6 for method in ("sobol", "random"))
    fidelity = {row["method"]: row["mean"] for row in table.iter_rows(named=True) if row["measure"] == "mu-fidelity"}
    assert fidelity["ig"] == pytest.approx(1) and fidelity["ig"] > fidelity["tcav"] and abs(fidelity["random"]) < 0.35


def test_permuted_importances_are_no_better_than_random_orders(linear):
    """The control of methods2.md 23."""
    found, tail, exact = linear
    generator = np.random.default_rng(0)
    mixed = np.stack([generator.permutation(row) for row in exact])
    curves = concept_curves(game_of(tail, found.codes, takes_images=False), mixed)
    table = {row["measure"]: row for row in curves.table.iter_rows(named=True)}
    assert table["deletion"]["over_random_low"] < 0 < table["deletion"]["over_random_high"]
    assert table["mu-fidelity"]["mean"] < 0.4


def test_curves_refuse_what_does_not_fit(linear):
    game = game_of(linear[1], linear[0].codes, takes_images=False)
    with pytest.raises(ShapeMismatch, match=r"\[40, 6\]"):
        concept_curves(game, np.ones((40, 5)))
    with pytest.raises(OutOfRange, match="share=1"):
        concept_curves(game, np.ones((40, 6)), share=1)
    flat = concept_curves(game_of(lambda u: 0 * u.sum(1), np.ones((2, 3)), takes_images=False), np.ones((2, 3)))
    assert np.isnan(flat.fidelity).all() and flat.table["n"].to_list() == [2, 2, 0]
