"""Probes on patches with a planted place, and one pass for all layers against one pass per layer."""

from dataclasses import replace

import numpy as np
import pytest

from mechvis.errors import BadData, ShapeMismatch
from mechvis.testing import shortcut_images, shortcut_vit
from probes.features import Features
from probes.linear import PatchProbe, one_pass_against_many, probe_patches

N, DOWN, ACROSS, D = 240, 3, 4, 6
NAME = "blocks.0.hook_resid_post:patches"
QUIET = {"resamples": 200}


@pytest.fixture(scope="module")
def planted():
    """One patch of each image, anywhere but in the first row, holds the class; the mask says which."""
    rng = np.random.default_rng(0)
    y, place = np.arange(N) % 3, rng.integers(ACROSS, DOWN * ACROSS, N)
    x = 0.3 * rng.normal(size=(N, DOWN * ACROSS, D))
    x[np.arange(N), place] += 3 * np.eye(3, D)[y]
    masks = np.zeros((N, DOWN * ACROSS), bool)
    masks[np.arange(N), place] = True
    features = Features(
        rows={NAME: x.reshape(-1, D)}, sites={NAME: "blocks.0.hook_resid_post"}, layers={NAME: 0}, n_images=N,
        grid=(DOWN, ACROSS), labels=y, ids=tuple(map(str, range(N))),
    )  # fmt: skip
    return features, masks.reshape(N, DOWN, ACROSS)


def test_the_map_finds_the_patch(planted):
    features, masks = planted
    found = probe_patches(features, masks=masks, **QUIET)
    rows = {row["map"]: row for row in found.tables["object"].iter_rows(named=True)}
    assert rows["probe"]["auroc"] > 0.95 and rows["centre"]["above_low"] > 0.2
    assert found.grid().shape == (DOWN, ACROSS) and found.grid()[0].mean() < found.grid()[1:].mean()
    assert found.arrays["maps"].shape == (72, DOWN, ACROSS) and found.table["n"].to_list() == [72] * 12
    assert 0.9 > found.facts["accuracy"] > found.facts["chance"]


def test_wrong_masks_find_nothing(planted):
    features, masks = planted
    shuffled = masks[np.random.default_rng(0).permutation(N)]
    rows = probe_patches(features, masks=shuffled, **QUIET).tables["object"]
    assert rows["auroc"][0] < 0.75


def test_record(planted, tmp_path):
    found = probe_patches(planted[0], NAME, **QUIET)
    assert PatchProbe.load(found.save(tmp_path / "p")).table.equals(found.table)
    assert len(found.figure().axes) == 2 and found.report(tmp_path / "p.html").exists()


def test_bad_patches(planted):
    features, masks = planted
    with pytest.raises(ShapeMismatch, match="masks are"):
        probe_patches(features, masks=masks[:, :2])
    with pytest.raises(ShapeMismatch, match="one class per image"):
        probe_patches(features, target=np.zeros(3, int))
    with pytest.raises(BadData, match="no row per patch"):
        probe_patches(replace(features, rows={"a": np.zeros((N, D))}), "a")
    with pytest.raises(BadData, match="2 sets of features"):
        probe_patches(replace(features, rows={NAME: features[NAME], "b": features[NAME]}))
    with pytest.raises(BadData, match="nobody judges"):
        probe_patches(features, fractions=(0.9, 0.1, 0.0))


def test_one_pass_serves_all_layers(monkeypatch):
    model, images = shortcut_vit(), shortcut_images(24).image_set()
    runs, run = [], model.run
    monkeypatch.setitem(model.__dict__, "run", lambda *args, **more: runs.append(len(args[0])) or run(*args, **more))
    found = one_pass_against_many(model, images, repeats=1, fit=False)
    assert (found["one_pass"], found["per_layer"], found["largest_difference"]) == (1, 2, 0)
    assert (found["one_pass_blocks"], found["per_layer_blocks"], found["full_passes_blocks"]) == (2, 3, 4)
    assert sum(n for n in runs if n > 1) == 24 + 2 * 24, "every image once, and once per layer"
    assert found["ratio"] > 0
