"""Cards of dictionaries: a trained one passes, random directions do not, and the scale is checked by two known ones."""

import pytest
import torch

import mechvis
import sae
from mechvis.cards import CardData
from mechvis.errors import BadData, SplitOverlap
from sae.data import from_model

SITE = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def model():
    return mechvis.load("scenes-vit")


@pytest.fixture(scope="module")
def trained_on():
    return mechvis.data.scenes(n=150, seed=1)


@pytest.fixture(scope="module")
def data(model, trained_on):
    return CardData(model=model, images=mechvis.data.scenes(n=36, seed=8), chosen_on=trained_on)


@pytest.fixture(scope="module")
def dictionary(model, trained_on):
    settings = sae.Training(tokens=40_000, batch=512, lr=4e-3)
    rows = from_model(model, trained_on, SITE, size=512)
    return sae.train(rows, sae.TopK(n_latents=256, k=8), settings, progress=False).dictionary


@pytest.fixture(scope="module")
def card(dictionary, data):
    return dictionary.card(data)


def test_a_trained_dictionary_passes(card, model):
    assert not card.failed, card
    assert card.measure("fvu").value < card.measure("fvu", control="random").value < 1
    assert card.measure("fvu", control="identity").value == 0 and card.measure("fvu", control="zero").value >= 1
    assert card.measure("loss_recovered", "zero", "identity").value == pytest.approx(1)
    assert card.measure("loss_recovered", "zero", "zero").value == pytest.approx(0, abs=1e-6)
    assert {"fvu, cls", "fvu, patch"} <= {m.id for m in card.measures}
    assert card.table("planted")["mean max cosine"][0] > 0.9
    assert card.verify(model) is card and card.measure("l0").value == 8


def test_the_card_says_what_the_evaluation_says(card, dictionary, data, model):
    images, reference = data.at("smoke").images, data.at("smoke").reference
    row = sae.evaluate(
        dictionary, model, images, reference=reference, metrics=["recovered"], baselines=[], progress=False
    ).table.row(0, named=True)
    assert card.measure("fvu").value == pytest.approx(row["fvu"], rel=1e-9)
    assert card.measure("loss_recovered", "mean").value == pytest.approx(row["loss_mean"], rel=1e-6)


def test_random_directions_are_caught(data, dictionary):
    torch.manual_seed(0)
    random = sae.start(sae.TopK(n_latents=256, k=8), {SITE: torch.randn(600, 128)}, seed=5)
    failed = {gate.id for gate in random.card(CardData(model=data.model, images=data.images)).failed}
    assert {"G6a", "G9"} & failed


def test_images_that_trained_it_are_refused(dictionary, model, trained_on):
    with pytest.raises(SplitOverlap):
        dictionary.card(CardData(model=model, images=trained_on))
    with pytest.raises(BadData, match="at least 6 images"):
        dictionary.card(CardData(model=model, images=mechvis.data.scenes(n=4, seed=9)))
