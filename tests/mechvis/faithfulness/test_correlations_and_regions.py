"""Correlations, errors and regions against independent implementations: scipy, scikit-learn, captum."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.faithfulness import (
    Answers,
    Auroc,
    AveragePrecision,
    FunctionGame,
    Infidelity,
    MuFidelity,
    NInf,
    PointingGame,
    RankAccuracy,
    RelevanceMass,
    SaCo,
    additive,
    metric,
)
from mechvis.faithfulness.irof import Irof, cells_of, regions_of
from mechvis.faithfulness.localisation import areas_of, centre_prior
from mechvis.faithfulness.saco import signed_weights
from mechvis.faithfulness.subsets import effects_of, pearson, size_of, spearman, subsets, sums_over
from mechvis.testing.patch_game import SHAPLEY, PatchGame

N, P = 6, 12


def quadratic():
    """A game with pairs."""
    pairs = torch.randn(N, P, P, generator=torch.Generator().manual_seed(0)).double()
    return FunctionGame(function=lambda m: torch.einsum("irp,ipq,irq->ir", m, pairs, m), grid=(3, 4))


def maps(seed=1):
    return torch.randn(N, P, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("seed", range(3))
def test_correlations_are_those_of_scipy(seed):
    g = torch.Generator().manual_seed(seed)
    a = torch.randint(0, 6, (5, 30), generator=g).double()  # many ties
    b = torch.randn(5, 30, generator=g).double()
    for image in range(5):
        assert spearman(a, b)[image].item() == pytest.approx(spearmanr(a[image], b[image]).statistic, abs=1e-12)
        assert pearson(a, b)[image].item() == pytest.approx(pearsonr(a[image], b[image]).statistic, abs=1e-12)


def test_rounding_is_no_difference():
    """Sums of ten equal values differ in their last digit: they are ties, and all together no map."""
    third = torch.full((1, 20), 0.1).double()
    third[0, ::2] += 1e-16
    assert spearman(third, torch.arange(20.0)[None]).isnan().all()
    ties = torch.cat([third, third + 1], 1)
    assert spearman(ties, torch.cat([torch.zeros(1, 20), torch.ones(1, 20)], 1)).item() == pytest.approx(1.0)


@pytest.mark.parametrize("correlation", ["spearman", "pearson"])
def test_mu_fidelity_is_the_correlation_over_its_sets(correlation):
    answers = Answers(quadratic())
    found = MuFidelity(share=0.25, n=40, correlation=correlation).measure(maps(), answers)
    sets = subsets(answers, N, 40, 3)
    said, effects = sums_over(maps(), sets).numpy(), effects_of(answers, sets, None).numpy()
    reference = {"spearman": spearmanr, "pearson": pearsonr}[correlation]
    expected = [reference(said[i], effects[i]).statistic for i in range(N)]
    np.testing.assert_allclose(found.values, expected, rtol=1e-9)
    np.testing.assert_array_equal(found.extra[correlation], found.values)


def test_sensitivity_n_is_a_curve_over_sizes():
    answers = Answers(quadratic())
    found = metric("sensitivity_n")(shares=(0.25, 0.5), n=30).measure(maps(), answers)
    assert found.points.tolist() == [3, 6] and found.curves["pearson"].shape == (N, 2)
    for column, size in enumerate((3, 6)):
        sets = subsets(answers, N, 30, size)
        said, effects = sums_over(maps(), sets).numpy(), effects_of(answers, sets, None).numpy()
        expected = [pearsonr(said[i], effects[i]).statistic for i in range(N)]
        np.testing.assert_allclose(found.curves["pearson"][:, column], expected, rtol=1e-9)
    np.testing.assert_allclose(found.values, found.curves["pearson"].mean(1))


def test_sets_have_their_size_and_belong_to_the_image():
    answers = Answers(FunctionGame(function=lambda m: m.sum(-1), grid=(3, 4), ids=range(50)))
    fixed = subsets(answers, 50, 20, 3)
    assert (fixed.sum(2) == 3).all() and (fixed.double().mean((0, 1)) - 0.25).abs().max() < 0.06
    free = subsets(answers, 50, 20, None)
    assert free.sum(2).min() == 1 and free.sum(2).max() == P - 1
    later = Answers(FunctionGame(function=lambda m: m.sum(-1), grid=(3, 4), ids=[7]))
    assert torch.equal(subsets(later, 1, 20, 3)[0], fixed[7])
    with pytest.raises(OutOfRange, match="sets of 12 of 12 patches"):
        subsets(answers, 50, 20, 12)
    assert size_of(0.001, 10) == 1 and size_of(0.999, 10) == 9


def test_infidelity_is_captums():
    """captum.metrics.infidelity on a function of twelve inputs, with our sets as perturbations."""
    from captum.metrics import infidelity

    game = quadratic()
    answers = Answers(game)
    n = 25
    found = Infidelity(n=n).measure(maps(), answers)
    sets = subsets(answers, N, n, None)

    def perturb(inputs):
        # captum repeats each example n times in a row, or asks again for one sample each: by batch size.
        taken = sets.double().flatten(0, 1)
        return taken, inputs - taken

    def forward(inputs):
        return game.scores(inputs.unflatten(0, (N, -1))).flatten()

    theirs = infidelity(forward, perturb, torch.ones(N, P).double(), maps(), n_perturb_samples=n, normalize=False)
    np.testing.assert_allclose(found.values, theirs.numpy(), rtol=1e-9)
    # Captum's own scaling is the factor beta of nInf (over all examples it is one number per example here).
    scaled = infidelity(forward, perturb, torch.ones(N, P).double(), maps(), n_perturb_samples=n, normalize=True)
    ours = NInf(n=n).measure(maps(), answers)
    np.testing.assert_allclose(ours.extra["error"], scaled.numpy(), rtol=1e-6)


def test_n_inf_is_between_zero_and_one_and_signs_matter_if_asked():
    found = NInf().measure(maps(), quadratic())
    assert ((found.values >= 0) & (found.values <= 1)).all()
    weights = maps(5)
    right, wrong = NInf().measure(weights, additive(weights)), NInf().measure(-weights, additive(weights))
    assert right.values.max() < 1e-12 and wrong.values.max() < 1e-12 and (wrong.extra["beta"] < 0).all()
    strict = NInf(nonnegative=True).measure(-weights, additive(weights))
    assert (strict.values == 1).all() and (strict.extra["beta"] == 0).all()
    zero = NInf().measure(torch.zeros(N, P), additive(weights))
    assert (zero.values == 1).all() and zero.excluded == 0
    assert found.ratio_of_means()[0] == pytest.approx(found.extra["error"].sum() / found.extra["scale"].sum())


def test_saco_by_pairs():
    """The plain double loop."""
    salience, effects = maps(2).sort(1, descending=True).values, maps(3)
    signed, total = signed_weights(salience, effects)
    for image in range(N):
        top = bottom = 0.0
        for i in range(P):
            for j in range(i + 1, P):
                weight = float(salience[image, i] - salience[image, j])
                top += weight if effects[image, i] >= effects[image, j] else -weight
                bottom += weight
        assert signed[image].item() == pytest.approx(top) and total[image].item() == pytest.approx(bottom)


def test_saco_with_groups_of_unequal_size_is_per_patch():
    """Groups {0, 1}, {2}, {3}: G = 3.5, 2, 1 and d = 1, 3, 0 per patch: -1.5, +2.5, +1 of 5."""
    found = SaCo(groups=3).measure(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), additive(torch.tensor([[1.0, 1.0, 3.0, 0.0]])))
    assert found.values[0] == pytest.approx(2 / 5) and found.curves["salience"].tolist() == [[3.5, 2.0, 1.0]]


def test_saco_does_not_depend_on_the_order_of_groups():
    salience, effects = maps(2).sort(1, descending=True).values, maps(3)
    for one, other in zip(
        signed_weights(salience, effects), signed_weights(salience.flip(1), effects.flip(1)), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("patches", [16, 17, 20])
def test_saco_of_random_maps_is_zero_whatever_the_groups(patches):
    """Groups of unequal size must not bring agreement by themselves."""
    g = torch.Generator().manual_seed(0)
    weights, noise = torch.rand(400, patches, generator=g), torch.rand(400, patches, generator=g)
    found = SaCo().measure(noise, additive(weights)).estimate()
    assert found.low[0] < 0 < found.high[0]


def test_f10_shapley_values_are_not_perfect_but_better_than_random():
    """F10 has a pair that only counts together, so no map predicts every set."""
    game = PatchGame(n_images=1)
    shapley, noise = torch.tensor([SHAPLEY]), torch.rand(1, 9, generator=torch.Generator().manual_seed(0))
    for name in ("abpc", "mu_fidelity", "saco", "sensitivity_n", "monotonicity"):
        one = metric(name)()
        assert one.measure(shapley, game).values[0] > one.measure(noise, game).values[0] + 0.1
    assert 0 < NInf(n=400).measure(shapley, game).values[0] < NInf(n=400).measure(noise, game).values[0]
    # Deletion in the order 0, 2, 3, 1 with nine steps: 6, 4, 1, 1, 0, 0, ...: (6/2 + 4 + 1 + 1) / 9
    ordered = torch.tensor([[4.0, 1.0, 3.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    assert metric("deletion")().measure(ordered, game).values[0] == pytest.approx(9 / 9)


# ---- localisation


@pytest.fixture
def scene():
    g = torch.Generator().manual_seed(4)
    values = torch.randint(0, 5, (40, 24), generator=g).double()  # many ties
    masks = torch.rand(40, 4, 6, generator=g) < 0.4
    masks[0] = False
    masks[1] = True
    return values, masks


@pytest.mark.parametrize(
    ("one", "reference"), [(Auroc(), roc_auc_score), (AveragePrecision(), average_precision_score)]
)
def test_areas_are_those_of_scikit_learn(scene, one, reference):
    values, masks = scene
    found = one.measure(values, masks, (4, 6))
    for image in range(2, 40):
        expected = reference(masks[image].flatten().numpy(), values[image].numpy())
        assert found.values[image] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(found.values[0]), "no object is no hit"
    assert np.isnan(found.values[1]) == (one.NAME == "auroc")


@pytest.mark.parametrize("one", [PointingGame(), RelevanceMass(), RankAccuracy(), Auroc(), AveragePrecision()])
def test_empty_masks_are_counted_and_baselines_stand_beside(scene, one):
    values, masks = scene
    found = one.measure(values, masks, (4, 6))
    assert found.reasons["the mask is empty"] == 1
    assert set(found.baselines) == {"centre_prior", "mask_area"}
    assert np.isnan(found.baselines["mask_area"][0]) and np.isnan(found.baselines["centre_prior"][0])
    prior = one.measure(centre_prior((4, 6)).expand(40, -1), masks, (4, 6))
    np.testing.assert_array_equal(found.baselines["centre_prior"], prior.values)


@pytest.mark.parametrize("one", [PointingGame(), RankAccuracy(), Auroc()])
def test_chance_is_the_mask_area(one):
    g = torch.Generator().manual_seed(5)
    masks = torch.zeros(3000, 4, 6)
    masks[:, :2, :3] = 1
    found = one.measure(torch.rand(3000, 24, generator=g), masks, (4, 6))
    assert abs(found.values.mean() - found.baselines["mask_area"].mean()) < 0.03


def test_ties_share_the_credit():
    flat = torch.ones(1, 4)
    mask = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    assert PointingGame().measure(flat, mask, (2, 2)).values[0] == 0.25
    assert RankAccuracy().measure(flat, mask, (2, 2)).values[0] == 0.25
    # Top two of (2, 1, 1, 1): patch 0, and one of three that share a place.
    two = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert RankAccuracy().measure(torch.tensor([[2.0, 1, 1, 1]]), two, (2, 2)).values[0] == pytest.approx(2 / 3)


def test_masks_come_to_the_grid_by_area():
    mask = torch.zeros(1, 4, 8)
    mask[:, :, 2:5] = 1  # half of the first patch and a quarter of the second
    assert areas_of(mask, (1, 2)).tolist() == [[0.5, 0.25]]
    assert areas_of(mask.bool(), (1, 2)).tolist() == [[0.5, 0.25]]
    small = torch.zeros(1, 4, 8)
    small[:, 0, 0] = 1
    found = PointingGame().measure(torch.tensor([[1.0, 0.0]]), small, (1, 2))
    assert found.reasons == {"the object covers too little of every patch": 1}
    negative = RelevanceMass().measure(torch.tensor([[-1.0, -2.0]]), mask, (1, 2))
    assert negative.reasons == {"the map has no positive value": 1}


def test_masks_that_do_not_fit():
    maps_, good = torch.rand(2, 4), torch.ones(2, 4, 4)
    with pytest.raises(ShapeMismatch, match="2 maps, 1 masks"):
        PointingGame().measure(maps_, good[:1], (2, 2))
    with pytest.raises(ShapeMismatch, match="masks are"):
        PointingGame().measure(maps_, good[0], (2, 2))
    with pytest.raises(BadData, match="between 0 and 1"):
        PointingGame().measure(maps_, good * 255, (2, 2))
    with pytest.raises(OutOfRange, match="threshold=0"):
        PointingGame(threshold=0).measure(maps_, good, (2, 2))


# ---- regions


def test_regions_of_label_images_and_cells():
    labels = torch.tensor([[[5, 5, 7, 7], [5, 7, 7, 7]]])
    assert regions_of(labels, (1, 2)).tolist() == [[5, 7]]
    assert cells_of((3, 3), 2).tolist() == [0, 0, 1, 0, 0, 1, 2, 2, 3]
    with pytest.raises(ShapeMismatch, match="multiples of"):
        regions_of(labels, (1, 3))


def test_irof_by_superpixels_of_different_number():
    """Image 0 has two regions, image 1 one: scores 8, 2, 0 and 8, 0."""
    weights = torch.tensor([[4.0, 2.0, 1.0, 1.0]] * 2)
    labels = torch.tensor([[[0, 0, 1, 1]], [[3, 3, 3, 3]]])
    found = Irof().measure(weights, additive(weights), labels)
    assert found.values.tolist() == pytest.approx([(0 + 2 * 0.75 + 1) / 4, 0.5])
    with pytest.raises(ShapeMismatch, match="2 maps, 1 label images"):
        Irof().measure(weights, additive(weights), labels[:1])
    nothing = Irof().measure(weights, additive(weights * 0))
    assert nothing.excluded == 2 and nothing.reasons == {"the score of the clean image is zero": 2}
