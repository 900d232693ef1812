"""The two whole comparisons: what is in them, that they leave models alone, save, load, report, and refuse nonsense."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mechvis
from circuits.attribution.eap import edge_values
from circuits.comparison import (
    Alarm,
    Comparison,
    compare_data,
    compare_models,
    corrupted,
    css,
    data_graph,
    ddb,
    distance,
    load_comparison,
)
from circuits.comparison.graphs import measured
from circuits.task import task
from mechvis import testing
from mechvis.errors import BadData, OutOfRange, ResultMismatch, SplitOverlap, StoreCorrupt, UnknownName
from mechvis.testing.planted import depth_net, depth_pairs


@pytest.fixture(scope="module")
def models(tiny, other_tiny, pictures):
    with testing.assert_untouched(tiny):
        return compare_models(
            {"a": tiny, "b": other_tiny, "c": lambda: tiny, "d": other_tiny},
            pictures(24, 1),
            id_images=pictures(30, 2),
            bands=(1, 1),
            resamples=100,
            progress=False,
        )


@pytest.fixture(scope="module")
def data(tiny, pictures):
    others = {"fresh": pictures(10, 4), "blurred": corrupted(pictures(10, 5), "blur", 5)}
    others |= {"noisy": corrupted(pictures(12, 6), "noise", 5), "hue": corrupted(pictures(10, 7), "hue", 5)}
    with testing.assert_untouched(tiny):
        return compare_data(tiny, pictures(40, 3), others, draws=20, resamples=100, progress=False)


def test_the_graph_of_a_data_set_is_that_of_the_task(tiny, pictures):
    """A quarter of the images makes the means and is not measured."""
    images = pictures(16, 1)
    graph = data_graph(tiny, images, progress=False, seed=5)
    order = np.random.default_rng(5).permutation(16)
    shown, means = images[np.sort(order[4:])], images[np.sort(order[:4])]
    made = task(tiny, shown, ablation="mean_positional", reference=means, metric="kl", labels="predicted")
    np.testing.assert_array_equal(graph.values["kl"], edge_values(made))
    assert graph.images["id"].to_list() == list(shown.ids)
    assert graph.provenance["attribution"]["steps"] == 10 and graph.provenance["attribution"]["rule"] == "midpoint"


def test_the_released_settings_of_a_graph(tiny, pictures):
    """Left rule, five steps, means of the images themselves, KL averaged over the eight classes."""
    images = pictures(8, 1)
    made = task(
        tiny, images, ablation="mean_positional", reference=images, metric="kl", labels="predicted", allow_overlap=True
    )
    expected = edge_values(made, steps=5, rule="left") / 8
    _, found = measured(tiny, images, images, preset="inside-out")
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    result = data_graph(tiny, images, preset="inside-out", progress=False)
    np.testing.assert_allclose(result.values["kl"], expected, rtol=1e-12)


def test_labels_do_not_enter(tiny, pictures):
    images = pictures(8, 1)
    strange = replace(images, labels=np.zeros(8, int), class_names=("no class of the model",))
    first, second = (data_graph(tiny, some, progress=False).values["kl"] for some in (images, strange))
    np.testing.assert_array_equal(first, second)


def test_models_by_hand(models, tiny, pictures):
    images = pictures(24, 1)
    graph = data_graph(tiny, images, progress=False)
    assert models.row("a")["n"] == 18
    for targets in ("out", "deep", "global"):
        expected = ddb(graph, targets=targets, bands=(1, 1), resamples=100)
        assert models.row("a")[f"ddb_{targets}"] == pytest.approx(expected.value, abs=1e-9)
    assert models.row("a")["accuracy"] == models.row("c")["accuracy"]
    assert models.row("a")["ddb_out"] == models.row("c")["ddb_out"] != models.row("b")["ddb_out"]
    assert models.row("b")["ddb_out_low"] < models.row("b")["ddb_out"] < models.row("b")["ddb_out_high"]
    assert {"id_accuracy", "confidence", "negative_entropy", "atc"} <= set(models.table.columns)
    assert models.correlation("ddb_out")["n"] == 4
    with pytest.raises(UnknownName, match="score 'ddb'"):
        models.correlation("ddb")


def test_models_of_known_depth():
    """F4 from end to end: -3.6, 0 and 3.6, and the order of the truth; with the released settings a ratio of uneven
    bands."""
    models = {f"g={g}": depth_net(g) for g in (-0.4, 0.0, 0.2, 0.4)}
    truth = {"g=-0.4": 0.3, "g=0.0": 0.5, "g=0.2": 0.6, "g=0.4": 0.9}
    shown, means = depth_pairs(8).clean, depth_pairs(4).clean
    found = compare_models(models, shown, mean_images=means, accuracies=truth, progress=False)
    np.testing.assert_allclose(found.table["ddb_out"], [-3.6, 0, 1.8, 3.6], atol=1e-9)
    for statistic in ("spearman", "kendall"):
        assert found.correlation("ddb_out", statistic)["value"] == pytest.approx(1)
    released = compare_models({"g": depth_net(0.2)}, shown, preset="inside-out", progress=False)
    layers = np.exp(0.2 * np.arange(12))
    assert released.row("g")["ddb_out"] == pytest.approx(layers[9:].sum() / layers[:4].sum(), rel=1e-9)
    assert released.provenance["settings"]["means"] == "own" and released.provenance["settings"]["steps"] == 5


def test_other_bands_later(models, tiny, pictures):
    stored = ddb(models.layers("a"), targets="global", bands=((0,), (1, 2)))
    exact = ddb(data_graph(tiny, pictures(24, 1), progress=False), targets="global", bands=((0,), (1, 2)))
    assert stored.value == pytest.approx(exact.value, abs=1e-9)


def test_data_by_hand(data, tiny, pictures):
    reference = pictures(40, 3)
    order = np.random.default_rng(0).permutation(40)
    means = reference[np.sort(order[:10])]
    home, fresh = (
        data_graph(tiny, images, mean_images=means, progress=False)
        for images in (reference[np.sort(order[10:])], pictures(10, 4))
    )
    expected = css(home, fresh, draws=20)
    row = data.row("fresh")
    assert row["css"] == pytest.approx(expected.value, abs=1e-9) and row["n"] == 10
    assert row["matched"] == pytest.approx(expected.matched, abs=1e-9) and row["p"] == expected.p
    assert row["floor"] == pytest.approx(expected.floor_mean, abs=1e-9)
    assert row["alarm"] == expected.above_floor
    assert data.row("reference")["css"] == 0 and data.row("reference")["p"] is None
    assert data.row("reference")["images"] == 40
    weights = [data.arrays[f"weights/{name}"] for name in ("reference", "fresh")]
    assert distance(*weights) == pytest.approx(expected.value, abs=1e-9)  # any other distance can be computed later
    assert data.correlations["n"].unique().to_list() == [4]
    with pytest.raises(ResultMismatch, match="weights of edges, not of layers"):
        data.layers("fresh")


def test_a_set_with_itself(tiny, pictures):
    """The very images of the reference: CSS 0 with the means apart, and never an alarm."""
    images = pictures(10, 3)
    with pytest.raises(SplitOverlap, match="the reference and 'same'"):
        compare_data(tiny, images, {"same": images}, draws=20, progress=False)
    for more in ({"mean_images": pictures(8, 8)}, {"mean_from": "own", "steps": 1}):
        found = compare_data(tiny, images, {"same": images}, draws=20, progress=False, allow_overlap=True, **more)
        assert found.row("same")["css"] == 0.0 and not found.row("same")["alarm"]
        assert found.row("same")["floor"] > 0


def test_own_means_are_made_anew_for_every_draw(tiny, pictures):
    """Each subset with the means of just its images, by hand."""
    reference, other = pictures(8, 3), pictures(4, 4)
    found = compare_data(tiny, reference, {"x": other}, mean_from="own", steps=2, draws=20, progress=False)
    order = np.random.default_rng(0).permutation(8)
    halves = [reference[np.sort(order[:4])], reference[np.sort(order[4:])]]
    first, second, third = (
        measured(tiny, images, images, steps=2)[1].mean(1, dtype=np.float64) for images in (*halves, other)
    )
    assert found.arrays["floor/4"][0] == pytest.approx(distance(first, second), abs=1e-9)
    assert found.arrays["shift/x"][0] == pytest.approx(distance(first, third), abs=1e-9)
    assert len(found.arrays["floor/4"]) == 20 and found.provenance["settings"]["draws"] == 20


def test_a_threshold_adds_to_the_floor(tiny, pictures):
    # Other pixels altogether: noise on grey.
    grey = torch.from_numpy(np.random.default_rng(0).normal(size=(12, 3, 12, 12)))
    plain = {
        limit: compare_data(tiny, pictures(40, 3), {"x": grey}, draws=20, threshold=limit, progress=False)
        for limit in (None, 5.0)
    }
    assert plain[None].row("x")["alarm"] and not plain[5.0].row("x")["alarm"]
    assert plain[None].row("x")["accuracy"] is None and plain[None].correlations is None
    alarm = Alarm(threshold=5.0, tolerated=0.9, set_by="x", accuracy=0.8, n=12, found=1.0, false=0.0, n_sets=4)
    found = compare_data(tiny, pictures(40, 3), {"x": grey}, draws=20, threshold=alarm, progress=False)
    assert not found.row("x")["alarm"] and found.provenance["settings"]["threshold"] == 5.0
    with pytest.raises(BadData, match=r"set at 12 images a side, and 'x' is compared at 6.*window=12"):
        compare_data(tiny, pictures(40, 3), {"x": grey[:6]}, draws=20, threshold=alarm, progress=False)


@pytest.mark.parametrize("kind", ["models", "data"])
def test_saved_loaded_said_and_shown(request, kind, tmp_path):
    found = request.getfixturevalue(kind)
    loaded = load_comparison(found.save(tmp_path / "found"))
    assert loaded.table.equals(found.table) and loaded.correlations.equals(found.correlations)
    assert set(loaded.arrays) == set(found.arrays) and loaded.provenance == found.provenance
    for name, value in found.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], value)
    assert loaded.summary() == found.summary()
    page = loaded.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "How far to believe it" in page and found.title in page
    word = "DDB out" if kind == "models" else "floor 99 %"
    assert word in str(found) and "correlation with accuracy over 4" in str(found)
    # Four of them, two the same: no interval, and that is said.
    assert ("Not shown to go with accuracy here" in str(found)) and "Not shown to go with accuracy here" in page
    (tmp_path / "found" / "table.parquet").write_bytes(b"other")
    with pytest.raises(StoreCorrupt, match=r"table\.parquet"):
        Comparison.load(tmp_path / "found")


def test_files_of_others_are_refused(models, tmp_path):
    folder = models.save(tmp_path / "found")
    manifest = (folder / "comparison.json").read_text(encoding="utf-8")
    (folder / "comparison.json").write_text(manifest.replace("mechvis.comparison", "mechvis.circuit"), encoding="utf-8")
    with pytest.raises(ResultMismatch, match="does not hold a comparison"):
        Comparison.load(folder)
    (folder / "comparison.json").write_text(manifest.replace('"version": 1', '"version": 9'), encoding="utf-8")
    with pytest.raises(ResultMismatch, match="format version 9"):
        Comparison.load(folder)


def test_bad_models(tiny, pictures):
    images, quick = pictures(8, 1), {"progress": False, "resamples": 20}
    with pytest.raises(BadData, match="no model to compare"):
        compare_models({}, images)
    with pytest.raises(BadData, match="two of the models are called"):
        compare_models([tiny, tiny], images)
    with pytest.raises(BadData, match="different names; only one of the two has 'z'"):
        compare_models({"a": tiny}, images, accuracies={"a": 0.5, "z": 0.1})
    with pytest.raises(OutOfRange, match="accuracy of 'a' is 50"):
        compare_models({"a": tiny}, images, accuracies={"a": 50})
    with pytest.raises(BadData, match="need labels"):
        compare_models({"a": tiny}, images, id_images=replace(images, labels=None))
    with pytest.raises(BadData, match="is a Linear, no wrapped classifier"):
        compare_models({"a": lambda: torch.nn.Linear(2, 2)}, images)
    small = mechvis.load(testing.tiny("vit", dtype=torch.float64, num_hidden_layers=4),
                         preprocess=testing.tiny_preprocess())  # fmt: skip
    with pytest.raises(BadData, match="'b' has 4 layers with 16 heads in all, 'a' 3 with 12"):
        compare_models({"a": tiny, "b": small}, images, bands=(1, 1), **quick)
    both = compare_models({"a": tiny, "b": small}, images, bands=(1, 1), per_source=True, **quick)
    assert both.table.height == 2 and both.correlations is None
    with pytest.raises(OutOfRange, match=r"mean_share=1\.5"):
        compare_models({"a": tiny}, images, mean_share=1.5)
    with pytest.raises(BadData, match="leaves 0 to measure"):
        compare_models({"a": tiny}, images[:1], mean_share=0.9)


def test_given_accuracies_stand_for_labels(tiny, other_tiny, pictures):
    named = {name: model for name, model in zip("abcd", (tiny, other_tiny) * 2, strict=True)}
    truth = {"a": 0.1, "b": 0.9, "c": 0.2, "d": 0.8}
    found = compare_models(
        named,
        pictures(8, 1).pixels_for(tiny.preprocess).double(),
        accuracies=truth,
        bands=(1, 1),
        resamples=20,
        progress=False,
    )
    assert dict(zip(found.table["model"], found.table["accuracy"], strict=True)) == truth
    assert found.correlations is not None and "id_accuracy" not in found.table.columns
    labelled = compare_models({"a": tiny}, pictures(8, 1), accuracies={"a": 0.5}, bands=(1, 1), progress=False)
    assert labelled.row("a")["accuracy"] == 0.5 and "accuracy_low" not in labelled.table.columns


def test_bad_data(tiny, pictures):
    reference, other = pictures(16, 1), pictures(4, 2)
    with pytest.raises(BadData, match="at least one other set"):
        compare_data(tiny, reference, {})
    with pytest.raises(BadData, match="under another name"):
        compare_data(tiny, reference, {"reference": other})
    with pytest.raises(UnknownName, match="source of means 'both'"):
        compare_data(tiny, reference, {"x": other}, mean_from="both")
    with pytest.raises(BadData, match="means of each set itself"):
        compare_data(tiny, reference, {"x": other}, mean_from="own", mean_images=other)
    with pytest.raises(OutOfRange, match="draws=5"):
        compare_data(tiny, reference, {"x": other}, draws=5)
    with pytest.raises(BadData, match="twice as many images"):
        compare_data(tiny, reference, {"x": pictures(12, 2)}, window=12, draws=20, progress=False)
    with pytest.raises(UnknownName, match="distance 'euclid'"):
        compare_data(tiny, reference, {"x": other}, distance="euclid", draws=20, progress=False)
    with pytest.raises(UnknownName, match="preset 'paper'"):
        compare_data(tiny, reference, {"x": other}, preset="paper", draws=20, progress=False)
    with pytest.raises(OutOfRange, match="steps=0"):
        compare_data(tiny, reference, {"x": other}, steps=0, draws=20, progress=False)
