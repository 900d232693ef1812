"""Metrics that ask a method again, on real models: random weights, other classes, shifted pixels, permuted tokens."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch

from mechvis.attribution.attribute import maps_of
from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.methods.act_x_grad import ActTimesGrad
from mechvis.attribution.methods.controls import CentrePrior, InputNorm, RandomMap
from mechvis.attribution.question import Question
from mechvis.errors import BadData, OutOfRange, RefusedMethod, ShapeMismatch
from mechvis.faithfulness import (
    BatchInvariance,
    EfficientMprt,
    Mprt,
    ShiftInvariance,
    SmoothMprt,
    TargetRandomisation,
    TokenEquivariance,
    by_class,
    by_model,
    by_pixels,
    by_place,
    cascade,
    equivariance,
    other_classes,
    permuted_model,
    shifted_model,
    stages,
)
from mechvis.faithfulness.knobs import KnobAgreement, map_shares
from mechvis.faithfulness.randomisation import noisy_copies
from mechvis.models.load import wrap
from mechvis.target import target_of
from mechvis.testing import assert_untouched, tiny, tiny_input, tiny_preprocess

N = 5


def load(family="vit", **more):
    return wrap(tiny(family, dtype=torch.float64, **more), preprocess=tiny_preprocess())


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture(scope="module")
def pixels():
    return tiny_input("vit", n=N, dtype=torch.float64)


def question(model, pixels):
    return Question(
        model=model, pixels=pixels, target=target_of(model, model.run(pixels).output), ids=torch.arange(len(pixels))
    )


@pytest.fixture(scope="module")
def ask(model, pixels):
    return question(model, pixels)


GRADIENT = ActTimesGrad()


# ---- random weights


def test_the_cascade_goes_from_the_top_down(model):
    found = stages(model)
    assert list(found) == ["readout", "blocks.2", "blocks.1", "blocks.0", "everything"]
    sets = list(found.values())
    assert sets[-1] is None and all(a < b for a, b in pairwise(sets[:-1]))
    assert "classifier.weight" in sets[0] and not any("layer" in name and "norm" not in name for name in sets[0])
    assert not any("embeddings" in name for name in sets[3])


@pytest.mark.parametrize("family", ["vit", "clip-classifier", "beit", "dinov2-classifier", "siglip-classifier"])
@pytest.mark.parametrize("how", ["init", "shuffle"])
def test_any_family_and_the_model_stays_as_it_is(family, how):
    model = load(family)
    images = tiny_input("vit", n=2, dtype=torch.float64)
    with assert_untouched(model):
        made = [(name, make()) for name, make in cascade(model, seed=3, how=how)]
        clean = model.run(images).output
        outputs = [other.run(images).output for _, other in made]
    assert made[-1][0] == "everything"
    for name, output in zip(made, outputs, strict=True):
        assert (output - clean).abs().max() > 1e-6, f"step {name[0]} changed nothing"
    kept = dict(model.bare.named_parameters())
    top = dict(made[0][1].bare.named_parameters())
    same = [name for name in kept if torch.equal(kept[name], top[name])]
    assert len(same) > len(kept) / 2, "the first step changed more than the read-out"


def test_same_seed_same_weights_and_another_seed_others(model, pixels):
    first, again, other = (cascade(model, seed=seed, steps=["everything"])[0][1]() for seed in (0, 0, 1))
    outputs = [one.run(pixels).output for one in (first, again, other)]
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    with pytest.raises(BadData, match=r"no step 'blocks.9' in the cascade; steps: readout"):
        cascade(model, steps=["blocks.9"])


def test_maps_that_do_not_look_at_weights_are_caught(model, ask):
    models = cascade(model, seed=1)
    with assert_untouched(model):
        real = Mprt().measure(maps_of(GRADIENT, ask), by_model(GRADIENT, ask), models)
    assert abs(real.values.mean()) < 0.5 and real.curves["spearman"].shape == (N, 5)
    for blind in (RandomMap(), InputNorm()):
        found = Mprt().measure(maps_of(blind, ask), by_model(blind, ask), models)
        np.testing.assert_allclose(found.values, 1.0)
        np.testing.assert_allclose(found.curves["spearman"], 1.0)


def test_flat_maps_are_counted(ask):
    flat = torch.ones(N, 9)
    found = Mprt().measure(flat, lambda m: flat, [("everything", lambda: None)])
    assert found.excluded == N and found.reasons == {"the map is the same number everywhere": N}
    with pytest.raises(BadData, match="no models to compare with"):
        Mprt().measure(flat, lambda m: flat, [])
    with pytest.raises(ShapeMismatch, match="cannot be compared"):
        Mprt().measure(flat, lambda m: flat[:, :4], [("everything", lambda: None)])


def test_smooth_and_efficient_relatives(model, pixels, ask):
    models = cascade(model, seed=1, steps=["everything"])

    def explain(one, some):
        return by_pixels(GRADIENT, question(one, pixels) if one is not model else ask)(some)

    smooth = SmoothMprt(n=4).measure(pixels, explain, model, models)
    blind = SmoothMprt(n=4).measure(pixels, lambda m, x: InputNorm().maps(question(model, x)).values, model, models)
    np.testing.assert_allclose(blind.values, 1.0)
    assert smooth.values.mean() < 0.7
    rise = EfficientMprt().measure(torch.eye(9)[:N] + 0.01, by_model(GRADIENT, ask), models[0][1]())
    assert (rise.values > 0).all()
    zero = EfficientMprt().measure(torch.zeros(N, 9), by_model(GRADIENT, ask), models[0][1]())
    assert zero.reasons == {"a map is zero": N}


def test_noisy_copies_belong_to_the_example(pixels):
    copies = noisy_copies(pixels, 2, 0.1)
    assert torch.equal(noisy_copies(pixels[3:4], 2, 0.1, ids=[3])[1], copies[1][3:4])
    span = pixels.amax((1, 2, 3)) - pixels.amin((1, 2, 3))
    spread = (copies[0] - pixels).flatten(1).std(1) / span
    assert (spread - 0.1).abs().max() < 0.01
    with pytest.raises(OutOfRange, match="sigma=0"):
        noisy_copies(pixels, 2, 0)
    with pytest.raises(ShapeMismatch, match="2 ids for 5 images"):
        noisy_copies(pixels, 2, 0.1, ids=[1, 2])


# ---- other classes


def test_maps_that_do_not_look_at_the_class_are_caught(ask):
    real = TargetRandomisation().measure(maps_of(GRADIENT, ask), by_class(GRADIENT, ask), ask.target.classes, 8)
    assert real.values.mean() < 0.9
    assert (real.extra["other_class"] != ask.target.classes.numpy()).all()
    blind = TargetRandomisation().measure(
        maps_of(CentrePrior(), ask), by_class(CentrePrior(), ask), ask.target.classes, 8
    )
    np.testing.assert_allclose(blind.values, 1.0)


def test_a_contrast_that_becomes_the_class_gives_way(model, pixels):
    target = target_of(model, model.run(pixels).output, contrast="runner_up")
    ask = Question(model=model, pixels=pixels, target=target, ids=torch.arange(N))
    swapped = by_class(GRADIENT, ask)(target.contrast)
    torch.testing.assert_close(swapped, -maps_of(GRADIENT, ask))


def test_other_classes_are_uniform_and_never_the_own():
    classes = torch.arange(4000) % 4
    drawn = other_classes(classes, 4)
    assert (drawn != classes).all()
    away = torch.bincount((drawn - classes) % 4, minlength=4) / 4000
    assert (away[1:] - 1 / 3).abs().max() < 0.03
    assert torch.equal(other_classes(classes[7:8], 4, ids=[7]), drawn[7:8])
    with pytest.raises(OutOfRange, match="there is no other one"):
        other_classes(torch.tensor([0]), 1)
    with pytest.raises(OutOfRange, match="class 5 does not exist"):
        other_classes(torch.tensor([5]), 4)


# ---- what must not change a map


def test_a_shift_that_the_first_layer_takes_back(model, pixels, ask):
    def explain(method):
        return lambda m, x: maps_of(method, Question(model=m, pixels=x, target=ask.target, ids=ask.ids))

    for good in (GRADIENT, InputNorm()):
        found = ShiftInvariance().measure(maps_of(good, ask), explain(good), model, pixels)
        assert found.excluded == 0 and found.values.max() < 1e-9

    def times_pixels(m, x):
        x = x.clone().requires_grad_(True)
        score = ask.target.read(m(x)).sum()
        (gradient,) = torch.autograd.grad(score, x)
        return (x * gradient).detach().unflatten(2, (3, 4)).unflatten(4, (3, 4)).sum((1, 3, 5)).flatten(1)

    own = times_pixels(model, pixels)
    assert ShiftInvariance().measure(own, times_pixels, model, pixels).values.min() > 0.01, "input x gradient must fail"
    with assert_untouched(model):
        torch.testing.assert_close(shifted_model(model, 2.0)(pixels + 2.0), model(pixels))


def test_company_in_the_batch(ask):
    for good in (GRADIENT, RandomMap(), InputNorm()):
        found = BatchInvariance().measure(maps_of(good, ask), by_place(good, ask))
        assert found.values.max() < 1e-9
    bad = maps_of(BatchNormalised(), ask)
    assert BatchInvariance().measure(bad, by_place(BatchNormalised(), ask)).values.max() > 0.1


@dataclass(frozen=True, kw_only=True)
class BatchNormalised(Method):
    """What a batch must not do: values are ranks among the batch."""

    NAME = "batch_normalised"
    CLAIMS = Claims(class_specific=False, signed=False)

    def maps(self, ask):
        values = InputNorm().maps(ask).values
        return Maps(values=values / values.max())


def test_tokens_that_change_places_with_their_positions(model, pixels, ask):
    with assert_untouched(model):
        good = TokenEquivariance().measure(maps_of(GRADIENT, ask), by_model(GRADIENT, ask), model, pixels)
    np.testing.assert_allclose(good.values, 1.0, atol=1e-9)
    prior = TokenEquivariance().measure(maps_of(CentrePrior(), ask), by_model(CentrePrior(), ask), model, pixels)
    assert (prior.values < 0.99).all(), "a positional prior does not follow"
    stays = TokenEquivariance(follows="pixels").measure(
        maps_of(InputNorm(), ask), by_model(InputNorm(), ask), model, pixels
    )
    np.testing.assert_allclose(stays.values, 1.0)


def test_off_by_one_is_caught(model, pixels, ask):
    """A map that is shifted by a patch follows a permutation by nothing."""

    def shifted(one):
        return maps_of(GRADIENT, question(one, pixels)).roll(1, 1)

    found = TokenEquivariance().measure(shifted(model), shifted, model, pixels)
    assert (found.values < 0.9).any()


def test_models_without_the_symmetry_are_refused_or_counted(model, pixels):
    rotary = load("beit")
    with pytest.raises(RefusedMethod, match="depends on the image's layout"):
        permuted_model(rotary, torch.arange(9))
    with pytest.raises(BadData, match="names each of the 9 patches once"):
        permuted_model(model, torch.zeros(9).long())

    found = ShiftInvariance().measure(torch.rand(N, 9), lambda m, x: torch.rand(N, 9), Noisy(model), pixels)
    assert found.reasons == {"the model itself is not invariant here": N}


class Noisy:
    """A model that answers something else each time."""

    def __init__(self, model):
        self.parts, self.bare, self.preprocess, self.title = model.parts, model.bare, model.preprocess, "noisy"
        self.model = model

    def __call__(self, pixels):
        return self.model(pixels) + torch.rand(len(pixels), 8)


def test_tanh_sum_of_the_specification():
    """methods2.md 20.2: a permutation-invariant model. Gradient x input follows exactly; with a positional prior it
    does not (0.73); averaged over the group it does again."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(6, generator=generator).double()
    x = torch.randn(20, 8, 6, generator=generator).double()  # [image token feature]

    def explain(values, prior=None):
        values = values.clone().requires_grad_(True)
        score = torch.tanh(values @ weights).sum()
        (gradient,) = torch.autograd.grad(score, values)
        found = (values * gradient).sum(-1).detach()
        return found if prior is None else found * prior

    prior = torch.linspace(0.1, 3.0, 8).double()
    orders = [torch.randperm(8, generator=generator) for _ in range(50)]
    good = equivariance([explain(x[:, g]) for g in orders], [explain(x)[:, g] for g in orders])
    bad = equivariance([explain(x[:, g], prior) for g in orders], [explain(x, prior)[:, g] for g in orders])
    assert good.min() > 1 - 1e-12 and 0.4 < bad.mean() < 0.95

    cyclic = [torch.arange(8).roll(step) for step in range(8)]

    def symmetrised(values):
        total = 0
        for g in cyclic:
            back = torch.empty_like(g)
            back[g] = torch.arange(8)
            total = total + explain(values[:, g], prior)[:, back]
        return total / 8

    whole = equivariance([symmetrised(x[:, g]) for g in cyclic], [symmetrised(x)[:, g] for g in cyclic])
    assert whole.min() > 1 - 1e-12
    with pytest.raises(BadData, match="one pair per symmetry"):
        equivariance([], [])


# ---- knobs


def test_variance_of_maps_by_knob_seed_and_image():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 1, 6, 40, generator=generator)
    knob = torch.randn(4, 1, 6, 40, generator=generator)
    seed = torch.randn(4, 5, 6, 40, generator=generator)
    same = image.expand(4, 5, -1, -1)
    assert map_shares(same)["image"] == pytest.approx(1)
    assert map_shares(same * torch.tensor([1.0, 2, 3, 4])[:, None, None, None])["image"] == pytest.approx(1)
    only_knob = map_shares(knob.expand(-1, 5, -1, -1))
    assert only_knob["knob"] > 0.7 and only_knob["seed"] == pytest.approx(0, abs=1e-9)
    assert map_shares(seed)["seed"] > 0.7
    assert sum(map_shares(image + knob + seed).values()) == pytest.approx(1)
    with pytest.raises(OutOfRange, match="same number everywhere"):
        map_shares(torch.ones(2, 2, 2, 4))


def test_agreement_over_settings():
    maps = torch.randn(1, 30, 50, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1)
    found = KnobAgreement().measure(maps)
    np.testing.assert_allclose(found.values, 1.0)
    np.testing.assert_allclose(found.extra["top_overlap"], 1.0)
    noise = KnobAgreement().measure(torch.randn(4, 30, 50, generator=torch.Generator().manual_seed(1)))
    assert abs(noise.values.mean()) < 0.05 and noise.extra["worst_pair"].mean() < noise.values.mean()
    with pytest.raises(ShapeMismatch, match="at least two settings"):
        KnobAgreement().measure(maps[:1])
