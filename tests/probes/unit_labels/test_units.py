"""What units say, by every reduction and kind of unit, against the model's own cache; and concepts."""

import numpy as np
import pytest
import torch

from mechvis import testing
from mechvis.data import scenes
from mechvis.errors import BadData, NotFinite, OutOfMemory, OutOfRange, ShapeMismatch, UnknownName, UnknownSite
from mechvis.models.load import wrap
from probes.unit_labels import (
    Concepts,
    activations,
    calibrate,
    concept_masks,
    concepts_from_texts,
    concepts_of,
    unit_maps,
)

PIXELS = testing.tiny_input("dinov2-registers", n=5)


@pytest.fixture(scope="module")
def model():
    return wrap(testing.tiny("dinov2-registers"), preprocess=testing.tiny_preprocess())


class Halves:
    """A dictionary whose latents are the positive and the negative half of the first coordinates."""

    n_latents = 6

    def encode(self, x):
        return torch.cat([x[:, :3], -x[:, :3]], 1).relu()


def test_neurons_by_every_reduction(model):
    cache = model.run(PIXELS, capture="blocks.1.mlp.hook_post").cache["blocks.1.mlp.hook_post"].numpy()
    expected = {"max": cache[:, 3:].max(1), "mean": cache[:, 3:].mean(1), "cls": cache[:, 0]}
    for reduce, value in expected.items():
        found = activations(model, PIXELS, "blocks.1.mlp.hook_post", reduce=reduce, batch_size=2, progress=False)
        np.testing.assert_allclose(found.values, value, atol=1e-6)
        assert found.units[7] == "L1N7" and found.reduce == reduce
        np.testing.assert_array_equal(found.of("L1N7"), found.values[:, 7])
    assert np.abs(expected["max"] - expected["mean"]).max() > 0.1, "the reductions are different things"


def test_heads_latents_coordinates_and_sites_without_tokens(model):
    cache = model.run(PIXELS, capture=["blocks.*.attn.hook_z", "hook_pooled", "blocks.0.hook_resid_post"]).cache
    heads = activations(model, PIXELS, "blocks.*.attn.hook_z", reduce="mean", progress=False)
    assert heads.units[5] == "L1H1" and len(heads.units) == 12
    z = cache["blocks.1.attn.hook_z"][:, 3:, 1].norm(dim=-1).mean(1)
    np.testing.assert_allclose(heads.of("L1H1"), z, atol=1e-6)
    site = "blocks.0.hook_resid_post"
    latents = activations(model, PIXELS, site, reduce="max", dictionary=Halves(), progress=False)
    assert latents.units[4] == "L0 latent 4"
    np.testing.assert_allclose(latents.of("L0 latent 4"), (-cache[site][:, 3:, 1]).relu().amax(1), atol=1e-6)
    pooled = activations(model, PIXELS, "hook_pooled", reduce="none", units=[2, 0], progress=False)
    assert pooled.units == ("hook_pooled[2]", "hook_pooled[0]")
    np.testing.assert_allclose(pooled.values, cache["hook_pooled"][:, [2, 0]], atol=1e-6)


def test_maps_are_the_patches(model):
    cache = model.run(PIXELS, capture="blocks.2.mlp.hook_post").cache["blocks.2.mlp.hook_post"]
    maps = unit_maps(model, PIXELS, [("blocks.2.mlp.hook_post", 4), ("blocks.2.mlp.hook_post", 9)], batch_size=3)
    np.testing.assert_allclose(maps, cache[:, 3:, [4, 9]].unflatten(1, (3, 3)).permute(0, 3, 1, 2), atol=1e-6)
    found = activations(model, PIXELS, "blocks.2.mlp.hook_post", reduce="max", units=[4, 9], progress=False)
    np.testing.assert_allclose(maps.max((2, 3)), found.values, atol=1e-6)


def test_strange_choices_of_units_are_refused(model, monkeypatch):
    site = "blocks.0.mlp.hook_post"
    with pytest.raises(UnknownName, match="max, mean, cls, none"):
        activations(model, PIXELS, site, reduce="sum", progress=False)
    with pytest.raises(UnknownSite):
        activations(model, PIXELS, "blocks.*.mlp.hook_past", reduce="max", progress=False)
    with pytest.raises(BadData, match="has tokens: use reduce='max'"):
        activations(model, PIXELS, site, reduce="none", progress=False)
    with pytest.raises(BadData, match="reduce='none'"):
        activations(model, PIXELS, "hook_pooled", reduce="max", progress=False)
    with pytest.raises(OutOfRange, match="units 0 to 31"):
        activations(model, PIXELS, site, reduce="max", units=[32], progress=False)
    with pytest.raises(BadData, match="one value per token of the stream"):
        activations(model, PIXELS, "blocks.0.attn.hook_pattern", reduce="max", progress=False)
    with pytest.raises(BadData, match="one dictionary and 3 sites"):
        activations(model, PIXELS, "blocks.*.hook_resid_post", reduce="max", dictionary=Halves(), progress=False)
    with pytest.raises(BadData, match="has encode"):
        activations(model, PIXELS, "blocks.0.hook_resid_post", reduce="max", dictionary=object(), progress=False)
    with pytest.raises(BadData, match="no unit is named"):
        unit_maps(model, PIXELS, [])
    with pytest.raises(BadData, match="no value per patch"):
        unit_maps(model, PIXELS, [("hook_pooled", 0)])
    monkeypatch.setattr("probes.unit_labels.units.free_memory", lambda: 100)
    with pytest.raises(OutOfMemory, match="Take fewer units"):
        unit_maps(model, PIXELS, [(site, 0)])
    siglip = wrap(testing.tiny("siglip-headless"), preprocess=testing.tiny_preprocess())
    with pytest.raises(BadData, match="no class token"):
        activations(siglip, testing.tiny_input("siglip-headless"), site, reduce="cls", progress=False)
    with pytest.raises(UnknownName, match="L1N3"):
        activations(model, PIXELS, "blocks.1.mlp.hook_post", reduce="max", progress=False).of("L1N33")


def test_concepts_of_scenes():
    images = scenes(40, seed=3)
    found = concepts_of(images)
    assert set(found.kinds) == {"label", "background", "colour"} and found.presence.sum(1).tolist() == [3] * 40
    np.testing.assert_array_equal(found.of("red"), images.columns["colour"] == "red")
    assert concepts_of(images, ["colour"]).kinds == ("colour",) * len(concepts_of(images, ["colour"]))
    with pytest.raises(UnknownName, match="colour"):
        concepts_of(images, ["color"])
    with pytest.raises(BadData, match="holds numbers"):
        concepts_of(images, ["size"])
    with pytest.raises(UnknownName, match="red"):
        found.of("read")


def test_concepts_check_what_they_hold():
    with pytest.raises(ShapeMismatch, match="2 concepts"):
        Concepts(names=("a", "b"), presence=np.ones((3, 1)), kind="labels")
    with pytest.raises(BadData, match="one name"):
        Concepts(names=("a", "a"), presence=np.ones((3, 2)), kind="labels")
    with pytest.raises(NotFinite):
        Concepts(names=("a",), presence=np.full((3, 1), np.nan), kind="cosine")
    with pytest.raises(BadData, match=r"\[0, 1\]"):
        Concepts(names=("a",), presence=np.full((3, 1), 2.0), kind="labels")


def test_masks_lie_on_the_object_or_off_it():
    images = scenes(12, seed=5)
    concepts = concepts_of(images)
    masks = concept_masks(images, concepts, images.preprocess)(np.arange(12))
    objects = images.masks.numpy()
    assert masks.shape == (12, len(concepts), 64, 64)
    for image in range(12):
        for place, (name, kind) in enumerate(zip(concepts.names, concepts.kinds, strict=True)):
            has = {"label": images.class_names[images.labels[image]]}.get(kind) or images.columns[kind][image]
            expected = (~objects[image] if kind == "background" else objects[image]) & (has == name)
            np.testing.assert_array_equal(masks[image, place], expected)
    with pytest.raises(BadData, match="where do the concepts of the column 'background' lie"):
        concept_masks(images, concepts, images.preprocess, off_object=())
    with pytest.raises(BadData, match="no masks"):
        concept_masks(scenes(12, seed=5, show="background"), concepts, images.preprocess)


def test_texts_and_their_calibration():
    clip = wrap(testing.tiny("clip"), tokenizer=testing.Words(), preprocess=testing.tiny_preprocess())
    pixels = testing.tiny_input("clip")
    found = concepts_from_texts(clip, pixels, {"cat": "a photo of a cat", "dog": "a photo of a dog"})
    expected = clip.encode_image(pixels) @ clip.encode_text(["a photo of a cat", "a photo of a dog"]).T
    np.testing.assert_allclose(found.presence, expected, atol=1e-6)
    assert found.names == ("cat", "dog") and found.kind == "cosine"
    sure = found.probability(scale=10.0, shift=-0.1)
    np.testing.assert_allclose(sure.presence, 1 / (1 + np.exp(-10 * (found.presence - 0.1))))
    with pytest.raises(BadData, match="only cosines"):
        sure.probability(scale=1.0, shift=0.0)
    with pytest.raises(BadData, match="no text tower"):
        concepts_from_texts(clip.vision, pixels, ["cat"])
    with pytest.raises(BadData, match="each once"):
        concepts_from_texts(clip, pixels, ["cat", "cat"])
    generator = np.random.default_rng(0)
    cosine = generator.uniform(-0.5, 0.5, 20_000)
    labels = generator.random(20_000) < 1 / (1 + np.exp(-12 * (cosine - 0.2)))
    scale, shift = calibrate(cosine[:, None], labels[:, None].astype(float))
    assert scale == pytest.approx(12, rel=0.05) and shift == pytest.approx(-0.2, abs=0.01)
    with pytest.raises(BadData, match="with and without"):
        calibrate(cosine[:, None], np.ones((20_000, 1)))
