"""Erasing in a model whose every head is known (F2): what is read and used, and what is only there to be read."""

import numpy as np
import polars as pl
import pytest

from mechvis.errors import BadData, UnknownName
from mechvis.testing import assert_untouched, shortcut_images, shortcut_vit
from probes.linear import Erasure, Split, erase

QUIET = {"progress": False, "resamples": 200, "randoms": 8, "batch_size": 256}


@pytest.fixture(scope="module")
def model():
    return shortcut_vit()


@pytest.fixture(scope="module")
def images():
    return shortcut_images(300).image_set()


@pytest.fixture(scope="module")
def used(model, images):
    """Patches after the first layer: the class that the second layer will read from them."""
    return erase(model, images, site="blocks.0.hook_resid_post", tokens="mean", **QUIET)


@pytest.fixture(scope="module")
def unused(model, images):
    """Patches after the last layer: the class is still there, and nobody looks."""
    return erase(model, images, site="blocks.1.hook_resid_post", tokens="mean", methods=("leace",), **QUIET)


def test_what_is_read_is_used(used):
    clean, leace = used.pick(eraser="nothing"), used._row("LEACE", None)
    assert clean["accuracy"] == clean["probe"] > 0.5 and clean["kl"] == 0
    assert leace["probe"] < 0.45, "a new probe finds nothing"
    assert leace["drop_low"] > 0.05 and leace["changed"] > 0.5
    against = used.against_random("LEACE")
    assert against["ratio"] > 3 and against["p"] == pytest.approx(1 / 9)
    assert used._row("random subspace", "LEACE")["rank"] == leace["rank"] == 2


def test_what_is_only_there_is_not_used(unused):
    clean, leace = unused.pick(eraser="nothing"), unused._row("LEACE", None)
    assert clean["probe"] > 0.5 > 0.45 > leace["probe"]
    assert leace["drop"] == 0 and leace["kl"] == 0 and leace["p"] == 1.0
    assert any("cannot change the output" in caveat for caveat in unused.caveats)


def test_tables_and_groups(used, tmp_path):
    assert set(used.table["eraser"]) >= {"nothing", "projection", "LEACE", "random subspace", "largest components"}
    groups = used.tables["groups"]
    assert set(groups["group"]) == {"agree", "conflict"}
    both = groups.filter((pl.col("eraser") == "LEACE") & pl.col("control_for").is_null())
    assert (both["drop"] * both["n"]).sum() / 90 == pytest.approx(used._row("LEACE", None)["drop"])
    assert used.arrays["kl"].shape == (1 + 3 * (2 + 8), 90)
    assert Erasure.load(used.save(tmp_path / "e")).table.equals(used.table)
    with pytest.raises(UnknownName, match="eraser"):
        used.against_random("hope")


def test_the_model_is_left_alone_and_the_split_is_kept(model, images):
    split = Split(train=np.arange(100), validation=np.array([], int), test=np.arange(100, 140))
    with assert_untouched(model):
        found = erase(
            model, images, site="blocks.1.hook_resid_post", tokens="cls", methods=("leace",), split=split, **QUIET
        )
    assert found.arrays["test"].tolist() == list(range(100, 140)) and found.table["n"].to_list() == [40] * 4
    assert found.against_random("LEACE")["ratio"] > 3, "the class token's logits are what the head reads"


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"methods": ("hope",)}, UnknownName, "method"),
        ({"methods": ()}, BadData, "at least one of each"),
        ({"tokens": "cls+mean"}, BadData, "no edit acts on both"),
        ({"site": "blocks.*.hook_resid_post"}, BadData, "means 2 sites"),
        ({"target": np.zeros(3, int)}, BadData, "one class per image"),
        ({"fractions": (0.9, 0.1, 0.0)}, BadData, "nobody judges"),
    ],
)
def test_bad_input(model, images, settings, error, text):
    with pytest.raises(error, match=text):
        erase(model, images[:60], **{"site": "blocks.0.hook_resid_post", **QUIET, **settings})


def test_images_without_labels(model):
    with pytest.raises(BadData, match="images labels"):
        erase(model, shortcut_images(8).pixels, site="blocks.0.hook_resid_post", **QUIET)
