"""Concepts of a wrapped model: F2's slots come back, those of scenes-vit lie where the masks say."""

import numpy as np
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.errors import BadData, OutOfRange, UnknownName
from probes.concepts import Concepts, activations, craft, refine_at
from probes.concepts.pieces import images_of_class
from probes.concepts.tail import pixels_of

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model():
    return mechvis.load("scenes-vit")


@pytest.fixture(scope="module")
def images():
    return mechvis.data.scenes(160, seed=21, correlation=0.5)


@pytest.fixture(scope="module")
def shortcut():
    return testing.shortcut_vit(), testing.shortcut_images(120).image_set()


@pytest.fixture(scope="module")
def found(model, images):
    return craft(
        model,
        images,
        "star",
        n_concepts=6,
        importance="occlusion",
        chosen="all",
        importance_images=24,
        top=3,
        progress=False,
    )


# F2: every slot is known


def test_f2_the_most_important_concept_is_the_evidence_for_the_class(shortcut):
    model, images = shortcut
    for number, name in enumerate("ab"):
        found = craft(model, images, name, n_concepts=7, importance="occlusion", chosen="all", progress=False, seed=1)
        table, bank = found.table, found.arrays["bank"]
        promoted = bank[:, 6:9]
        assert promoted[0].argmax() == number and promoted[0, number] > 0.5
        assert table["importance"][0] > 5 * table["importance"][1] and table["low"][0] > 0.5
        assert found.facts["same_class"] > 0.95 and found.facts["relative_error"] < 0.3


def test_f2_the_marker_of_the_object_is_called_object(shortcut):
    model, images = shortcut
    found = craft(model, images, "a", n_concepts=7, importance="occlusion", chosen="all", progress=False, seed=1)
    marker = np.argmax(found.arrays["bank"][:, 0] - found.arrays["bank"][:, 1])
    row = found.table.row(int(marker), named=True)
    assert row["what"] == "object" and row["auroc"] > 0.99 and row["moves_low"] > 0.4
    assert set(found.table["what"]) > {"object"}, "not all of them are"


# scenes-vit


def test_concepts_of_scenes_lie_on_the_object_and_around_it(found):
    table = found.table
    on, off = (table.filter(table["what"] == what) for what in ("object", "background"))
    assert len(on) and len(off)
    assert on["auroc"].max() > 0.8 and off["auroc"].min() < 0.25
    assert (on["auroc_low"] > 0.5).all() and (on["moves_low"] > 0).all() and (off["moves_high"] < 0).all()
    facts = found.facts
    assert facts["auroc_centre"] > 0.8, "objects stand in the middle: hence the masks of other images as a control"
    assert 0 < facts["auroc_random_object"] < 1
    assert any("random directions" in line for line in found.caveats)


def test_it_was_measured_on_other_images_than_fitted(found, images):
    assert found.facts["fitted_images"] + found.facts["measured_images"] == len(images)
    assert len(found.tables["images"]) == 80 and len(found.importances()) == 24
    assert found.arrays["codes"].shape == (80, 64, 6)
    assert (found.table["n"] == 24).all() and (found.table["auroc_n"] == 80).all()


def test_it_saves_loads_reports_and_codes_again(found, model, images, tmp_path):
    found.save(tmp_path / "concepts")
    again = Concepts.load(tmp_path / "concepts")
    assert again.table.equals(found.table)
    np.testing.assert_array_equal(again.arrays["codes"], found.arrays["codes"])
    rows, *_ = activations(model, images[:2], SITE)
    coded = again.factorisation().encode(rows.flatten(0, 1).numpy())
    assert coded.shape == (128, 6) and (coded >= 0).all()
    assert again.maps("c1").shape == (80, 8, 8)
    with pytest.raises(OutOfRange, match="no concept 'c9'"):
        again.maps("c9")
    assert len(again.figures()) == 2
    assert again.report(tmp_path / "report.html").stat().st_size > 100_000
    assert again.provenance["model"]["name"] and "concepts" in repr(again).lower()


def test_codes_of_the_record_are_those_of_its_factorisation(found):
    concepts = found.factorisation()
    rebuilt = concepts.encode(concepts.decode(concepts.codes[:50]))
    # Coding shrinks by the price: what is rebuilt is close, never larger.
    assert np.corrcoef(rebuilt.ravel(), concepts.codes[:50].ravel())[0, 1] > 0.95


def test_strategies_of_a_class_are_its_background_and_its_shapes(model):
    """At the last layer, images that are called circle are so for the background's sake or for the shape's: k-means on
    importances finds this without having seen a label or a background."""
    shown = mechvis.data.scenes(500, seed=61)
    options = {"site": "hook_pooled", "crop": 1.0, "n_concepts": 8, "importance": "grad_input", "progress": False}
    found = craft(model, shown, "circle", **options)
    groups = found.strategies(nulls=5)
    images, table = groups.tables["images"], groups.tables["strategies"]
    background = dict(zip(shown.ids, shown.columns["background"], strict=True))
    striped = np.array([background[name] == "striped" for name in images["image"]])
    pure = 0
    for row in table.iter_rows(named=True):
        share = striped[images["strategy"].to_numpy() == row["strategy"]].mean()
        pure += row["n"] * max(share, 1 - share)
        assert row["accuracy"] < 0.7 if share > 0.5 else row["accuracy"] > 0.85, "the shortcut's images are often wrong"
    assert pure / len(images) > 0.9, "a strategy has the shortcut's background, or has not"
    assert groups.facts["separate"] and (groups.table["quadrant"] == "common and unreliable").any()


def test_crops_at_a_site_after_pooling(model, images):
    found = craft(
        model, images[:16], "star", site="hook_pooled", n_concepts=4, chosen="all", importance="grad_input", crop=0.25,
        progress=False,
    )  # fmt: skip
    assert found.facts["grid"] == [5, 5] and found.arrays["codes"].shape == (8, 25, 4)
    coarse = craft(
        model, images[:16], "star", site="hook_pooled", n_concepts=4, chosen="all", importance="grad_input", crop=0.9,
        progress=False,
    )  # fmt: skip
    assert "auroc" not in coarse.table.columns and any("too large" in line for line in coarse.caveats)
    assert "CLS" not in " ".join(found.caveats)
    assert found.figures()


def test_grad_input_at_the_last_layer_is_exact(model, images):
    """The tail is linear there: importances add up to the logit, but for the bias."""
    options = {"site": "hook_pooled", "crop": 1.0, "n_concepts": 5, "chosen": "all", "progress": False}
    sums = {}
    for importance in ("grad_input", "occlusion", "shapley", "ig"):
        found = craft(model, images[:24], "star", importance=importance, **options)
        sums[importance] = found.importances()
    for importance, values in sums.items():
        np.testing.assert_allclose(values, sums["occlusion"], atol=2e-5, err_msg=importance)


def test_sobol_and_tcav_say_what_they_are(model, images):
    small = {"n_concepts": 3, "chosen": "all", "importance_images": 3, "progress": False}
    sobol = craft(model, images[:12], 3, importance="sobol", importance_options={"design": 8}, **small)
    assert (sobol.importances() >= 0).all() and any("no sign" in line for line in sobol.caveats)
    plain = craft(model, images[:12], 3, importance="occlusion", **small)
    effects = dict(zip(plain.table["active"], plain.table["importance"], strict=True))
    for row in sobol.table.iter_rows(named=True):
        assert row["effect"] == pytest.approx(effects[row["active"]], abs=1e-5) and row["effect_low"] <= row["effect"]
    assert "effect" not in plain.table.columns
    signs = craft(model, images[:12], 3, importance="tcav", residual="keep", prefix="mean", **small)
    assert set(np.unique(signs.importances())) <= {-1, 0, 1} and any("Signs" in line for line in signs.caveats)
    assert not any("have seen the image" in line for line in signs.caveats)


def test_craft_refuses_what_makes_no_sense(model, images):
    options = {"n_concepts": 3, "progress": False}
    with pytest.raises(UnknownName, match="predicted"):
        craft(model, images, "star", chosen="right", **options)
    for chosen in ("predicted", "all"):
        with pytest.raises(BadData, match=r"at least 4 are\s+needed"):
            craft(model, images[:3], "star", chosen=chosen, **options)
    with pytest.raises(BadData, match="images with labels"):
        craft(model, pixels_of(model, images[:8]), "star", chosen="labelled", **options)
    with pytest.raises(OutOfRange, match="fit_share=1"):
        craft(model, images, "star", chosen="all", fit_share=1, **options)
    with pytest.raises(OutOfRange, match="importance_images=0"):
        craft(model, images, "star", importance_images=0, **options)
    with pytest.raises(UnknownName, match="keep"):
        craft(model, images[:8], "star", chosen="all", prefix="drop", **options)
    with pytest.raises(UnknownName, match="residual"):
        craft(model, images[:8], "star", chosen="all", residual="mean", **options)
    with pytest.raises(BadData, match="semi_nmf"):
        craft(model, images[:8], "star", chosen="all", method="nmf", **options)
    assert len(images_of_class(model, images, 3, "labelled")) == (images.labels == 3).sum()


def test_pixels_will_do(model, images):
    pixels = pixels_of(model, images[:10])
    found = craft(model, pixels, "star", chosen="all", n_concepts=3, importance="grad_input", progress=False)
    assert "auroc" not in found.table.columns and found.tables["images"]["correct"].null_count() == 5
    with pytest.raises(BadData, match="at least 4"):
        craft(model, pixels[:2], 0)


def test_a_concept_of_a_model_is_taken_apart(found, model, images):
    name = found.table["concept"][0]
    parts = refine_at(model, images, found, name, "blocks.0.hook_resid_post", 3, top=0.5)
    assert parts.codes.shape == (80 * 64, 3) and parts.factorisation.n_concepts == 3
    assert parts.table["follows"].max() > 0.2
    with pytest.raises(BadData, match="not an earlier site"):
        refine_at(model, images, found, name, "blocks.2.hook_resid_post")
    with pytest.raises(BadData, match="measured images are not among these"):
        refine_at(model, mechvis.data.scenes(5, seed=1), found, name, "blocks.0.hook_resid_post")


def test_a_given_dictionary_is_not_in_the_record(model, images):
    class Halves:
        def encode(self, x):
            return torch.cat([x.clamp(min=0), (-x).clamp(min=0)], dim=-1)[..., ::8]

        def decode(self, z):
            return torch.zeros(*z.shape[:-1], 128) + z.sum(-1, keepdim=True)

    options = {"method": "dictionary", "dictionary": Halves(), "importance": "grad_input", "progress": False}
    given = craft(model, images[:8], 0, chosen="all", **options)
    assert given.importances().shape == (4, 32)
    with pytest.raises(BadData, match="encoder is not in the record"):
        given.factorisation()


def test_a_zero_shot_head_of_clip():
    clip = mechvis.load("scenes-clip")
    shown = mechvis.data.scenes(24, seed=21)
    found = craft(
        clip.classifier(shown.class_names), shown, "star", n_concepts=3, chosen="all", importance="grad_input",
        residual="keep", progress=False,
    )  # fmt: skip
    assert found.table["importance"].abs().max() > 0 and "auroc" in found.table.columns
