"""Labels of all units with held-out scores and controls: planted units, bundled models, command and page."""

import functools
import importlib
import inspect
import typing

import numpy as np
import polars as pl
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.data import scenes
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, UnknownName
from probes.commands.label import label
from probes.unit_labels import Concepts, concepts_from_texts, concepts_of, label_units, pick_images
from probes.unit_labels.choose import CHOICES, scores_of
from probes.unit_labels.record import UnitLabels
from probes.unit_labels.study import measured

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def vit():
    return mechvis.load("scenes-vit")


@pytest.fixture(scope="module")
def images():
    return scenes(192, seed=21)


@pytest.fixture(scope="module")
def found(vit, images):
    return label_units(vit, images, reduce="mean", shown=2, **QUIET)


def test_neurons_of_scenes_vit_are_detectors(found):
    """Which neurons detect what: each source has detectors whose held-out correlation is far above the control."""
    best = {row["source"]: row for row in found.tables["sources"].iter_rows(named=True)}
    assert set(best) == {"label", "colour", "background"}
    assert found.facts["shuffled_95"] < 0.25 and abs(found.facts["shuffled_mean"]) < 0.03
    assert best["label"]["best"] > 0.85 and best["colour"]["best"] > 0.7 and best["background"]["best"] > 0.6
    strong = found.detectors().head(20)
    assert (strong["low"] > 3 * found.facts["shuffled_95"]).all() and strong["n"][0] == 96
    assert strong["held_out"].mean() > strong["random_unit"].abs().mean() + 0.3
    assert "units have a label that holds on held-out images" in found.summary()


def test_held_out_scores_by_hand(found, vit, images):
    """The best unit's correlation on the held-out half, from the model's own activations."""
    row = found.detectors().row(0, named=True)
    layer, neuron = (int(part) for part in row["unit"][1:].split("N"))
    site = f"blocks.{layer}.mlp.hook_post"
    values = vit.run(images, capture=site).cache[site][:, 1:, neuron].mean(1).numpy()
    held = np.sort(np.random.default_rng(0).permutation(192)[96:])
    expected = np.corrcoef(values[held], concepts_of(images).of(row["label"])[held])[0, 1]
    assert row["held_out"] == pytest.approx(expected, abs=1e-5) and row["low"] < expected < row["high"]


def test_on_shuffled_images_hardly_any_unit_is_a_detector(vit, images):
    """The control that must fail: concepts of other images."""
    concepts = concepts_of(images)
    wrong = concepts.take(np.random.default_rng(5).permutation(len(images)))
    found = label_units(vit, images, wrong, reduce="mean", shown=0, **QUIET)
    assert found.detectors().height < 0.03 * found.table.height
    assert abs(found.table["held_out"].mean()) < 0.05
    with pytest.raises(BadData, match="images of 0 units were kept"):
        found.panel()


def test_heads_and_latents(vit, images):
    heads = label_units(
        vit, images, sites="blocks.*.attn.hook_z", reduce="mean", method="correlation", shown=0, **QUIET
    )
    assert heads.table.height == 16 and heads.table["unit"][5] == "L1H1"

    class Planted:
        """One latent per colour channel of the stream: the red direction, found on other images."""

        def __init__(self):
            other = scenes(256, seed=99)
            site = "blocks.1.hook_resid_post"
            stream = vit.run(other, capture=site).cache[site][:, 1:].mean(1)
            red = torch.from_numpy(other.columns["colour"] == "red")
            self.direction = stream[red].mean(0) - stream[~red].mean(0)

        def encode(self, x):
            return torch.stack([x @ self.direction, torch.randn(len(x), generator=torch.Generator().manual_seed(0))], 1)

    one = label_units(
        vit, images, sites="blocks.1.hook_resid_post", reduce="mean", dictionary=Planted(), method="correlation",
        shown=1, **QUIET,
    )  # fmt: skip
    latent, noise = one.table.rows(named=True)
    assert latent["label"] == "red" and latent["detector"] and latent["held_out"] > 0.4
    assert not noise["detector"]
    assert one.arrays["panel0/top/maps"].shape == (8, 8, 8)


@pytest.mark.parametrize("method", ["linear", "logical", "network_dissection"])
def test_sums_formulas_and_masks_are_judged_the_same_way(vit, images, method):
    some = {"sites": "blocks.3.mlp.hook_post", "units": range(40), "reduce": "mean", "shown": 0, **QUIET}
    settings = {"quantile": 0.02} if method == "network_dissection" else {}
    found = label_units(vit, images, method=method, shuffles=2, settings=settings, **some)
    one = label_units(vit, images, method="correlation", shuffles=2, **some)
    assert found.detectors().height > 8 and found.detectors()["held_out"][0] > 0.6
    assert found.facts["shuffled_95"] < 0.35
    if method == "linear":
        # Several concepts say more of a unit than the best one.
        assert found.table["held_out"].mean() > one.table["held_out"].mean() + 0.05
        assert any(", " in source for source in found.table["source"])
        with pytest.raises(BadData, match="a weighted sum of concepts is no presence"):
            label_units(vit, images, method=method, measure="f1", **some)
    if method == "logical":
        assert any(" AND " in text or " OR " in text for text in found.table["label"])


@pytest.mark.slow
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_texts_as_concepts_judged_by_labels(images, reduce):
    """scenes-clip's own texts name what its neurons detect, as the labels say."""
    clip = mechvis.load("scenes-clip")
    truth = concepts_of(images)
    texts = {name: f"a photo of a {name} background" if kind == "background" else f"a photo of a {name}"
             for name, kind in zip(truth.names, truth.kinds, strict=True)}  # fmt: skip
    concepts = concepts_from_texts(clip, images, texts)
    found = label_units(
        clip.vision, images, concepts, truth=truth, reduce=reduce, method="cosine_cubed", shown=0, **QUIET
    )
    assert found.facts["judged_by"] == "labels" and found.caveats[-1].startswith("Concepts are a model's cosines")
    best = found.detectors()
    assert best.height > 100 and best["held_out"][0] > 0.8


@pytest.mark.parametrize("measure", ["spearman", "auc"])
def test_other_measures_have_intervals_too(vit, images, measure):
    found = label_units(
        vit, images, sites="blocks.3.mlp.hook_post", units=range(12), reduce="max", measure=measure, shown=0, **QUIET
    )
    defined = found.table.filter(pl.col("low").is_not_null())
    assert defined.height > 6 and (defined["low"] <= defined["held_out"]).all()
    assert found.table["p"].is_null().all() == (measure == "auc")


def test_the_record_comes_back_with_its_figures(found, tmp_path):
    again = UnitLabels.load(found.save(tmp_path / "labels"))
    assert again.table.equals(found.table) and len(again.figures()) == 2
    panel = again.panel(0)
    shown = found.facts["shown"][0]
    assert panel.get_suptitle().startswith(f"{shown}: {found.of(shown)['label']}")
    assert again.report(tmp_path / "page.html").stat().st_size > 20_000
    with pytest.raises(BadData, match="images of 2 units"):
        again.panel(2)


def test_scores_and_measures_for_all_units_at_once():
    generator = np.random.default_rng(0)
    a, c = generator.standard_normal((50, 4)), (generator.random((50, 3)) < 0.5) * 1.0
    c[:, 2] = 1
    scores = scores_of(a, c, "correlation")
    assert scores[1, 0] == pytest.approx(np.corrcoef(a[:, 1], c[:, 0])[0, 1]) and (scores[:, 2] == 0).all()
    values = measured("pearson", a, c[:, [0, 1, 2, 0]])
    np.testing.assert_allclose(values[:2], [np.corrcoef(a[:, i], c[:, i])[0, 1] for i in range(2)])
    assert np.isnan(values[2])


def test_images_to_show():
    values = np.array([0.0, 1, 2, 3, 10, 9.5, 0.5, np.pi])
    picked = pick_images(values, top=3, ranged=4)
    np.testing.assert_array_equal(picked.top, [4, 5, 7])
    shown = values[picked.ranged]
    assert len(shown) == 3 and (np.diff(shown) < 0).all(), "one for each part of the range that holds an image"
    assert shown[0] >= 7.5 and 2.5 <= shown[1] < 5 and shown[2] < 2.5
    assert len(pick_images(np.ones(5)).ranged) == 1
    with pytest.raises(OutOfRange, match="top=0"):
        pick_images(values, top=0)
    with pytest.raises(NotFinite):
        pick_images(values * np.nan)
    with pytest.raises(BadData, match="one unit over images"):
        pick_images(np.ones((2, 2)))


def test_studies_that_cannot_be_are_refused(vit, images):
    concepts = concepts_of(images)
    with pytest.raises(UnknownName, match="soft_wpmi"):
        label_units(vit, images, reduce="max", method="softwpmi", **QUIET)
    with pytest.raises(UnknownName, match="pearson"):
        label_units(vit, images, reduce="max", measure="r", **QUIET)
    with pytest.raises(ShapeMismatch, match="concepts of 5 images"):
        label_units(vit, images, concepts.take(slice(5)), reduce="max", **QUIET)
    other = Concepts(names=("a",), presence=np.ones((192, 1)), kind="labels")
    with pytest.raises(ShapeMismatch, match="the same names"):
        label_units(vit, images, concepts, truth=other, reduce="max", **QUIET)
    with pytest.raises(BadData, match="give 8 or more"):
        label_units(vit, images[:4], reduce="max", **QUIET)
    with pytest.raises(BadData, match="labels need an ImageSet"):
        label_units(vit, images.pixels, reduce="max", **QUIET)
    with pytest.raises(OutOfRange, match="shuffles=0"):
        label_units(vit, images, reduce="max", shuffles=0, **QUIET)
    with pytest.raises(BadData, match="undefined for every unit"):
        label_units(vit, images, other, sites="blocks.0.mlp.hook_post", units=[0], reduce="max", **QUIET)


def test_the_model_leaves_as_it_came(vit, images):
    with testing.assert_untouched(vit):
        label_units(vit, images[:16], sites="blocks.0.mlp.hook_post", units=[0, 1], reduce="max", shown=1, **QUIET)


def test_flags_of_the_command_are_parameters_of_what_it_calls():
    known = {"model", "images", "out", "top"}
    for called in label.calls:
        module, path = called.split(":")
        thing = functools.reduce(getattr, path.split("."), importlib.import_module(module))
        known |= set(inspect.signature(thing).parameters)
    assert not set(inspect.signature(label).parameters) - known
    methods = typing.get_args(typing.get_type_hints(label)["method"])
    assert set(methods) == set(CHOICES)


def test_command(tmp_path, capsys):
    settings = {"model": "scenes-vit", "images": "scenes:64:5", "sites": ("blocks.3.mlp.hook_post",), "reduce": "mean"}
    label(**settings, shown=1, out=tmp_path / "out", **QUIET)
    said = capsys.readouterr().out
    assert "units have a label that holds" in said and "random unit" in said and "report.html" in said
    assert (tmp_path / "out" / "report.html").exists()
    words = tmp_path / "words.txt"
    words.write_text("a photo of a red circle\n\na photo of a blue star\n")
    label(**settings, texts=words, clip="scenes-clip", shown=0, **QUIET)
    assert "nothing was saved" in capsys.readouterr().out
    with pytest.raises(BadData, match="not from both"):
        label(**settings, texts=words, columns=("colour",), **QUIET)
    with pytest.raises(BadData, match="there are none"):
        label(**settings, clip="scenes-clip", **QUIET)
    with pytest.raises(BadData, match="no such file"):
        label(**settings, texts=tmp_path / "nothing.txt", **QUIET)
