"""Features are what the sites say, for the tokens that were chosen, on disk as in memory."""

import numpy as np
import pytest
import torch

import mechvis
from mechvis.errors import BadData, OutOfRange, ResultMismatch, UnknownName, UnknownSite
from mechvis.testing import assert_untouched, tiny
from mechvis.testing.tiny import tiny_preprocess
from probes.features import collect


@pytest.fixture(scope="module")
def model():
    return mechvis.load("scenes-vit")


@pytest.fixture(scope="module")
def images():
    return mechvis.data.scenes(n=21, seed=4)


def test_every_choice_is_what_the_sites_say(model, images):
    with assert_untouched(model):
        found = collect(
            model, images, "blocks.[12].hook_resid_post", tokens=["cls", "mean", "all", "cls+mean", "patches", "read"],
            progress=False,
        )  # fmt: skip
    value = model.run(images, capture="blocks.2.hook_resid_post").cache["blocks.2.hook_resid_post"].numpy()
    expected = {
        "cls": value[:, 0],
        "mean": value[:, 1:].mean(1),
        "all": value.mean(1),
        "cls+mean": np.concatenate([value[:, 0], value[:, 1:].mean(1)], axis=1),
        "patches": value[:, 1:].reshape(-1, 128),
        "read": value[:, 0],
    }
    for choice, rows in expected.items():
        np.testing.assert_allclose(found[f"blocks.2.hook_resid_post:{choice}"], rows, atol=1e-5)
    assert len(found) == 12 and set(found.layers.values()) == {1, 2}
    assert found.labels.tolist() == images.labels.tolist() and found.ids == images.ids


def test_sites_without_tokens_and_heads(model, images):
    found = collect(model, images, ["hook_pooled", "blocks.0.attn.hook_z"], tokens="cls", progress=False)
    assert found["hook_pooled"].shape == (21, 128) and found["blocks.0.attn.hook_z:cls"].shape == (21, 128)
    assert found.layers == {"blocks.0.attn.hook_z:cls": 0, "hook_pooled": None}


def test_registers():
    model = mechvis.load(tiny("dinov2-registers-classifier"), preprocess=tiny_preprocess())
    pixels = torch.randn(3, 3, *model.parts.image_size, generator=torch.Generator().manual_seed(0))
    found = collect(model, pixels, tokens=["registers", "mean"], progress=False)
    value = model.run(pixels, capture="blocks.0.hook_resid_post").cache["blocks.0.hook_resid_post"].numpy()
    n = len(model.parts.prefix)
    np.testing.assert_allclose(found["blocks.0.hook_resid_post:registers"], value[:, 1:n].mean(1), atol=1e-6)
    np.testing.assert_allclose(found["blocks.0.hook_resid_post:mean"], value[:, n:].mean(1), atol=1e-6)


def test_subsets_keep_patches_with_their_image(model, images):
    found = collect(model, images, "blocks.0.hook_resid_post", tokens=["patches", "cls"], progress=False)
    some = found.take(np.array([4, 2]))
    whole = found["blocks.0.hook_resid_post:patches"].reshape(21, 64, 128)
    np.testing.assert_array_equal(some["blocks.0.hook_resid_post:patches"], whole[[4, 2]].reshape(-1, 128))
    assert some.labels.tolist() == images.labels[[4, 2]].tolist() and some.ids == (images.ids[4], images.ids[2])
    assert some.per_row("blocks.0.hook_resid_post:patches", some.labels).shape == (128,)
    assert some.target("colour").tolist() == images.columns["colour"][[4, 2]].tolist()


def test_on_disk_as_in_memory_and_continued_after_a_death(model, images, tmp_path, monkeypatch):
    import probes.features as module

    whole = collect(model, images, tokens=["cls", "mean"], progress=False)
    monkeypatch.setattr(module, "images_at_once", lambda *_: 4)
    marks = []

    def dies(folder, matrices, done, real=module._mark):
        real(folder, matrices, done)
        marks.append(done)
        if done == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_mark", dies)
    with pytest.raises(KeyboardInterrupt):
        collect(model, images, tokens=["cls", "mean"], out=tmp_path / "f", progress=False)
    again = collect(model, images, tokens=["cls", "mean"], out=tmp_path / "f", progress=False)
    assert marks == [4, 8, 12, 16, 20, 21]  # what was done before is not done again
    for name in whole:
        np.testing.assert_allclose(again[name], whole[name], atol=1e-5)
    assert isinstance(again["blocks.0.hook_resid_post:cls"], np.memmap)
    with pytest.raises(ResultMismatch, match="other images"):
        collect(model, images[:9], tokens=["cls", "mean"], out=tmp_path / "f", progress=False)


def test_labels_of_other_classes_are_kept(model, images):
    from dataclasses import replace

    other = replace(images, class_names=tuple(f"kind {i}" for i in range(8)))
    assert collect(model, other, progress=False).class_names == other.class_names


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"tokens": "clss"}, UnknownName, "cls"),
        ({"tokens": "registers"}, BadData, "before the patches are cls"),
        ({"sites": "blocks.9.hook_resid_post"}, OutOfRange, "layer"),
        ({"sites": "blocks.0.hook_resid_pst"}, UnknownSite, "hook_resid_post"),
        ({"sites": "blocks.0.attn.hook_pattern"}, BadData, "pairs of tokens"),
        ({"dtype": "int8"}, UnknownName, "float32"),
    ],
)
def test_bad_arguments(model, images, arguments, error, said):
    with pytest.raises(error, match=said):
        collect(model, images[:2], progress=False, **arguments)


def test_bad_questions(model, images):
    found = collect(model, images, "blocks.0.hook_resid_post", progress=False)
    with pytest.raises(UnknownName, match=r"blocks\.0"):
        found["blocks.0.hook_resid_pst:read"]
    with pytest.raises(BadData, match="no image"):
        found.take(np.zeros(21, bool))
    with pytest.raises((OutOfRange, IndexError)):
        found.take(np.array([50]))
    with pytest.raises(UnknownName, match="colour"):
        found.target("color")
    pixels = collect(model, images.pixels, "blocks.0.hook_resid_post", progress=False)
    with pytest.raises(BadData, match="labels"):
        pixels.target()
