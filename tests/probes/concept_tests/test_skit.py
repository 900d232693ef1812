"""Concepts of made-up scores: what depends, what only seems to, what holds for one image, and their ranking."""

import numpy as np
import pytest
from scipy.stats import kstest

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, SplitOverlap, UnknownName
from probes.concept_tests.betting import (
    ConceptImportance,
    ConditionalSampler,
    concept_importance,
    conditional_test,
    global_test,
    local_importance,
    local_test,
    sampler_check,
)


def world(n, seed):
    """Concept 1 goes along with concept 0 (correlation .8) and does nothing; concept 2 matters too; 3 does not."""
    generator = np.random.default_rng(seed)
    z = generator.normal(size=(n, 4))
    z[:, 1] = 0.8 * z[:, 0] + 0.6 * z[:, 1]
    return 2 * z[:, 0] + 1.2 * z[:, 2] + 0.3 * generator.normal(size=n), z


@pytest.fixture(scope="module")
def tested():
    return world(400, 0)


@pytest.fixture(scope="module")
def reference():
    return world(3000, 1)


@pytest.fixture(scope="module")
def sampler(reference):
    return ConditionalSampler(reference[1], ess=100)


# the sampler


def test_drawn_scores_follow_the_conditional_distribution(sampler):
    """Of normal scores it is known: mean .8 z0, standard deviation .6, up to the smoothing of a kernel density."""
    drawn = ConditionalSampler(sampler.reference, ess=300).draw(
        np.array([[1.0, 0, 0, 0]]), [0], np.random.default_rng(0), draws=3000
    )[:, 0]
    assert (drawn[:, 0] == 1.0).all(), "what is given stays"
    assert drawn[:, 1].mean() == pytest.approx(0.8, abs=0.1) and drawn[:, 1].std() == pytest.approx(0.6, abs=0.15)
    assert drawn[:, 3].mean() == pytest.approx(0, abs=0.15)
    free = sampler.draw(np.zeros((1, 4)), [], np.random.default_rng(0), draws=3000)[:, 0]
    assert kstest(free[:, 2], "norm").statistic < 0.15 and abs(np.corrcoef(free[:, 0], free[:, 1])[0, 1] - 0.8) < 0.05


def test_draws_are_as_wide_as_asked_for(sampler):
    """Without the correction a density estimate is wider than its data, here by sqrt(1 + f^2) of about 1.1."""
    plain = {"ess": 100, "adjust": False}
    sampler, wide = (ConditionalSampler(sampler.reference, **plain, keep_spread=keep) for keep in (True, False))
    query = np.zeros((1, 4)), [0, 1, 2], np.random.default_rng(0)
    made = {name: s.draw(*query, draws=20_000)[:, 0, 3] for name, s in (("kept", sampler), ("wide", wide))}
    w = sampler.weights(query[0], np.array([0, 1, 2]))[0]
    spread = np.sqrt(w @ np.square(sampler.reference[:, 3]) - np.square(w @ sampler.reference[:, 3]))
    factor = 100 ** (-1 / 5)
    assert made["kept"].std() == pytest.approx(spread, rel=0.03)
    assert made["wide"].std() == pytest.approx(spread * np.sqrt(1 + factor**2), rel=0.03)


def test_the_effective_number_is_what_was_asked_for(sampler, tested):
    weights = sampler.weights(tested[1][:50], np.array([0, 2]))
    np.testing.assert_allclose(weights.sum(1), 1)
    np.testing.assert_allclose(1 / np.square(weights).sum(1), 100, rtol=1e-3)
    assert sampler.weights(np.full((1, 4), 40.0), np.array([0])).max() > 0, "far from all reference images too"
    assert ConditionalSampler(world(3000, 2)[1]).ess == 300


def test_the_check_of_a_sampler(sampler):
    fresh = [world(200, 50 + seed)[1] for seed in range(8)]
    good = [sampler_check(sampler, z, 1, flips=199) for z in fresh]
    assert np.median(good) > 0.1 and np.mean(np.array(good) < 0.05) <= 0.25
    blind = ConditionalSampler(np.random.default_rng(0).normal(size=(3000, 4)), ess=100)
    bad = [sampler_check(blind, z, 1, flips=199) for z in fresh]
    assert max(bad) < 0.02, "this one does not know that concept 1 follows concept 0"
    with pytest.raises(SplitOverlap, match="100 tested images are in the sampler's own reference"):
        sampler_check(sampler, sampler.reference[:100], 1)


# one concept


def test_the_global_test_sees_what_only_goes_along(tested):
    y, z = tested
    tests = [global_test(y, z[:, j], tau_max=150, orders=10) for j in range(4)]
    assert [found.rejected.mean() for found in tests[:2]] == [1.0, 1.0] and tests[3].rejected.mean() <= 0.2
    assert tests[0].tau.mean() < tests[1].tau.mean() < tests[2].tau.mean()


def test_the_conditional_test_does_not(tested, sampler):
    y, z = tested
    tests = [conditional_test(y, z, j, sampler, tau_max=300, orders=4) for j in range(4)]
    assert tests[0].rejected.mean() == 1.0 and tests[2].rejected.mean() >= 0.75
    assert tests[1].rejected.mean() <= 0.25 and tests[3].rejected.mean() <= 0.25


def test_the_level_of_the_conditional_test(sampler):
    """Fresh images for every run: concept 1 given the others is independent of the output."""
    rejected = [conditional_test(*world(120, 100 + run), 1, sampler).rejected[0] for run in range(40)]
    assert np.mean(rejected) <= 0.05


def test_one_image(sampler, reference):
    """An image whose concept 0 is large: holding it moves the output, holding concept 3 does not."""
    outputs, image = reference[0], np.array([2.0, 1.6, 0.0, 2.0])
    held = [local_test(image, j, sampler, outputs, tau_max=100, orders=5) for j in (0, 3)]
    assert held[0].rejected.all() and held[1].rejected.mean() <= 0.2
    beside = local_test(image, 1, sampler, outputs, given=[0], tau_max=100, orders=5)
    assert beside.rejected.mean() <= 0.2 < local_test(image, 1, sampler, outputs, tau_max=100, orders=5).rejected.mean()


def test_the_level_of_the_local_test(reference):
    """Concept 3 is read by nobody, so holding it changes nothing, whatever else is held."""
    image, sampler = np.array([1.0, 0.8, 0.0, 0.5]), ConditionalSampler(reference[1])
    quick = {"tau_max": 200, "orders": 40}
    rejected = {
        (draws, given): local_test(image, 3, sampler, reference[0], given=given, draws=draws, **quick).rejected.mean()
        for draws in ("weights", "nearest")
        for given in ((), (0,), (0, 2))
    }
    assert max(rate for (draws, _), rate in rejected.items() if draws == "weights") <= 0.05
    assert rejected["nearest", (0, 2)] > 0.15, "the released form: what stands for a draw is not what was drawn"
    with pytest.raises(OutOfRange, match="tau_max=301 draws from effectively 300 images"):
        local_test(image, 3, sampler, reference[0], tau_max=301)
    assert local_test(image, 3, sampler, reference[0]).steps == 300
    with pytest.raises(UnknownName, match="unknown kind of draws 'kde'"):
        local_test(image, 3, sampler, reference[0], draws="kde")


def test_repeatable(tested):
    y, z = tested
    first, second, other = (global_test(y, z[:, 2], orders=3, seed=seed).tau.tolist() for seed in (1, 1, 2))
    assert first == second != other


def test_outputs_may_be_vectors(tested):
    y, z = tested
    both = np.stack([np.random.default_rng(0).normal(size=400), y], axis=1)
    assert global_test(both, z[:, 0]).rejected.all()


# all concepts


@pytest.fixture(scope="module")
def everything(tested):
    y, z = tested
    ids = [f"image {i}" for i in range(400)]
    return concept_importance(y, z, names=list("abcd"), tau_max=150, orders=15, ids=ids, progress=False)


def test_ranking(everything):
    assert everything.ranking[:3] == ("a", "b", "c") and set(everything.rejected) == {"a", "b", "c"}
    rows = {row["concept"]: row for row in everything.table.iter_rows(named=True)}
    assert rows["a"]["rank"] == 1 and rows["a"]["importance"] > rows["c"]["importance"] > rows["d"]["importance"]
    assert rows["a"]["rejection_rate"] == 1.0 and rows["a"]["e_value"] >= 80, "runs go on to K / alpha"
    assert rows["a"]["correlation"] > 0.8 and abs(rows["d"]["correlation"]) < 0.15
    assert rows["a"]["low"] <= rows["a"]["importance"] <= rows["a"]["high"]
    assert not rows["d"]["rejected"] and (everything.table["rejected_greedy"] <= everything.table["rejected"]).all()
    assert everything.facts["tau_max"] == 150 and everything.arrays["tau"].shape == (4, 15)


def test_conditional_ranking(tested, reference, everything):
    y, z = tested
    found = concept_importance(
        y, z, names=list("abcd"), kind="conditional", reference=reference[1], ess=100, tau_max=400, orders=3,
        progress=False,
    )  # fmt: skip
    assert found.ranking[:2] == ("a", "c") and set(found.rejected) == {"a", "c"} != set(everything.rejected)
    assert (found.table["sampler_p"] > 0.01).all() and len(found.caveats) == 1


def test_a_sampler_that_fails_is_named(tested):
    y, z = tested
    blind = np.random.default_rng(0).normal(size=(1000, 4))
    found = concept_importance(y, z, kind="conditional", reference=blind, ess=50, tau_max=60, orders=2, progress=False)
    assert "The sampler fails its check for" in found.caveats[1] and "concept 1" in found.caveats[1]


def test_local_ranking(reference):
    outputs, z = reference
    found = local_importance(
        np.array([2.0, 1.6, 0.0, 2.0]), z, outputs, ess=100, given=[1], tau_max=80, orders=5, progress=False
    )
    assert found.ranking[0] == "concept 0" and "concept 1" not in found.ranking and found.facts["given"] == "concept 1"


def test_saved_and_loaded(everything, tmp_path):
    again = ConceptImportance.load(everything.save(tmp_path))
    assert again.ranking == everything.ranking and again.table.equals(everything.table)
    assert "Pale: not rejected" in everything.report(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "told soonest" in everything.report(tmp_path / "r.html").read_text(encoding="utf-8")


def test_what_is_refused(tested, reference, sampler):
    y, z = tested
    with pytest.raises(BadData, match="400 images with 399 different names: an image may take part in a run once only"):
        global_test(y, z[:, 0], ids=["same", "same", *map(str, range(398))])
    with pytest.raises(ShapeMismatch, match="400 outputs but scores of 10 images"):
        global_test(y, z[:10, 0])
    with pytest.raises(NotFinite, match="outputs: image 5 holds NaN"):
        global_test(np.where(np.arange(400) == 5, np.nan, y), z[:, 0])
    with pytest.raises(BadData, match="3 images are too few"):
        global_test(y[:3], z[:3, 0])
    with pytest.raises(OutOfRange, match=r"tau_max=1 .* orders=1"):
        global_test(y, z[:, 0], tau_max=1)
    with pytest.raises(SplitOverlap, match="400 tested images are in the sampler's own reference"):
        conditional_test(y, z, 0, ConditionalSampler(z))
    with pytest.raises(SplitOverlap, match="1 tested images"):
        named = {"ids": [f"t{i}" for i in range(400)], "reference_ids": ["t7", "r1"]}
        concept_importance(y, z, kind="conditional", reference=reference[1], progress=False, **named)
    with pytest.raises(OutOfRange, match="concept 4 of 4"):
        conditional_test(y, z, 4, sampler)
    with pytest.raises(BadData, match="nothing to condition on"):
        conditional_test(y, z[:, :1], 0, sampler)
    with pytest.raises(BadData, match="concept 2 is tested, so it cannot be among the given ones"):
        local_test(z[0], 2, sampler, reference[0], given=[2])
    with pytest.raises(ShapeMismatch, match="got 10 outputs and 4 scores"):
        local_test(z[0], 2, sampler, reference[0][:10])
    with pytest.raises(BadData, match="concept 1 has one score for all"):
        ConditionalSampler(np.stack([z[:, 0], np.ones(400)], axis=1))
    with pytest.raises(BadData, match="too few to draw from"):
        ConditionalSampler(z[:10])
    with pytest.raises(OutOfRange, match="ess=9999"):
        ConditionalSampler(z, ess=9999)
    with pytest.raises(OutOfRange, match=r"concepts \[7\] of 4"):
        sampler.draw(z, [7], np.random.default_rng(0))
    with pytest.raises(OutOfRange, match="draws=0"):
        sampler.draw(z, [1], np.random.default_rng(0), draws=0)
    with pytest.raises(UnknownName, match="unknown kind of test 'causal'"):
        concept_importance(y, z, kind="causal")
    with pytest.raises(BadData, match="give it there and only there"):
        concept_importance(y, z, kind="conditional")
    with pytest.raises(BadData, match="the score of 'concept 0' is the same for all images"):
        concept_importance(y, np.ones((400, 1)))
    with pytest.raises(ShapeMismatch, match="4 concepts need 4 different names, got 2"):
        concept_importance(y, z, names=["a", "b", "a", "b"])
    with pytest.raises(BadData, match="none is left to test"):
        local_importance(z[0], reference[1], reference[0], given=range(4))
