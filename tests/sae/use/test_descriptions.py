"""What a latent detects and what it does: planted latents that do something else than they detect."""

from dataclasses import replace

import numpy as np
import pytest

from mechvis.errors import BadData, OutOfRange
from sae.attribution import LatentDescriptions, describe_latents

CONCEPTS = tuple(f"concept {i}" for i in range(10))
SETTINGS = {"texts": CONCEPTS, "n_random": 12, "top": 1, "progress": False}


@pytest.fixture(scope="module")
def alike(planted_clip):
    """Texts of neighbours are alike, so that all labels have an order."""
    return replace(planted_clip, blur=2.0)


@pytest.fixture(scope="module")
def shown(planted_clip):
    rng = np.random.default_rng(0)
    return planted_clip.images([list(rng.permutation(10)[:1]) for _ in range(120)])


def test_detector_and_effect_the_same(alike, planted_dictionary, shown, tmp_path):
    found = describe_latents(alike, planted_dictionary(), [0, 3, 5, 8], shown, **SETTINGS)
    own = [[CONCEPTS[i]] for i in (0, 3, 5, 8)]
    assert found.table["input_labels"].to_list() == own and found.table["output_labels"].to_list() == own
    assert found.table["agreement"].min() > 0.6 and found.table["output_z"].min() > 1
    assert found.table["input_auc"].min() > 0.95
    assert not any("something else" in line for line in found.caveats)
    again = LatentDescriptions.load(found.save(tmp_path / "described"))
    assert again.table.equals(found.table) and found.report(tmp_path / "described.html").exists()


def test_encoder_reads_one_concept_and_decoder_writes_another(alike, planted_dictionary, shown):
    """21.3: input label A, output label B, agreement below .1."""
    writes = [(i + 5) % 10 for i in range(10)]
    found = describe_latents(alike, planted_dictionary(writes=writes), [0, 3, 5, 8], shown, **SETTINGS)
    assert found.table["input_labels"].to_list() == [[CONCEPTS[i]] for i in (0, 3, 5, 8)]
    assert found.table["output_labels"].to_list() == [[CONCEPTS[(i + 5) % 10]] for i in (0, 3, 5, 8)]
    assert found.table["agreement"].max() < 0.1, found.table["agreement"].to_list()
    assert any("4 of 4 latents do something else than they detect" in line for line in found.caveats)


def test_output_labels_pick_their_latent_on_other_images(planted_clip, planted_dictionary, shown):
    d = planted_dictionary(writes=[(i + 5) % 10 for i in range(10)])
    found = describe_latents(planted_clip, d, [0, 3, 5, 8], shown, **SETTINGS)
    assert found.table["picked"].all() and found.facts["picked"] == 1.0


def test_a_latent_that_never_fires_and_too_few_to_judge(planted_clip, planted_dictionary, shown):
    d = planted_dictionary()
    d.b_enc.data[7] = -50.0
    found = describe_latents(planted_clip, d, [7, 3], shown, **SETTINGS)
    row = found.pick(latent=7)
    assert row["input_labels"] == [] and row["input_auc"] is None and row["fires"] == 0
    assert len(row["output_labels"]) == 1 and row["agreement"] is None
    assert found.table["picked"].null_count() == 2


@pytest.mark.parametrize(
    ("more", "error", "text"),
    [
        ({"latents": []}, BadData, "at least one, each once"),
        ({"latents": [11]}, OutOfRange, "latent 11 does not exist"),
        ({"n_random": 3}, OutOfRange, "at least 8 random directions"),
        ({"factors": (0.0,)}, OutOfRange, "factors above 0"),
        ({"texts": None}, BadData, "a CLIP model is read by texts"),
    ],
)
def test_refusals(planted_clip, planted_dictionary, shown, more, error, text):
    with pytest.raises(error, match=text):
        describe_latents(planted_clip, planted_dictionary(), **{"latents": [1], "images": shown, **SETTINGS, **more})


def test_too_few_images(planted_clip, planted_dictionary, shown):
    with pytest.raises(BadData, match="give at least 8"):
        describe_latents(planted_clip, planted_dictionary(), [1], shown[:5], **SETTINGS)
