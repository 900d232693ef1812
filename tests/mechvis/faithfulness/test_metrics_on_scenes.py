"""The bundled model: maps of the model beat those that know nothing of it, under every operator, with intervals."""

import pytest
import torch

import mechvis
from mechvis import stats
from mechvis.attribution.attribute import maps_of
from mechvis.attribution.methods.act_x_grad import ActTimesGrad
from mechvis.attribution.methods.controls import RandomMap
from mechvis.attribution.question import Question
from mechvis.faithfulness import Abpc, Answers, MuFidelity, measure, metric, preset, titles_of
from mechvis.target import target_of
from mechvis.testing import assert_untouched


@pytest.fixture(scope="module")
def setting():
    model = mechvis.load("scenes-vit")
    images = mechvis.data.scenes(n=20, seed=7)
    pixels = images.pixels_for(model.preprocess)
    target = target_of(model, model.run(pixels).logits, contrast="runner_up")
    ask = Question(model=model, pixels=pixels, target=target, ids=torch.arange(20))
    return ask, images.masks_for(model.preprocess)


def test_a_map_of_the_model_is_told_from_noise(setting):
    ask, _ = setting
    answers = Answers(ask.game("mean"))
    ours, noise = (maps_of(method, ask) for method in (ActTimesGrad(), RandomMap()))
    with assert_untouched(ask.model):
        for one in (Abpc(steps=4), MuFidelity(n=20)):
            difference = stats.paired_difference(one.measure(ours, answers).values, one.measure(noise, answers).values)
            assert difference.low[0] > 0


@pytest.mark.slow
def test_smoke_preset(setting):
    ask, masks = setting
    games = {name: Answers(ask.game(name)) for name in ("mean", "blur")}
    metrics = [*preset("smoke-v1"), *preset("localisation-v1")]
    with assert_untouched(ask.model):
        ours = measure(maps_of(ActTimesGrad(), ask), games, metrics, masks=masks)
        noise = measure(maps_of(RandomMap(), ask), games, metrics, masks=masks)
    assert list(ours) == titles_of(metrics)
    for name in ("abpc/mean/steps=8", "saco/mean/groups=8", "mu_fidelity/mean/n=32", "mu_fidelity/blur/n=32"):
        difference = stats.paired_difference(ours[name].values, noise[name].values)
        assert difference.low[0] > 0, f"{name} does not tell a map of the model from noise"
    for name in ("abpc/mean/steps=8", "saco/blur/groups=8"):
        chance = noise[name].estimate()
        assert chance.low[0] - 0.2 < 0 < chance.high[0] + 0.2
    assert ours["relevance_mass"].values.mean() > 2 * ours["relevance_mass"].baselines["mask_area"].mean()


@pytest.mark.slow
def test_road_and_perturbation_tell_most_from_least(setting):
    ask, _ = setting
    maps = maps_of(ActTimesGrad(), ask)
    for most, least in (("road_morf", "road_lerf"), ("positive_perturbation", "negative_perturbation")):
        answers = Answers(ask.game(metric(most)().operator))
        first, last = (metric(name)().measure(maps, answers) for name in (most, least))
        assert stats.paired_difference(last.values, first.values).low[0] > 0
