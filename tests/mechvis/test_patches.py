"""Groups of patches: which patch belongs to which, sweeps over them against their twin, and maps over the image."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, OutOfRange, ResultMismatch, ShapeMismatch
from mechvis.patches import Groups, patch_groups, patch_maps
from mechvis.sweep import EDITS, sweep
from mechvis.units import Unit

pytestmark = pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")

N = 7
LABELS = torch.randint(-1, 4, (N, 12, 12), generator=torch.Generator().manual_seed(0))


def load(family="vit"):
    if family == "siglip-zero-shot":
        clip = mechvis.load(
            testing.tiny("siglip", dtype=torch.float64), preprocess=testing.tiny_preprocess(), tokenizer=testing.Words()
        )
        return clip.classifier(["circle", "star", "a blue square"])
    return mechvis.load(testing.tiny(family, dtype=torch.float64), preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture(scope="module")
def pixels():
    return testing.tiny_input("vit", n=N, dtype=torch.float64)


def quiet(model, images, **more):
    return sweep(model, images, **{"progress": False, "units": "patches", **more})


def patches_of(groups, image=0):
    """Patches of each group."""
    return {name: [t - 1 for t in groups.tokens(i, image)] for i, name in enumerate(groups.names)}


# which patch belongs to which group


def test_cells_of_a_grid(model, pixels):
    groups = patch_groups(model, pixels, (2, 1))
    assert patches_of(groups) == {"cell 0,0": [0, 1, 2, 3, 4, 5], "cell 1,0": [6, 7, 8]}
    assert not groups.per_image and "2: cell 0,0, cell 1,0; of every image, 3 x 3 patches" in repr(groups)
    every = patch_groups(model, pixels, (3, 3))
    assert [every.tokens(i) for i in range(9)] == [(i + 1,) for i in range(9)]


def test_a_patch_goes_to_most_of_its_pixels(model, pixels):
    """By counting in Python; ties to the lower label, and any label before none."""
    groups = patch_groups(model, pixels, LABELS)
    assert groups.per_image and groups.names == tuple(f"label {i}" for i in range(4))
    ties = 0
    for image in range(N):
        for patch in range(9):
            down, across = 4 * (patch // 3), 4 * (patch % 3)
            tile = LABELS[image, down : down + 4, across : across + 4].flatten().tolist()
            counts = {label: tile.count(label) for label in (0, 1, 2, 3, -1)}
            best = max(counts, key=counts.get)  # the first of equals
            ties += sorted(counts.values())[-1] == sorted(counts.values())[-2]
            expected = [False] * 4 if best < 0 else [label == best for label in range(4)]
            assert groups.members[image, :, 1 + patch].tolist() == expected
    assert ties > 5
    assert not groups.members[:, :, 0].any()


def test_half_an_object_is_an_object(model, pixels):
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[:4, :2] = True  # half of patch 0
    mask[4:8, :2] = True
    mask[4, 0] = False  # less than half of patch 3
    groups = patch_groups(model, pixels, mask)
    assert patches_of(groups)["object"] == [0]
    assert patches_of(groups)["background"] == list(range(1, 9))


def test_maps_over_patches_and_gaps_in_the_labels(model, pixels):
    by_patch = torch.tensor([[7, 7, 2], [7, -5, 2], [-1, -1, 2]])
    by_pixel = by_patch.repeat_interleave(4, 0).repeat_interleave(4, 1)
    for given in (by_patch, by_pixel, by_pixel.numpy()):
        groups = patch_groups(model, pixels, given)
        assert patches_of(groups) == {"label 2": [2, 5, 8], "label 7": [0, 1, 3]}
    assert patch_groups(model, pixels, by_patch).fingerprint == groups.fingerprint
    speck = by_pixel.clone()
    speck[0, 0] = 9  # wins no patch: left out
    assert patch_groups(model, pixels, speck).names == ("label 2", "label 7")


def test_named_masks_and_lists(model, pixels):
    masks = {"head": LABELS < 1, "body": LABELS > 1}
    named = patch_groups(model, pixels, masks)
    assert named.names == ("head", "body") and named.per_image
    lists = patch_groups(model, pixels, {"window": [1, 2], "next": [2, 3], "CLS": [0]})
    assert [lists.tokens(i) for i in range(3)] == [(1, 2), (2, 3), (0,)]  # overlapping, as asked
    assert patch_groups(model, pixels, [[1], [2, 5]]).names == ("group 0", "group 1")
    assert patch_groups(model, pixels, lists) is lists
    some = named[[2, 0]]
    assert torch.equal(some.members, named.members[[2, 0]]) and some.fingerprint != named.fingerprint
    assert lists[[2, 0]] is lists


@pytest.mark.parametrize(
    ("groups", "error", "text"),
    [
        ((4, 1), BadData, "4 x 1 cells does not fit 3 x 3 patches"),
        ((0, 2), BadData, "does not fit"),
        ("object", BadData, "need.* object masks"),
        ("cat", BadData, "the only word is 'object'"),
        (LABELS[:, :8], ShapeMismatch, r"shape \[7, 8, 12\].*12 x 12 pixels"),
        (LABELS[:3], ShapeMismatch, "labels for 3 images; there are 7"),
        (LABELS[0, 0], ShapeMismatch, "labels of shape"),
        (LABELS.float(), BadData, "whole numbers.*float32"),
        (LABELS * float("nan"), BadData, "with NaN"),
        (LABELS * 0 - 1, BadData, "covers no patch"),
        (LABELS > 9, BadData, "'object' covers no patch"),
        (LABELS[0] > -2, BadData, "'background' covers no patch"),
        ({"a": LABELS == 0, "b": LABELS >= 0}, BadData, "'a' and 'b' overlap in image 0"),
        ({"a": LABELS == 0, "b": [1]}, BadData, "all groups as masks, or all as lists"),
        ({"a": LABELS}, BadData, "masks are bool"),
        ({"a": [10]}, OutOfRange, "token 10: there are 0 to 9"),
        ({"a": [-1]}, OutOfRange, "token -1"),
        ({"a": [1.5]}, BadData, "expected token indices"),
        ({"a": []}, BadData, "'a' covers no patch"),
        ({}, BadData, "names no group"),
        ([], BadData, "expected a grid"),
        (3, BadData, "expected a grid"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else None,
)
def test_bad_groups(model, pixels, groups, error, text):
    with pytest.raises(error, match=text):
        quiet(model, pixels, groups=groups)


def test_groups_of_other_images(model, pixels):
    known = patch_groups(model, pixels, LABELS)
    with pytest.raises(ShapeMismatch, match="do not fit 3 images"):
        quiet(model, pixels[:3], groups=known)
    with pytest.raises(BadData, match="leave it out"):
        quiet(model, pixels, units="heads", groups=(2, 2))
    with pytest.raises(BadData, match="needs groups="):
        quiet(model, pixels)


# sweeps


@pytest.mark.parametrize("family", ["vit", "dinov3", "beit-mean", "siglip-zero-shot"])
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("groups", [(2, 2), LABELS, {"window": [1, 2, 3], "next": [3, 4]}], ids=["grid", "map", "list"])
def test_wave_is_the_plain_twin(family, edit, groups, pixels):
    model = load(family)
    if model.parts.head is None:
        parts = replace(model.parts, head=lambda pooled: pooled[:, :5])
        model = mechvis.hooked.HookedViT(model.bare, parts, preprocess=model.preprocess)
    settings = {"groups": groups, "edit": edit, "metric": ["logit_diff", "js"]}
    settings["source"] = pixels.flip(0) * 0.9 if edit == "patch" else None
    fast, slow = quiet(model, pixels, **settings), quiet(model, pixels, engine="plain", **settings)
    cut = quiet(model, pixels, budget=300_000, **settings)
    for name in ("logit_diff", "js"):
        for other in (slow, cut):
            assert np.array_equal(np.isnan(fast.values[name]), np.isnan(other.values[name]))
            assert np.nanmax(np.abs(fast.values[name] - other.values[name])) < 1e-10
        assert fast.baseline[name] == pytest.approx(slow.baseline[name], abs=1e-12)
    assert np.nanmax(np.abs(fast.values["logit_diff"])) > 1e-3
    assert fast.table["unit"].to_list() == slow.table["unit"].to_list()


def test_an_image_without_a_group_does_not_count(model, pixels):
    groups = patch_groups(model, pixels, LABELS)
    absent = ~groups.members.any(2).numpy()
    assert absent.any()
    found = quiet(model, pixels, groups=groups)
    assert np.array_equal(np.isnan(found.values["logit_diff"]), np.tile(absent.T, (3, 1)))
    assert found.table["n"].to_list() == [N - int(column.sum()) for column in absent.T] * 3


def test_masks_of_the_images_follow_the_split(model):
    """Reference images are set aside: the others keep their own masks."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, 256, (9, 12, 12, 3), dtype=np.uint8)
    masks = generator.random((9, 12, 12)) < np.linspace(0.4, 0.6, 9)[:, None, None]
    images = ImageSet(
        name="random", ids=tuple(map(str, range(9))), read=drawn.__getitem__, rows=np.arange(9),
        read_mask=masks.__getitem__, preprocess=testing.tiny_preprocess(),
    )  # fmt: skip
    found = quiet(model, images, groups="object", edit="mean", seed=3)
    kept = [int(name) for name in found.images["id"]]
    assert len(kept) == 6
    groups = patch_groups(model, images, "object")
    assert found.images["group_tokens"].to_list() == [[list(groups.tokens(g, i)) for g in (0, 1)] for i in kept]
    rest = [i for i in range(9) if i not in kept]
    again = quiet(model, images[kept], groups="object", edit="mean", reference=images[rest])
    assert np.array_equal(found.values["logit_diff"], again.values["logit_diff"], equal_nan=True)
    with pytest.raises(BadData, match="these have none"):
        quiet(model, replace(images, read_mask=None), groups="object")


def test_a_list_of_units(model, pixels):
    found = quiet(model, pixels, units=[Unit(1, "patches", 0, "middle", (5,)), Unit(1, "tokens", 5)])
    values = found.values["logit_diff"]
    assert np.abs(values[0] - values[1]).max() < 1e-12
    assert np.allclose(patch_maps(found)[:, 1, 1, 1], values[0])


def test_other_groups_are_another_job(model, pixels, tmp_path):
    first = quiet(model, pixels, groups=LABELS, out=tmp_path)
    assert mechvis.Result.load(tmp_path).table.equals(first.table)
    again = mechvis.Result.load(tmp_path)
    assert np.array_equal(patch_maps(again), patch_maps(first), equal_nan=True)
    with pytest.raises(ResultMismatch, match="differs in: groups"):
        quiet(model, pixels, groups=LABELS.flip(0), out=tmp_path)
    slow = quiet(model, pixels, groups=LABELS, engine="plain", out=tmp_path / "plain")
    assert slow.table.equals(quiet(model, pixels, groups=LABELS, engine="plain", out=tmp_path / "plain").table)


# known answers


def test_the_head_reads_one_patch():
    """The hand-wired model's head (0, 0) reads the middle patch: before block 0 it matters, and it alone; after it,
    none does."""
    model = mechvis.load(testing.hand_wired_vit(), preprocess=testing.tiny_preprocess())
    images, _ = testing.hand_wired_images(12)
    ring = [token for token in range(1, 10) if token != 5]
    found = quiet(model, images, groups={"middle": [5], "ring": ring}, metric="logit_diff")
    values = dict(zip(found.table["unit"], found.values["logit_diff"], strict=True))
    assert np.abs(values["L0 middle"]).mean() > 0.3
    assert max(np.abs(value).max() for name, value in values.items() if name != "L0 middle") < 0.02
    maps = patch_maps(quiet(model, images, units="tokens", metric="logit_diff"))
    assert (np.abs(maps[:, 0]).reshape(12, 9).argmax(1) == 4).all()
    assert np.abs(np.delete(maps[:, 0].reshape(12, 9), 4, axis=1)).max() < 0.02 and np.abs(maps[:, 1:]).max() < 0.02


def test_object_and_context_of_the_shortcut_model():
    """Put in evidence of another class: of object tokens it moves the logit of the object's class by the object head's
    gain of 2, of the others that of the context's class by the context head's gain of 3, up to small mixtures."""
    model, made = testing.shortcut_vit(), testing.shortcut_images(60)
    chosen = (made.contexts == (made.labels + 1) % 3).nonzero().flatten().numpy()
    images = made.image_set()[chosen]
    source = made.pixels[chosen].clone()
    source[:, 2:] = source[:, 2:].roll(1, dims=1)  # no token then shows the class of the object
    settings = {"groups": "object", "metric": "logit", "layers": [1], "edit": "patch", "source": source}
    to_object = quiet(model, images, **settings).table["effect"]
    to_context = quiet(model, replace(images, labels=made.contexts.numpy()[chosen]), **settings).table["effect"]
    assert to_object[0] == pytest.approx(2, abs=0.5) and to_object[1] == pytest.approx(0, abs=0.5)
    assert to_context[1] == pytest.approx(3, abs=0.5)


# maps


def test_maps_are_the_effects_at_their_place(model, pixels):
    found = quiet(model, pixels, units="tokens", layers=[0, 2], metric=["logit", "js"])
    maps = patch_maps(found, "js")
    assert maps.shape == (N, 3, 3, 3) and np.isnan(maps[:, 1]).all()
    for row, values in zip(found.rows("js").iter_rows(named=True), found.values["js"], strict=True):
        if row["token"]:
            assert np.array_equal(maps[:, row["layer"], (row["token"] - 1) // 3, (row["token"] - 1) % 3], values)
    groups = patch_groups(model, pixels, LABELS)
    found = quiet(model, pixels, groups=groups)
    maps = patch_maps(found)
    for image in range(N):
        for group in range(4):
            for token in groups.tokens(group, image):
                for layer in range(3):
                    value = found.values["logit_diff"][layer * 4 + group, image]
                    assert maps[image, layer].flat[token - 1] == value
    nowhere = ~groups.members.any(1)[:, 1:].numpy()
    assert np.array_equal(np.isnan(maps[:, 0].reshape(N, 9)), nowhere)


def test_overlapping_windows_are_averaged(model, pixels):
    found = quiet(model, pixels, groups={"a": [0, 1, 2], "b": [2]}, layers=[0])
    values, maps = found.values["logit_diff"], patch_maps(found)[:, 0].reshape(N, 9)
    assert np.allclose(maps[:, 1], values.mean(0)) and np.array_equal(maps[:, 0], values[0])
    assert np.isnan(maps[:, 2:]).all()


def test_maps_of_a_model_with_registers(pixels):
    bare = load("dinov2-registers-classifier")
    maps = patch_maps(quiet(bare, pixels, groups=(3, 3), layers=[1]))
    by_token = patch_maps(quiet(bare, pixels, units="tokens", layers=[1]))
    assert np.allclose(maps[:, 1], by_token[:, 1])


def test_maps_of_other_units_are_refused(model, pixels):
    with pytest.raises(ResultMismatch, match="no place in the image"):
        patch_maps(quiet(model, pixels, units="heads"))


def test_text_has_no_patches():
    text = mechvis.load(testing.tiny("clip-text"))
    with pytest.raises(BadData, match="need a vision model"):
        patch_groups(text, torch.zeros(1, 4, dtype=torch.int64), (1, 1))
    assert isinstance(patch_groups(load(), torch.zeros(1, 3, 12, 12), LABELS[:1]), Groups)
