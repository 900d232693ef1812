"""F13: two attributes in planes of their own are taken apart, which clusters of the whole space cannot do."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_samples, silhouette_score

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, SplitOverlap
from mechvis.testing.concept_worlds import two_attributes
from probes.concept_tests.compositional import (
    CompositionalConcepts,
    compositional_ap,
    compositional_concepts,
    compositionality,
    learn_rotation,
    purity,
    silhouette,
)
from probes.concept_tests.compositional.rotation import alignment

QUICK = {"epochs": 80, "rate": 0.05, "batch": 150, "progress": False}


@pytest.fixture(scope="module")
def world():
    return two_attributes()


@pytest.fixture(scope="module")
def found(world):
    return compositional_concepts(world.z, clusters=(2, 3, 4), restarts=2, **QUICK)


def test_each_step_finds_one_plane(found, world):
    """Overlaps .98 / .00 with plane A and B at step 0, .99 with B at step 1."""
    assert world.overlap(found.rotation(0), 0) == pytest.approx(0.98, abs=0.03)
    assert world.overlap(found.rotation(0), 1) == pytest.approx(0.0, abs=0.02)
    assert world.overlap(found.rotation(1), 1) == pytest.approx(0.99, abs=0.03)


def test_clusters_are_values(found, world):
    """Purity 1.000, then .999."""
    first, second = found.assign(world.z)
    assert purity(first, world.first) >= 0.995 and purity(second, world.second) >= 0.99
    fresh = two_attributes(200, seed=0)
    assert purity(found.assign(fresh.z)[0], fresh.first) > 0.99, "images of the same planes that were drawn anew"


def test_plain_k_means_mixes_them(world):
    """The control: seven clusters of the whole space have purity .62 for the second attribute."""
    labels = KMeans(7, n_init=10, random_state=0).fit_predict(world.z)
    assert purity(labels, world.second) == pytest.approx(0.62, abs=0.08)


def test_rotations_are_orthonormal_and_steps_orthogonal(found):
    for step in (0, 1):
        rotation = found.rotation(step)
        np.testing.assert_allclose(rotation.T @ rotation, np.eye(2), atol=1e-10)
    np.testing.assert_allclose(found.rotation(0).T @ found.rotation(1), 0, atol=1e-10)
    np.testing.assert_allclose(found.concepts(0) @ found.concepts(1).T, 0, atol=1e-10)


def test_concepts_are_the_corners(found, world):
    """Up to the centring, every true value has a concept near it."""
    corners = world.corners[0] - world.z.mean(0) + world.corners[1][world.second].mean(0)
    apart = np.linalg.norm(found.concepts(0)[:, None] - corners, axis=2)
    assert apart.min(0).max() < 0.5


def test_the_number_of_clusters_is_chosen_on_held_out_images(found):
    choices = found.tables["choices"]
    assert set(choices["clusters"]) == {2, 3, 4} and choices.height == 2 * 3 * 2
    for step in (0, 1):
        tried = choices.filter(choices["step"] == step)
        best = tried.filter(tried["held_out"] >= tried["held_out"].max() - 0.05).sort("variance").row(-1, named=True)
        chosen = found.pick(step=step)
        assert chosen["clusters"] == best["clusters"] and chosen["variance"] == best["variance"]
        assert chosen["held_out"] == best["held_out"] > 0.5
    assert 0.4 < found.pick(step=0)["variance"] < 0.7 and found.facts["held out"] == 180


def test_noise_has_no_clusters():
    noise = np.random.default_rng(0).normal(size=(300, 16))
    nothing = compositional_concepts(noise, clusters=(3, 4), restarts=1, steps=1, **QUICK)
    assert nothing.pick(step=0)["held_out"] < 0.5


def test_saved_and_loaded(found, world, tmp_path):
    again = CompositionalConcepts.load(found.save(tmp_path))
    np.testing.assert_array_equal(again.assign(world.z), found.assign(world.z))
    assert again.n_steps == 2


@pytest.mark.slow
def test_the_full_search(world):
    """The specification's own settings: every number from 2 to 9, three starts, 300 epochs."""
    whole = compositional_concepts(world.z, batch=200, progress=False)
    first, second = whole.assign(world.z)
    assert purity(first, world.first) >= 0.999 and purity(second, world.second) >= 0.995
    assert world.overlap(whole.rotation(0), 0) > 0.95 and world.overlap(whole.rotation(1), 1) > 0.95


def test_silhouette_is_sklearns():
    generator = np.random.default_rng(0)
    points, labels = generator.normal(size=(60, 3)), generator.integers(0, 4, 60)
    labels[0] = 9  # a cluster of one
    mine = float(silhouette(torch.from_numpy(points), torch.from_numpy(labels)))
    assert mine == pytest.approx(silhouette_score(points, labels), abs=1e-12)
    assert silhouette_samples(points, labels)[0] == 0
    with pytest.raises(BadData, match="at least two clusters"):
        silhouette(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long))


def test_silhouette_has_finite_gradients():
    points = torch.tensor([[0.0, 0], [0, 0], [1, 0], [3, 1]], dtype=torch.float64, requires_grad=True)
    value = silhouette(points, torch.tensor([0, 0, 1, 1]))
    (gradient,) = torch.autograd.grad(value, points)
    assert torch.isfinite(gradient).all()


def test_alignment_by_hand():
    z = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, 0.0]])
    first_axis = torch.tensor([[1.0], [0.0]])
    assert float(alignment(z, first_axis, torch.tensor([0, 0, 1]))) == pytest.approx((0.5**0.5 + 1) / 2)


def test_how_far_images_are_from_sums(found, world):
    truth = np.concatenate([np.eye(3)[world.first], np.eye(4)[world.second]], axis=1)
    corners = np.concatenate(world.corners)
    result = compositionality(world.z, truth, corners, mean=np.zeros(16))
    row = result.pick(set="concepts")
    # What is left is noise in the fourteen or so directions that two vectors leave.
    assert row["distance"] == pytest.approx(0.25 * 14**0.5, abs=0.04) and row["low"] < row["distance"] < row["high"]
    assert row["relative"] < 0.45 and row["n"] == 600
    assert result.pick(set="random")["low"] > row["high"] and result.pick(set="none")["relative"] == 1.0
    by_hand = np.linalg.norm(world.z[0] - corners[[world.first[0], 3 + world.second[0]]].sum(0))
    assert result.arrays["per_image"][0, 0] <= by_hand


def test_sums_are_not_negative():
    """An image on the far side of its concept is no sum of it."""
    found = compositionality(np.array([[-2.0, 0.0], [1.0, 1.0]]), np.ones((2, 1)), np.array([[1.0, 0.0]]), mean=[0, 0])
    assert found.arrays["per_image"][0].tolist() == [2.0, 1.0]


def test_combinations_can_be_read(world):
    truth = np.concatenate([np.eye(3)[world.first], np.eye(4)[world.second]], axis=1).astype(bool)
    first, second = slice(0, 300), slice(300, 600)
    sides = (world.z[first], truth[first]), (world.z[second], truth[second])
    corners = np.concatenate(world.corners)
    table = compositional_ap(*sides, corners, [(0, 3), (2, 6)])
    assert (table["ap"] > 0.9).all() and (table["chance"] < 0.2).all() and table["n"].to_list() == [300, 300]
    assert (table["low"] <= table["ap"]).all() and (table["ap"] <= table["high"]).all()
    random = compositional_ap(*sides, np.random.default_rng(1).normal(size=corners.shape), [(0, 3), (2, 6)])
    assert random["ap"].mean() < table["ap"].mean() - 0.2
    with pytest.raises(BadData, match=r"0 of 300 training images have the combination \[0, 1\]"):
        compositional_ap(*sides, corners, [(0, 1)])
    with pytest.raises(SplitOverlap, match="the training and the test images are the same"):
        compositional_ap(sides[0], sides[0], corners, [(0, 3)])
    with pytest.raises(OutOfRange, match=r"combination \[9\]"):
        compositional_ap(*sides, corners, [(9,)])


def test_what_is_refused(world, found):
    with pytest.raises(ShapeMismatch, match=r"representations are \[image d\]"):
        compositional_concepts(world.z[0])
    with pytest.raises(NotFinite, match="image 3 holds NaN"):
        compositional_concepts(np.where(np.arange(600)[:, None] == 3, np.nan, world.z))
    with pytest.raises(OutOfRange, match="steps=9 of m=2 dimensions"):
        compositional_concepts(world.z, steps=9)
    with pytest.raises(OutOfRange, match="held_out=1"):
        compositional_concepts(world.z, held_out=1)
    with pytest.raises(BadData, match="too few for 9 clusters"):
        compositional_concepts(world.z[:20])
    with pytest.raises(BadData, match="all representations are the same"):
        compositional_concepts(np.ones((60, 4)), clusters=(2,))
    with pytest.raises(OutOfRange, match="m=17"):
        learn_rotation(world.z, 17, 3)
    with pytest.raises(OutOfRange, match="clusters=1"):
        learn_rotation(world.z, 2, 1)
    with pytest.raises(ShapeMismatch, match="the concepts are 16 wide"):
        found.assign(np.ones((3, 4)))
    with pytest.raises(OutOfRange, match="step 2 of 2"):
        found.rotation(2)
    with pytest.raises(ShapeMismatch, match=r"labels are \[image concept\]"):
        compositionality(world.z, np.ones((600, 2)), np.ones((3, 16)))
    with pytest.raises(ShapeMismatch, match="True or False"):
        compositionality(world.z, np.full((600, 1), 2), np.ones((1, 16)))
    with pytest.raises(ShapeMismatch, match="one cluster and one value per image"):
        purity(np.zeros(3), np.zeros(4))
