"""Cards of maps, rankings and edits: exact explanations pass, spoilt ones are caught, and twice is the same."""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest
import torch

import mechvis
from mechvis import edits
from mechvis.attribution import Attribution, attribute
from mechvis.attribution.method import Maps
from mechvis.attribution.methods.act_x_grad import ActTimesGrad
from mechvis.attribution.methods.controls import RandomMap
from mechvis.cards import CardData, attribution_card, edit_card
from mechvis.errors import BadData, UnknownName
from mechvis.models.load import wrap
from mechvis.testing import assert_untouched, tiny, tiny_input, tiny_preprocess


@pytest.fixture(scope="module")
def model():
    return mechvis.load("scenes-vit")


@pytest.fixture(scope="module")
def images():
    return mechvis.data.scenes(n=16, seed=8)


@pytest.fixture(scope="module")
def found(model, images):
    return attribute(model, images, "act_x_grad", contrast="runner_up", progress=False)


@pytest.fixture(scope="module")
def card(model, images, found):
    with assert_untouched(model.bare):
        return found.card(CardData(model=model, images=images))


def status(card, id):
    return {gate.status for gate in card.gates if gate.id.startswith(id)}


def test_card_of_maps(card, model, images):
    for id in ("G1", "G3", "G4", "G5", "G8", "G9"):
        assert status(card, id) == {"pass"}, (id, card)
    assert status(card, "G2") == {"not applicable"} and status(card, "G7") <= {"pass", "fail"}
    assert card.measure("abpc", "mean").value > card.measure("abpc", "mean", control="random").value
    assert {m.operator for m in card.measures} == {"mean", "token_drop"}
    assert card.table("planted")["variant"].n_unique() >= 6 and card.table("sensitivity").height == 6
    assert "localisation (not faithfulness)" in card.content["tables"]
    assert "16 images of scenes" in card.scope and card.verify(model, images) is card


def test_twice_is_the_same(card, model, images, found):
    assert found.card(CardData(model=model, images=images)).sha256 == card.sha256


def test_spoilt_maps_are_not_what_the_method_gives(model, images, found):
    shifted = Attribution(
        title=found.title,
        tables=found.tables,
        arrays={"maps": np.roll(found.maps, 1, axis=0)},
        facts=found.facts,
        provenance=found.provenance,
    )
    assert status(shifted.card(CardData(model=model, images=images)), "G9") == {"fail"}
    with pytest.raises(BadData, match="other images"):
        found.card(CardData(model=model, images=mechvis.data.scenes(n=16, seed=9)))


def test_noise_fails_where_it_should(model, images):
    found = attribution_card(RandomMap(), CardData(model=model, images=images))
    assert {"G3", "G4", "G5b", "G6a"} <= {gate.id for gate in found.failed}
    assert status(found, "G5a") == {"pass"}


@dataclass(frozen=True, kw_only=True)
class WithNaN(ActTimesGrad):
    NAME = "nan"

    def maps(self, ask):
        values = super().maps(ask).values.clone()
        values[0, 0] = torch.nan
        return Maps(values=values)


def test_nan_is_a_failed_gate_and_no_crash(model, images):
    found = attribution_card(WithNaN(), CardData(model=model, images=images))
    assert [gate.id for gate in found.failed] == ["G8"] and not found.measures


def test_few_images_and_unknown_levels_are_refused(model, images, found):
    with pytest.raises(BadData, match="at least 4"):
        attribution_card(ActTimesGrad(), CardData(model=model, images=images[:2]))
    with pytest.raises(UnknownName, match="smoke"):
        found.card(CardData(model=model, images=images), level="smokey")


@pytest.mark.parametrize("family", ["beit-mean", "clip-classifier", "siglip-classifier", "dinov2-registers-classifier"])
def test_models_that_pool_their_patches_get_cards_too(family):
    tiny_model = wrap(tiny(family), preprocess=tiny_preprocess())
    pixels = tiny_input("vit", n=5)
    found = attribution_card(ActTimesGrad(layer=0), CardData(model=tiny_model, images=pixels))
    assert found.measures and len({m.operator for m in found.measures}) == 2
    assert status(found, "G1") == {"pass"} == status(found, "G5")


# rankings


@pytest.fixture(scope="module")
def ranking(model):
    given = mechvis.data.scenes(n=48, seed=7)
    return mechvis.sweep(model, given, units="heads", edit="mean_positional", metric="logit_diff", progress=False)


@pytest.fixture(scope="module")
def fresh(model):
    return CardData(model=model, images=mechvis.data.scenes(n=60, seed=8))


def test_card_of_a_ranking(ranking, fresh, model):
    card = ranking.card(fresh)
    assert not card.failed and status(card, "G9") == {"pass"} == status(card, "G7")
    assert card.measure("joint_drop_top2", "zero").value > card.measure("joint_drop_top2", "zero", "random").value
    assert card.table("planted")["effect"][0] > 100 * card.table("planted")["largest other"][0]
    assert card.verify(model) is card


@pytest.mark.parametrize("spoil", ["shuffled heads", "one layer off"])
def test_spoilt_rankings_are_caught(ranking, fresh, spoil):
    table = ranking.table
    if spoil == "shuffled heads":
        order = np.random.default_rng(0).permutation(table.height)
        table = table.with_columns(table[column].gather(order) for column in ("effect", "low", "high", "p"))
        spoilt = replace(ranking, table=table, values={})
    else:
        n_layers = table["layer"].max() + 1
        spoilt = replace(ranking, table=table.with_columns(layer=(pl.col("layer") + 1) % n_layers), values={})
    assert {"G6a", "G9"} & {gate.id for gate in spoilt.card(fresh).failed}


def test_what_cannot_be_ranked_again_is_refused(ranking, fresh):
    with pytest.raises(BadData, match="can be ablated again"):
        replace(ranking, kind="latents_sweep").card(fresh)
    few = CardData(model=fresh.model, images=fresh.images[:9])
    with pytest.raises(BadData, match="at least 12"):
        ranking.card(few)


# edits


def test_card_of_an_edit(model, fresh):
    edit = edits.zero("blocks.2.attn.hook_z", heads=[2])
    with assert_untouched(model.bare):
        card = edit_card(edit, fresh, intended="conflicting")
    assert not card.failed and card.measure("dose_response").value > 0.8
    assert card.measure("change_size").value > card.measure("change_size", control="random direction").value
    assert card.measure("other_kl").n + card.measure("change").n == 60
    assert card.table("dose")["change"][0] == 0.0
    assert edit_card(edit, fresh, intended="conflicting").sha256 == card.sha256


def test_a_random_push_is_no_better_than_random_pushes(model, fresh):
    push = edits.add("blocks.2.hook_resid_post", torch.randn(128, generator=torch.Generator().manual_seed(0)))
    assert "G6" in {gate.id for gate in push.card(fresh).failed}


def test_an_edit_that_does_nothing_fails_and_wrong_words_are_refused(model, fresh):
    nothing = edits.scale("blocks.2.attn.hook_z", 1.0)
    assert "G8" in {gate.id for gate in nothing.card(fresh).failed}
    with pytest.raises(UnknownName, match="conflicting"):
        edit_card(nothing, fresh, intended="conflicted")
    with pytest.raises(BadData, match="at least one edit"):
        edit_card([], fresh)
