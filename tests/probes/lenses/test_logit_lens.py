"""The logit lens: known answers, a twin by hand, and what it says about the bundled models."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mechvis
from mechvis import testing
from mechvis.data.scene_factors import BACKGROUNDS
from mechvis.errors import (
    BadData,
    MechvisWarning,
    NotFinite,
    OutOfMemory,
    OutOfRange,
    ShapeMismatch,
    UnknownName,
)
from mechvis.hooked import HookedViT
from mechvis.patches import patch_groups
from mechvis.record import load_record
from probes.lenses import LensTable, lens_maps, logit_lens
from probes.lenses.maps import auroc
from probes.lenses.measures import measures

QUIET = {"progress": False, "resamples": 200}


@pytest.fixture(scope="module")
def model():
    return mechvis.load("scenes-vit")


@pytest.fixture(scope="module")
def clip():
    return mechvis.load("scenes-clip")


@pytest.fixture(scope="module")
def images():
    return mechvis.data.scenes(n=96, seed=7, group="conflicting")


@pytest.fixture(scope="module")
def table(model, images):
    return logit_lens(model, images, tokens=["read", "cls", "patches", "object", "background"], **QUIET)


def bare(dead=(), loud=None):
    """A random ViT; blocks that write nothing, and perhaps one loud patch."""
    module = testing.tiny("vit", dtype=torch.float64)
    with torch.no_grad():
        for layer in dead:
            block = module.vit.layers[layer]
            for linear in (block.attention.o_proj, block.mlp.fc2):
                linear.weight.zero_()
                linear.bias.zero_()
        if loud is not None:
            module.vit.embeddings.position_embeddings[0, 1 + loud] *= 100
    return mechvis.load(module, preprocess=testing.tiny_preprocess())


def test_dead_blocks_leave_the_answer(model):
    """Blocks 1 and 2 write nothing: the lens after block 0 is the final answer, to 1e-12."""
    vit = bare(dead=(1, 2))
    found = logit_lens(vit, testing.tiny_input("vit", n=8, dtype=torch.float64), **QUIET)
    assert found.arrays["kl"].max() < 1e-12 and found.arrays["agreement"].min() == 1.0
    control = logit_lens(bare(), testing.tiny_input("vit", n=8, dtype=torch.float64), **QUIET)
    assert control.pick(layer=0)["kl"] > 0.01 and control.pick(layer=2)["kl"] < 1e-12


def kl(reading, final):
    return F.kl_div(reading.log_softmax(0), final.log_softmax(0), reduction="sum", log_target=True)


@torch.no_grad()
def test_against_a_twin_by_hand(model, images, table):
    pixels = images.pixels_for(model.preprocess)
    run = model.run(pixels, capture=["blocks.1.hook_resid_post"])
    stream, final = run.cache["blocks.1.hook_resid_post"], run.output
    masks = patch_groups(model, images, "object").members[:, 0]
    for i in (0, 17, 95):
        tokens = masks[i].nonzero().flatten()
        logits = torch.stack([model.parts.head(model.parts.ln_final(stream[i, t])) for t in tokens])
        label = int(images.labels[i])
        rank = (logits > logits[:, label : label + 1]).sum(1).double()
        expected = {
            "accuracy": (logits.argmax(1) == label).double().mean(),
            "identifiability": (1 - rank / 8).mean(),
            "probability": logits.softmax(1)[:, label].double().mean(),
            "kl": torch.stack(
                [
                    F.kl_div(row.log_softmax(0), final[i].log_softmax(0), reduction="sum", log_target=True)
                    for row in logits
                ]
            ).mean(),
            "agreement": (logits.argmax(1) == final[i].argmax()).double().mean(),
        }
        for name, value in expected.items():
            got = table.per_image(name, layer=1, tokens="object")[i]
            assert got == pytest.approx(float(value), abs=1e-5), name


def test_last_row_is_the_model(model, images, table):
    accuracy = (model.run(images).output.argmax(-1) == images.label_tensor).double().mean()
    last = table.pick(layer=3, tokens="read")
    assert last["accuracy"] == pytest.approx(float(accuracy)) and last["kl"] < 1e-9 and last["agreement"] == 1
    np.testing.assert_allclose(table.arrays["kl"][0], table.arrays["kl"][1], atol=1e-9, err_msg="cls is what is read")


def test_object_patches_say_the_shape_at_the_end_and_the_class_token_the_background_first(model, images, table):
    """Measured on scenes-vit, where shape and background disagree."""
    assert table.pick(layer=3, tokens="object")["accuracy_low"] > 0.95
    assert table.pick(layer=0, tokens="object")["accuracy"] < 0.2
    assert table.readable_from("object") == 2
    gap = table.difference("accuracy", {"layer": 3, "tokens": "object"}, {"layer": 3, "tokens": "read"})
    assert gap.low[0] > 0.1, "object patches know the shape better than the answer does"
    place = np.array([BACKGROUNDS.index(name) for name in images.columns["background"]])
    surroundings = logit_lens(model, images, target=place, **QUIET)
    assert surroundings.pick(layer=0)["accuracy_low"] > 0.7
    assert surroundings.pick(layer=3)["accuracy_high"] < 0.6


def test_clip_reads_shape_and_background_by_text(clip, images):
    shape = logit_lens(clip, images, texts=list(images.class_names), tokens=["read", "object", "background"], **QUIET)
    assert shape.pick(layer=3, tokens="read")["accuracy_low"] > 0.5
    place = logit_lens(
        clip, images, texts=list(BACKGROUNDS), templates=["a {} background"], target="background", **QUIET
    )
    assert place.facts["classes"] == 8 and place.pick(layer=3)["accuracy_low"] > 0.5
    model = clip.classifier(list(images.class_names), ("a photo of a {}",))
    embeddings = clip.encode_image(images)
    texts = clip.encode_text([f"a photo of a {images.class_names[label]}" for label in images.labels])
    expected = (embeddings * texts).sum(1).detach().numpy()
    np.testing.assert_allclose(shape.per_image("cosine", layer=3, tokens="read"), expected, atol=1e-5)
    same = logit_lens(model, images, tokens="read", **QUIET)
    np.testing.assert_array_equal(same.arrays["kl"], shape.arrays["kl"][::3])


def test_writes_alone_and_frozen_statistics(model, images):
    sites = ["blocks.*.hook_attn_out", "blocks.*.hook_mlp_out"]
    found = logit_lens(model, images[:32], sites=sites, tokens=["read", "patches"], statistics="final", **QUIET)
    assert found.table.height == 16 and found.facts["statistics"] == "final"
    last = logit_lens(model, images[:32], statistics="final", **QUIET)
    assert last.pick(layer=3)["kl"] < 1e-9 and last.pick(layer=0)["kl"] > 0.1
    with pytest.raises(BadData, match=r"needs readings of blocks\.\*\.hook_resid_post"):
        found.plot()
    assert found.figures() == []


def test_outliers_are_counted_warned_about_and_left_out():
    pixels = testing.tiny_input("vit", n=6, dtype=torch.float64)
    with pytest.warns(MechvisWarning, match="norm above 3 times their image's median.*leave_out_outliers=True"):
        found = logit_lens(bare(loud=4), pixels, tokens=["read", "patches"], **QUIET)
    assert found.table["outliers"].max() >= 1 / 9
    assert any("spurious peaks" in line for line in found.caveats)
    without = logit_lens(bare(loud=4), pixels, tokens=["read", "patches"], leave_out_outliers=True, **QUIET)
    differs = ~np.isclose(found.arrays["kl"], without.arrays["kl"])
    assert differs[1].all() and not differs[0].any(), "patches differ, the model's own reading does not"
    assert logit_lens(bare(), pixels, **QUIET).table["outliers"].max() == 0


def test_identifiability_by_hand():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    found = measures(logits, logits, torch.tensor([1, 2]))
    assert found["identifiability"].tolist() == [1 - 1 / 4, 1 - 1.5 / 4]
    assert found["kl"].max() == 0 and "accuracy" not in measures(logits, logits, None)


def test_small_budget_changes_nothing(model, images, table):
    part = logit_lens(model, images[:20], tokens=["read", "object"], budget=2_000_000, **QUIET)
    for name in part.arrays:
        np.testing.assert_allclose(
            part.per_image(name, layer=2, tokens="object"),
            table.per_image(name, layer=2, tokens="object")[:20],
            atol=1e-6,
        )


def test_pieces_change_nothing(model, images, table, monkeypatch):
    monkeypatch.setattr(importlib.import_module("probes.lenses.logit_lens"), "_AT_ONCE", 2000)
    part = logit_lens(model, images[:10], tokens=["object", "cls"], **QUIET)
    for name in part.arrays:
        whole = table.per_image(name, layer=1, tokens="object")[:10]
        np.testing.assert_allclose(part.per_image(name, layer=1, tokens="object"), whole, atol=1e-6)


def test_registers_and_another_image_size():
    module = testing.tiny("dinov2-registers-classifier", dtype=torch.float64)
    model = mechvis.load(module, preprocess=testing.tiny_preprocess())
    pixels = torch.randn(3, 3, 18, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = logit_lens(model, pixels, tokens=["read", "cls", "registers", "patches"], **QUIET)
    assert found.pick(layer=2, tokens="read")["kl"] < 1e-12
    n_registers = len(model.parts.prefix) - 1
    stream = model.run(pixels, capture="blocks.1.hook_resid_post")
    vectors = stream.cache["blocks.1.hook_resid_post"][:, 1 : 1 + n_registers]
    both = model.parts.ln_final(vectors)
    logits = model.parts.head(torch.cat([both, both], dim=-1)).detach()
    expected = [
        np.mean([float(kl(row, final)) for row in rows]) for rows, final in zip(logits, stream.output, strict=True)
    ]
    np.testing.assert_allclose(found.per_image("kl", layer=1, tokens="registers"), expected, atol=1e-10)
    assert lens_maps(model, pixels, **QUIET).arrays["answers"].shape == (3, 3, 4, 6)


def test_save_load_report(table, tmp_path):
    table.save(tmp_path / "lens")
    again = LensTable.load(tmp_path / "lens")
    assert again.table.equals(table.table) and again.readable_from("object") == 2
    assert load_record(tmp_path / "lens").kind == "lens"
    page = table.report(tmp_path / "lens.html").read_text()
    assert "another basis" in page and "identifiability" in page
    assert set(table.words) >= {"accuracy", "kl", "outliers"}


def test_model_is_left_alone(model, images):
    with testing.assert_untouched(model):
        logit_lens(model, images[:4], tokens=["read", "patches"], **QUIET)
        lens_maps(model, images[:4], **QUIET)


# maps


def test_maps_are_the_readings_of_patches(model, images, table):
    maps = lens_maps(model, images, **QUIET)
    assert maps.arrays["answers"].shape == (96, 4, 8, 8) and maps.arrays["values"].shape == (96, 4, 8, 8, 8)
    right = (maps.arrays["answers"] == images.labels[:, None, None, None]).mean((2, 3))
    np.testing.assert_allclose(right[:, 2], table.per_image("accuracy", layer=2, tokens="patches"), atol=1e-12)
    np.testing.assert_allclose(maps.arrays["values"].sum(2), 1, atol=1e-5)
    np.testing.assert_allclose(maps.arrays["values"].max(2), maps.arrays["confidence"], atol=1e-6)
    assert {"auroc", "centre_auroc"} <= set(maps.table.columns)


@torch.no_grad()
def test_maps_of_texts_are_cosines(clip, images):
    texts = list(images.class_names)
    maps = lens_maps(clip, images[:8], texts=texts, what="cosine", classes=["star", "ring"], **QUIET)
    assert np.abs(maps.arrays["values"]).max() <= 1 and maps.facts["classes kept"] == ["star", "ring"]
    run = clip.vision.run(images[:8].pixels_for(clip.preprocess), capture="blocks.2.hook_resid_post")
    stream = run.cache["blocks.2.hook_resid_post"]
    parts = clip.vision.parts
    text = clip.encode_text(["a photo of a ring"])[0]
    embedding = parts.project(parts.ln_final(stream[3, 1 + 8 * 2 + 5]))
    expected = float(torch.cosine_similarity(embedding, text, dim=0))
    assert maps.map_of("ring")[3, 2, 2, 5] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UnknownName, match="class of these maps 'heart'"):
        maps.map_of("heart")


def test_maps_save_and_draw(model, images, tmp_path):
    maps = lens_maps(model, images[:5], sites="blocks.*.hook_resid_post", **QUIET)
    figure = maps.plot()
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "layer 0", "layer 1"]
    again = type(maps).load(maps.save(tmp_path / "maps"))
    np.testing.assert_array_equal(again.arrays["answers"], maps.arrays["answers"])
    assert "<img" in again.report(tmp_path / "maps.html").read_text()
    with pytest.raises(OutOfRange, match="image 4 has no picture"):
        maps.plot([4])


def test_auroc_by_hand_and_by_scikit_learn():
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(0)
    scores, truth = generator.integers(0, 5, (6, 30)).astype(float), generator.random((6, 30)) < 0.4
    expected = [roc_auc_score(t, s) for t, s in zip(truth, scores, strict=True)]
    np.testing.assert_allclose(auroc(scores, truth), expected)
    assert np.isnan(auroc(scores[:1], np.ones((1, 30), bool))).all()


def test_maps_of_many_classes_keep_the_targets(images, monkeypatch):
    monkeypatch.setattr(importlib.import_module("probes.lenses.maps"), "_MOST_CLASSES", 3)
    model = mechvis.load("scenes-vit")
    two = images[np.isin(images.labels, [2, 5])][:6]
    maps = lens_maps(model, two, **QUIET)
    assert maps.facts["classes kept"] == [images.class_names[2], images.class_names[5]]
    assert "auroc" in maps.table.columns
    with pytest.raises(BadData, match="maps of 8 classes are too many to keep"):
        lens_maps(model, two.pixels_for(model.preprocess), **QUIET)
    monkeypatch.setattr(importlib.import_module("probes.lenses.maps"), "free_memory", lambda: 1000)
    with pytest.raises(OutOfMemory, match="give fewer images"):
        lens_maps(model, two, **QUIET)


# bad input


def test_refusals(model, clip, images):
    some = images[:4]
    with pytest.raises(UnknownName, match="kind of tokens 'patch'"):
        logit_lens(model, some, tokens="patch", **QUIET)
    with pytest.raises(BadData, match="give each kind once"):
        logit_lens(model, some, tokens=["cls", "cls"], **QUIET)
    with pytest.raises(BadData, match=r"tokens='registers': this model's tokens before the patches are cls"):
        logit_lens(model, some, tokens="registers", **QUIET)
    with pytest.raises(BadData, match=r"reads sites \[image token d_model\]; blocks.0.ln1.hook_normalized"):
        logit_lens(model, some, sites="blocks.0.ln1.hook_normalized", **QUIET)
    with pytest.raises(BadData, match="needs images with object masks"):
        logit_lens(model, some.pixels_for(model.preprocess), tokens="object", **QUIET)
    with pytest.raises(UnknownName, match="statistics 'frozen'"):
        logit_lens(model, some, statistics="frozen", **QUIET)
    with pytest.raises(OutOfRange, match="give more than 1"):
        logit_lens(model, some, outlier_ratio=0.5, **QUIET)
    with pytest.raises(BadData, match=r"CLIP needs texts="):
        logit_lens(clip, some, **QUIET)
    with pytest.raises(BadData, match="texts= are for CLIP"):
        logit_lens(model, some, texts=["a"], **QUIET)
    with pytest.raises(BadData, match="has no head"):
        logit_lens(clip.vision, some, **QUIET)
    with pytest.raises(BadData, match="needs texts: a zero-shot head"):
        lens_maps(model, some, what="cosine", **QUIET)
    with pytest.raises(UnknownName, match="unknown class 'dog'"):
        lens_maps(model, some, classes=["dog"], **QUIET)


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        ("backdrop", UnknownName, "unknown column 'backdrop'"),
        ("background", UnknownName, "unknown class"),
        ([0, 1], ShapeMismatch, "4 images need as many targets"),
        ([0, 1, 2, 8], OutOfRange, "targets from 0 to 8"),
        ([0.5, 1, 2, 3], BadData, "class indices or names"),
    ],
)
def test_targets_that_do_not_fit(model, images, target, error, words):
    with pytest.raises(error, match=words):
        logit_lens(model, images[:4], target=target, **QUIET)


def test_a_write_of_nothing_has_no_direction(clip, images):
    """A zero-shot head divides by the length of the embedding, here zero."""
    model = clip.classifier(["circle", "star"])
    parts = replace(model.parts, project=lambda x: model.parts.project(x) * 0)
    broken = HookedViT(clip.bare, parts, preprocess=clip.preprocess)
    with pytest.raises(NotFinite, match="answer to image 0 is NaN"):
        logit_lens(broken, images[:2], target=[0, 1], **QUIET)
    nothing = replace(model.parts.blocks[0], mlp_out=lambda neurons: neurons[..., : model.parts.d_model] * 0)
    parts = replace(model.parts, blocks=(nothing, *model.parts.blocks[1:]), ln_final=torch.nn.Identity())
    silent = HookedViT(clip.bare, parts, preprocess=clip.preprocess)
    with pytest.raises(NotFinite, match=r"blocks.0.hook_mlp_out, tokens 'read': a reading is NaN"):
        logit_lens(silent, images[:2], target=[0, 1], sites="blocks.*.hook_mlp_out", **QUIET)


def test_without_labels_only_what_needs_none(model, images):
    found = logit_lens(model, images[:4].pixels_for(model.preprocess), **QUIET)
    assert set(found.arrays) == {"kl", "agreement"}
    with pytest.raises(BadData, match="has no chance level here"):
        found.readable_from("read")
