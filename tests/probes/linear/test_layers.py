"""Probing layers on features whose answer is known: where a class is, where only its type is, and where nothing is."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, SplitOverlap, UnknownName
from probes.features import Features
from probes.linear import ClassProbe, LinearProbes, Split, probe_layers
from probes.linear.layers import WEIGHT_DECAYS

N, D, CLASSES = 400, 16, 4
QUIET = {"progress": False, "resamples": 200}


def features_of(seed, *, each=1):
    """Layer 0 is noise, layer 1 holds the type (of 20), layer 2 the class as well."""
    means = np.random.default_rng(99)
    of_class, of_type = 2 * means.normal(size=(CLASSES, D)), means.normal(size=(20, D))
    rng = np.random.default_rng(seed)
    y, types = np.arange(N) % CLASSES, rng.integers(0, 20, N)
    noise = rng.normal(size=(3, N * each, D))
    rows = {
        "blocks.0.hook_resid_post:cls": noise[0],
        "blocks.1.hook_resid_post:cls": 0.3 * noise[1] + np.repeat(of_type[types], each, 0),
        "blocks.2.hook_resid_post:cls": noise[2] + np.repeat(of_class[y] + of_type[types], each, 0),
    }
    return Features(
        rows=rows,
        sites={name: name.removesuffix(":cls") for name in rows},
        layers={name: layer for layer, name in enumerate(rows)},
        n_images=N,
        labels=y,
        groups=np.where(y < 2, "low", "high"),
        ids=tuple(f"{seed}/{i}" for i in range(N)),
        columns={"type": types, "size": of_class[y][:, 0] + 0.1 * rng.normal(size=N)},
    )


@pytest.fixture(scope="module")
def features():
    return features_of(0)


@pytest.fixture(scope="module")
def record(features):
    noise = replace(
        features, rows={name: np.random.default_rng(9).normal(size=x.shape) for name, x in features.items()}
    )
    baselines = {"random model": noise, "raw pixels": features["blocks.0.hook_resid_post:cls"]}
    return probe_layers(features, types="type", ranks=(1, 3), baselines=baselines, **QUIET)


def test_only_the_last_layer_holds_the_class(record):
    chance = record.tables["baselines"].row(by_predicate=pl.col("baseline") == "commonest class", named=True)
    rows = record.table
    assert rows["score"][2] > 0.95 and rows["score_low"][2] > rows["score_high"][0]
    assert abs(rows["score"][0] - chance["score"]) < 0.12
    assert (rows["score_low"] <= rows["score"]).all() and (rows["score"] <= rows["score_high"]).all()
    assert record.best()["features"] == "blocks.2.hook_resid_post:cls"
    assert rows["n"].to_list() == [120, 120, 120]


def test_controls_say_what_is_memory(record):
    rows = record.table
    assert (rows["control"] < 0.45).all(), "a held-out image's own random label cannot be known"
    assert rows["type_control"][1] > 0.9, "this layer tells all types apart, so any labels of types can be read from it"
    assert rows["type_selectivity"][1] < -0.5 < 0.5 < rows["selectivity"][2]
    np.testing.assert_allclose(rows["selectivity"], rows["score"] - rows["control"], atol=1e-12)
    assert rows["compression"][2] > 3 > 1 > rows["compression"][0]
    assert (rows["control_compression"] < 1).all()


def test_baselines_and_groups(record):
    flat = record.tables["baselines"]
    pixels = flat.filter(pl.col("baseline") == "raw pixels")
    assert pixels.height == 1 and pixels["features"][0] is None and pixels["score"][0] < 0.45
    assert (flat.filter(pl.col("baseline") == "random model")["score"] < 0.45).all()
    assert record.table["above_random_low"][2] > 0.4
    groups = record.tables["groups"]
    assert set(groups["group"]) == {"low", "high"} and groups.height == 6
    mine = groups.filter(pl.col("features") == "blocks.2.hook_resid_post:cls")
    assert (mine["score"] * mine["n"]).sum() / 120 == pytest.approx(record.table["score"][2])


def test_capacities(record):
    capacity = record.tables["capacity"]
    assert capacity.height == 3 * (len(WEIGHT_DECAYS) + 2)
    assert capacity.filter(pl.col("chosen")).height == 3
    deep = capacity.filter(pl.col("features") == "blocks.2.hook_resid_post:cls")
    rank = {row["rank"]: row["score"] for row in deep.iter_rows(named=True) if row["rank"] is not None}
    assert rank[1] < 0.85 < 0.95 < rank[3], "four classes need three directions"


def test_scores_are_those_of_the_probe_alone(features, record):
    """The slow truth: fit by hand on the same rows."""
    name = "blocks.2.hook_resid_post:cls"
    train, test = record.arrays["train"], record.arrays["test"]
    decay = record.pick(features=name)["weight_decay"]
    probe = ClassProbe(weight_decay=decay).fit(features[name][train], features.labels[train])
    assert probe.score(features[name][test], features.labels[test]) == record.pick(features=name)["score"]
    np.testing.assert_array_equal(record.probe(name).predict(features[name]), probe.predict(features[name]))
    assert not set(train) & set(test)


def test_saves_draws_and_reports(record, tmp_path):
    back = LinearProbes.load(record.save(tmp_path / "probes"))
    assert back.table.equals(record.table) and back.facts == record.facts
    assert back.probe("blocks.2.hook_resid_post:cls").predict(np.zeros((1, D))).shape == (1,)
    lines = [line.get_label() for line in record.figure().axes[0].lines]
    assert {"cls: task", "cls: control", "cls: random model"} <= set(lines)
    assert "not that the model uses it" in record.report(tmp_path / "page.html").read_text()


def test_other_images_may_judge(features):
    found = probe_layers(features, judge_on=features_of(1), types="type", code=False, **QUIET)
    assert found.table["n"].to_list() == [N] * 3 and found.table["score"][2] > 0.9
    assert found.table["type_control"][1] > 0.8, "one label per type, in both sets"
    with pytest.raises(SplitOverlap, match="400 images train the probes and judge them"):
        probe_layers(features, judge_on=features, **QUIET)
    renamed = replace(features_of(1), ids=features.ids)
    assert probe_layers(features, judge_on=renamed, code=False, **QUIET).table.height == 3, (
        "other images of the same name"
    )


def test_numbers_and_labels(features):
    size = probe_layers(features, target="size", **QUIET)
    assert size.facts["kind"] == "numbers" and size.facts["measure"] == "R^2"
    assert size.table["score"][2] > 0.7 > 0.2 > size.table["score"][0] and size.table["control"][2] < 0.2
    both = np.stack([features.labels % 2, features.labels // 2], axis=1)
    labels = probe_layers(features, target=both, **QUIET)
    assert labels.facts["kind"] == "labels" and labels.table["score"][2] > 0.9
    assert "compression" not in labels.table.columns


def test_rows_of_patches_count_once_per_image():
    several = features_of(0, each=3)
    found = probe_layers(several, code=False, **QUIET)
    assert found.table["n"].to_list() == [120] * 3, "images, not rows"
    assert found.arrays["scores"].shape == (3, 120)
    assert set(np.round(3 * found.arrays["scores"]).ravel()) <= {0, 1, 2, 3}


def test_matrices_on_disk_give_the_same(features, tmp_path):
    name = "blocks.2.hook_resid_post:cls"
    np.save(tmp_path / "x.npy", features[name])
    one = replace(features, rows={name: features[name]})
    disk = replace(features, rows={name: np.load(tmp_path / "x.npy", mmap_mode="r")})
    scores = [probe_layers(f, tolerance=1e-7, code=False, **QUIET).table["score"][0] for f in (one, disk)]
    assert scores[0] == scores[1]


def test_together_is_a_column(features):
    found = probe_layers(features, together="type", code=False, **QUIET)
    types = features.columns["type"]
    assert not set(types[found.arrays["train"]]) & set(types[found.arrays["test"]])


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"target": "colour"}, UnknownName, "colour"),
        ({"target": np.zeros(3)}, ShapeMismatch, "400 images and 3 targets"),
        ({"target": np.full(N, np.nan)}, NotFinite, "NaN or Inf, first at image 0"),
        ({"kind": "sounds"}, UnknownName, "kind of probe"),
        ({"weight_decays": ()}, BadData, "at least one weight decay"),
        ({"fractions": (0.7, 0.0, 0.3)}, BadData, "no validation image to choose by"),
        ({"fractions": (0.8, 0.2, 0.0)}, BadData, "nobody judges"),
        ({"types": np.zeros(4)}, ShapeMismatch, "one per image"),
        ({"baselines": {"pixels": np.zeros((3, 2))}}, ShapeMismatch, "of 400 images"),
        ({"target": np.zeros(N, int)}, BadData, "nothing to tell apart"),
    ],
)
def test_bad_input(features, settings, error, text):
    with pytest.raises(error, match=text):
        probe_layers(features, **{**QUIET, **settings})


def test_bad_splits_and_judges(features):
    wrong = Split(train=np.arange(900), validation=np.array([], int), test=np.array([1000]))
    with pytest.raises(OutOfRange, match="names image 1000"):
        probe_layers(features, split=wrong, weight_decays=(1e-2,), **QUIET)
    other = replace(features_of(1), rows={"elsewhere": np.zeros((N, D))})
    with pytest.raises(BadData, match="lacks the features"):
        probe_layers(features, judge_on=other, **QUIET)
    with pytest.raises(BadData, match="leave judge_on= out"):
        probe_layers(features, judge_on=features_of(1), baselines={"x": features}, **QUIET)
    strange = replace(features, ids=tuple(f"other/{i}" for i in range(N)))
    with pytest.raises(ShapeMismatch, match="other images"):
        probe_layers(features, baselines={"random model": strange}, **QUIET)
    with pytest.raises(UnknownName, match="features"):
        probe_layers(features, code=False, **QUIET).probe("blocks.7")
