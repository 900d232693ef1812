"""ConceptScope on planted data: an object that is read, a texture that is only there, a rare mark; on scenes-vit."""

import numpy as np
import pytest
import torch

import mechvis
from mechvis.data.images import ImageSet
from mechvis.data.preprocess import Preprocess
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, UnknownName
from mechvis.testing.planted.wired import WiredViT, wrapped
from probes.concept_scope import ConceptScope, concept_scope, ratios, scope_of_dictionary, sort_concepts
from probes.concept_scope.masked import fill_of

GRID, N = 4, 60
OBJECT_A, OBJECT_B, TEXTURE, RARE = range(4)


def _as_made(images, **settings):
    return {"pixel_values": torch.from_numpy(np.stack(images)).double().permute(0, 3, 1, 2).contiguous() / 100}


PREPROCESS = Preprocess(processor=_as_made, height=GRID, width=GRID, mean=(0.0,) * 4, std=(1.0,) * 4, source="made")


@pytest.fixture(scope="module")
def model():
    """Reads the share of object A and of object B; texture and mark are in the stream and nobody reads them."""
    vit = WiredViT(channels=4, d_model=6, n_layers=1, n_heads=1, d_head=2, n_classes=2, grid=(GRID, GRID), cls=True)
    with torch.no_grad():
        vit.embedding[range(4), range(4)] = 1.0
        head = vit.head(0, 0)
        head.v[OBJECT_A, 0], head.v[OBJECT_B, 1], head.o[0, 4], head.o[1, 5] = 17.0, 17.0, 1.0, 1.0
        vit.readout[4, 0], vit.readout[5, 1] = 0.5, 0.5
    return wrapped(vit, "planted concepts", class_names=("a", "b"), preprocess=PREPROCESS)


@pytest.fixture(scope="module")
def planted():
    """Class a always has the texture behind its object, class b in one of ten images; the mark is in one of five."""
    generator = np.random.default_rng(0)
    labels = np.arange(N) % 2
    drawn = np.zeros((N, GRID * GRID, 4), np.uint8)
    masks = {name: np.zeros((N, GRID * GRID), bool) for name in ("object", "texture", "mark")}
    for i in range(N):
        order = generator.permutation(GRID * GRID)
        masks["object"][i, order[:5]] = True
        drawn[i, order[:5], labels[i]] = 100
        if labels[i] == 0 or generator.random() < 0.1:
            masks["texture"][i, order[5:13]] = True
            drawn[i, order[5:13], TEXTURE] = 100
        if generator.random() < 0.2:
            masks["mark"][i, order[13:15]] = True
            drawn[i, order[13:15], RARE] = 100
    pixels = drawn.reshape(N, GRID, GRID, 4)
    images = ImageSet(
        name="planted",
        ids=tuple(f"planted/{i}" for i in range(N)),
        read=pixels.__getitem__,
        rows=np.arange(N),
        labels=labels,
        class_names=("a", "b"),
        preprocess=PREPROCESS,
    )
    return images, {name: torch.from_numpy(mask).unflatten(1, (GRID, GRID)) for name, mask in masks.items()}


def kinds(found):
    return {(row["class"], row["concept"]): row["kind"] for row in found.table.iter_rows(named=True)}


def test_object_texture_and_mark_are_sorted(model, planted, tmp_path):
    found = concept_scope(model, *planted, fewest=3, progress=False)
    assert kinds(found) == {
        ("a", "object"): "target",
        ("a", "texture"): "bias",
        ("a", "mark"): "context",
        ("b", "object"): "target",
        ("b", "texture"): "context" if found.pick(concept="texture", **{"class": "b"})["n"] >= 3 else None,
        ("b", "mark"): "context",
    }
    texture = found.pick(concept="texture", **{"class": "a"})
    assert texture["necessity"] == pytest.approx(1, abs=1e-9), "nobody reads it"
    thing = found.pick(concept="object", **{"class": "a"})
    p = 1 / (1 + np.exp(-0.5 * 17 * 5 / 17))  # five of the seventeen tokens that share the attention
    assert thing["necessity"] == pytest.approx(p / 0.5) and thing["sufficiency"] == pytest.approx(1)
    assert texture["sufficiency"] == pytest.approx(0.5 / p)
    assert found.of_kind("bias") == ["texture"] and found.of_kind("bias", "b") == []
    found.save(tmp_path / "scope")
    assert ConceptScope.load(tmp_path / "scope").of_kind("target") == ["object"]
    with pytest.raises(UnknownName, match="unknown class"):
        found.of_kind("bias", "c")


def test_a_dictionary_of_the_patches_gives_the_same_sorting(model, planted):
    class Slots:
        """An SAE whose latents are the four planted slots and one that is never active."""

        def encode(self, x):
            return torch.cat([x[:, :4].clamp(min=0), x[:, :1] * 0], dim=1)

    images, masks = planted
    names = ["object a", "object b", "texture", "mark", "never"]
    site = "blocks.0.hook_resid_pre"
    found = scope_of_dictionary(model, images, Slots(), site, names=names, fewest=3, progress=False)
    assert set(found.facts["concepts"]) == set(names[:4])
    by = kinds(found)
    assert by["a", "object a"] == by["b", "object b"] == "target"
    assert by["a", "texture"] == "bias" and by["a", "mark"] == "context"
    assert by["a", "object b"] is None, "no image of a holds it"
    plain = concept_scope(model, images, masks, fewest=3, progress=False)
    assert found.pick(concept="texture", **{"class": "a"})["necessity"] == pytest.approx(
        plain.pick(concept="texture", **{"class": "a"})["necessity"]
    )
    with pytest.raises(ShapeMismatch, match="2 names for 5 latents"):
        scope_of_dictionary(model, images, Slots(), site, names=["a", "b"], progress=False)

    class Broken:
        def encode(self, x):
            return x[:3]

    with pytest.raises(ShapeMismatch, match=r"encode gave \[3, 6\] for 960 rows"):
        scope_of_dictionary(model, images, Broken(), site, progress=False)
    with pytest.raises(OutOfRange, match=r"above=1\.0"):
        scope_of_dictionary(model, images, Slots(), site, above=1.0, progress=False)


def test_ratios_by_hand_and_clipped():
    found = ratios(np.array([0.8, 1e-6]), np.array([0.2, 1e-9]), np.array([0.4, 0.5]))
    np.testing.assert_allclose(found.necessity, [4.0, 1e-6 / 1e-3])
    np.testing.assert_allclose(found.sufficiency, [0.5, 0.5 / 1e-3])
    assert found.clipped == 2
    assert ratios(np.array([1.0]), np.array([0.0]), np.array([1.0]), clip=0.1).necessity[0] == 10
    with pytest.raises(OutOfRange, match="between 0 and 1"):
        ratios(np.array([1.5]), np.array([0.1]), np.array([0.1]))
    with pytest.raises(OutOfRange, match="clip=0"):
        ratios(np.array([0.5]), np.array([0.1]), np.array([0.1]), clip=0.0)
    with pytest.raises(NotFinite):
        ratios(np.array([np.nan]), np.array([0.1]), np.array([0.1]))
    with pytest.raises(ShapeMismatch):
        ratios(np.ones(2), np.ones(3), np.ones(2))


def test_sorting_rule():
    alignment = np.array([1.5, 0.8, 0.7, np.nan])
    activation = np.array([0.9, 0.6, 0.02, 5.0])
    assert sort_concepts(alignment, activation, over="context") == ["target", "bias", "context", None]
    # The target's own activation counts in the population of all: the texture is then below mean + sd.
    assert sort_concepts(alignment, activation) == ["target", "context", "context", None]
    assert sort_concepts(alignment, activation, alpha=10.0)[0] == "bias", "no target at ten deviations"
    lone = sort_concepts(np.array([2.0, 1.0]), np.array([0.5, 0.1]), over="context")
    assert lone == ["target", "bias"], "a lone context concept is its own mean"
    with pytest.raises(BadData, match="at least two"):
        sort_concepts(np.array([1.0, np.nan]), np.ones(2))
    with pytest.raises(ShapeMismatch):
        sort_concepts(np.ones(3), np.ones(2))
    with pytest.raises(UnknownName, match="unknown population"):
        sort_concepts(np.ones(2), np.ones(2), over="none")


def test_fills():
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert (fill_of(pixels, "zero") == 0).all()
    torch.testing.assert_close(fill_of(pixels, "mean")[:, :, 3, 4], pixels.mean((-2, -1)))
    blurred = fill_of(pixels, "blur")
    assert blurred.shape == pixels.shape and blurred.std() < 0.3 * pixels.std()
    torch.testing.assert_close(fill_of(torch.ones(1, 1, 8, 8), "blur"), torch.ones(1, 1, 8, 8))


def test_scenes_vit_needs_the_object_and_leans_on_the_background():
    vit = mechvis.load("scenes-vit")
    images = mechvis.data.scenes(n=96, seed=31, group="consistent")
    thing = images.masks_for(vit.preprocess)
    found = concept_scope(vit, images, {"object": thing, "background": ~thing}, progress=False)
    assert found.table.height == 16 and "With two concepts" in found.caveats[1]
    mean = {
        name: found.table.filter(found.table["concept"] == name)["sufficiency"].mean()
        for name in found.facts["concepts"]
    }
    assert mean["background"] > 0.3, "consistent backgrounds alone carry much of the answer: the shortcut"
    assert found.arrays["p/whole"].shape == (2, 96)
    other = mechvis.data.scenes(n=96, seed=31, group="conflicting")
    thing = other.masks_for(vit.preprocess)
    misled = concept_scope(vit, other, {"object": thing, "background": ~thing}, progress=False)
    rows = misled.table.filter(misled.table["concept"] == "background")
    assert rows["necessity"].mean() < 0.9, "without a conflicting background the class is more probable"
    assert rows["p_alone"].mean() < 0.15 and set(misled.table.filter(misled.table["kind"] == "target")["concept"]) == {
        "object"
    }


def test_bad_input(model, planted):
    images, masks = planted
    with pytest.raises(BadData, match="1 concept: sorting compares"):
        concept_scope(model, images, {"object": masks["object"]}, progress=False)
    with pytest.raises(ShapeMismatch, match="masks of 'object' must be bool"):
        concept_scope(model, images, {**masks, "object": masks["object"].double()}, progress=False)
    with pytest.raises(ShapeMismatch, match="the model's resolution"):
        concept_scope(model, images, {**masks, "object": torch.ones(N, 8, 8, dtype=torch.bool)}, progress=False)
    with pytest.raises(BadData, match="no image holds the concept 'object'"):
        concept_scope(model, images, {**masks, "object": masks["object"] & False}, progress=False)
    with pytest.raises(UnknownName, match="unknown fill"):
        concept_scope(model, images, masks, fill="noise", progress=False)
    with pytest.raises(UnknownName, match="unknown population"):
        concept_scope(model, images, masks, over="none", progress=False)
    with pytest.raises(UnknownName, match="unknown activation"):
        concept_scope(model, images, masks, activations={"object": np.ones(N)}, progress=False)
    with pytest.raises(ShapeMismatch, match="one per image"):
        concept_scope(model, images, masks, activations={name: np.ones(3) for name in masks}, progress=False)
    with pytest.raises(OutOfRange, match="fewest=0"):
        concept_scope(model, images, masks, fewest=0, progress=False)
    with pytest.raises(BadData, match="no head"):
        concept_scope(mechvis.load("scenes-clip").vision, images, masks, progress=False)
