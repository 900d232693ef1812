"""Cards of probes, text spans and concepts: what is there passes, what was spoilt is caught."""

from dataclasses import replace

import numpy as np
import pytest

import mechvis
from mechvis.cards import CardData
from mechvis.errors import BadData, ResultMismatch, SplitOverlap
from probes.concepts.craft import craft
from probes.linear import probe_model
from probes.textspan import text_span

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model():
    return mechvis.load("scenes-vit")


@pytest.fixture(scope="module")
def clip():
    return mechvis.load("scenes-clip")


@pytest.fixture(scope="module")
def others():
    return mechvis.data.scenes(n=96, seed=99)


def with_arrays(record, **arrays):
    return replace(record, arrays={**record.arrays, **arrays})


# probes


@pytest.fixture(scope="module")
def probes_of_background(model):
    images = mechvis.data.scenes(n=240, seed=7)
    return probe_model(model, images, sites=SITE, target="background", code=False, progress=False)


def test_card_of_a_probe(probes_of_background, model, others):
    card = probes_of_background.card(CardData(model=model, images=others))
    assert not card.failed, card
    own = card.measure("accuracy")
    assert own.value > card.measure("accuracy", control="commonest class").value and own.n == 64
    assert card.measure("accuracy", control="model with random weights").value < own.value
    assert card.measure("erasing", control="random directions").n == 64
    assert card.verify(model) is card
    assert probes_of_background.card(CardData(model=model, images=others)).sha256 == card.sha256


def test_a_probe_with_shuffled_weights_is_caught(probes_of_background, model, others):
    name = f"weights/{SITE}:read"
    spoilt = with_arrays(probes_of_background, **{name: np.roll(probes_of_background.arrays[name], 3, axis=1)})
    assert {"G6", "G9"} & {gate.id for gate in spoilt.card(CardData(model=model, images=others)).failed}


def test_a_probe_of_other_images_columns_or_models_is_refused(probes_of_background, model, clip, others):
    with pytest.raises(SplitOverlap):
        probes_of_background.card(CardData(model=model, images=mechvis.data.scenes(n=240, seed=7)))
    with pytest.raises(ResultMismatch, match="another model"):
        probes_of_background.card(CardData(model=clip.vision, images=others))
    with pytest.raises(BadData, match="ImageSet"):
        probes_of_background.card(CardData(model=model, images=others.pixels_for(model.preprocess)))


# texts


@pytest.fixture(scope="module")
def span(clip):
    return text_span(clip, mechvis.data.scenes(n=96, seed=6), "scenes", m=4, progress=False)


def test_card_of_a_text_span(span, clip, others):
    card = span.card(CardData(model=clip, images=others))
    assert not card.failed, card
    own, best = card.measure("explained"), card.measure("explained", control="principal components")
    assert card.measure("explained", control="random directions").value < own.value < best.value
    assert card.table("heads").height == len(span.heads) and card.verify(clip.vision) is card


def test_texts_of_other_heads_are_caught(span, clip, others):
    spoilt = with_arrays(span, basis=np.roll(span.arrays["basis"], 3, axis=0))
    assert {"G6a", "G9"} & {gate.id for gate in spoilt.card(CardData(model=clip, images=others)).failed}
    with pytest.raises(BadData, match="no text tower"):
        span.card(CardData(model=clip.vision, images=others))
    with pytest.raises(SplitOverlap):
        span.card(CardData(model=clip, images=mechvis.data.scenes(n=96, seed=6)))


# concepts


@pytest.fixture(scope="module")
def concepts(model):
    images = mechvis.data.scenes(n=200, seed=5)
    return craft(model, images, "star", n_concepts=5, importance="occlusion", progress=False)


def test_card_of_concepts(concepts, model, others):
    card = concepts.card(CardData(model=model, images=others))
    assert not {"G5", "G6a", "G8"} & {gate.id for gate in card.failed}, card
    assert card.measure("fvu").value < card.measure("fvu", control="random concepts").value
    assert card.table("importance").height == 5 and card.verify(model) is card


def test_spoilt_concepts_are_caught(concepts, model, others):
    bank = np.random.default_rng(0).normal(size=concepts.arrays["bank"].shape)
    bank *= np.linalg.norm(concepts.arrays["bank"], axis=1, keepdims=True) / np.linalg.norm(bank, axis=1, keepdims=True)
    spoilt = with_arrays(concepts, bank=bank)
    assert {"G6a", "G6b", "G9"} & {gate.id for gate in spoilt.card(CardData(model=model, images=others)).failed}
    crops = replace(concepts, facts={**concepts.facts, "site": "hook_pooled"})
    with pytest.raises(BadData, match="patches of a layer"):
        crops.card(CardData(model=model, images=others))
