"""The result type: the table it makes, what it refuses, the folder it writes, and how it shows itself."""

import json
import os
import subprocess
import sys
import types
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mechvis import files, stats
from mechvis.errors import (
    BadData,
    MissingPackage,
    NotFinite,
    OutOfRange,
    OutputNotWritable,
    ResultMismatch,
    ShapeMismatch,
    StoreCorrupt,
    UnknownName,
)
from mechvis.provenance import command_line, provenance
from mechvis.results import Result, unit_name

HEADS = [{"layer": layer, "head": head} for layer in range(2) for head in range(3)]


def heads(count: int = 40, **more) -> Result:
    """Six heads on two metrics; L1H2 supports both clearly, L0H1 opposes the first."""
    generator = np.random.default_rng(0)
    mean = np.array([0.0, -0.6, 0.0, 0.1, 0.0, 1.0])
    noise = generator.normal(0, 0.3, (6, count))
    known = {
        "images": pl.DataFrame({"id": [f"i{n}" for n in range(count)], "label": [n % 2 for n in range(count)]}),
        "baseline": {"logit_diff": 4.0},
        "provenance": {"seeds": {"seed": 0}},
    }
    return Result.from_values(
        "head_ablation",
        "Heads",
        HEADS,
        {
            "logit_diff": mean[:, None] + noise,
            "prob": (mean[:, None] / 10 + noise / 50).astype(np.float32),
        },
        **{**known, **more},
    )


def same(first: Result, second: Result) -> bool:
    return (
        first.table.equals(second.table)
        and list(first.values) == list(second.values)
        and all(
            np.array_equal(first.values[m], second.values[m], equal_nan=True)
            and first.values[m].dtype == second.values[m].dtype
            for m in first.values
        )
        and (first.images is second.images is None or first.images.equals(second.images))
        and (first.kind, first.title, first.provenance, first.baseline)
        == (second.kind, second.title, second.provenance, second.baseline)
    )


def test_table_by_hand():
    found = Result.from_values(
        "k",
        "t",
        [{"layer": 0, "head": 1}, {"layer": 2, "head": 0}],
        {"m": np.array([[1.0, 3.0, np.nan], [0.0, 0.0, 0.0]])},
    )
    assert found.table.columns == [
        "unit",
        "layer",
        "head",
        "metric",
        "effect",
        "low",
        "high",
        "n",
        "excluded",
        "p",
        "significant",
    ]
    assert found.table.schema["layer"] == found.table.schema["head"] == pl.Int32
    assert found.table["unit"].to_list() == ["L0H1", "L2H0"]
    assert found.table.select("effect", "n", "excluded", "significant").rows() == [
        (2.0, 2, 1, False),
        (0.0, 3, 0, False),
    ]
    assert found.table.row(1, named=True)["low"] == found.table.row(1, named=True)["high"] == 0.0


def test_intervals_and_correction_are_those_of_stats_per_metric():
    found = heads()
    for metric in ("logit_diff", "prob"):
        estimate = stats.bootstrap(found.values[metric])
        rows = found.rows(metric)
        assert rows["low"].to_list() == estimate.low.tolist() and rows["p"].to_list() == estimate.p.tolist()
        assert rows["significant"].to_list() == (stats.benjamini_hochberg(estimate.p) <= 0.05).tolist()
    assert found.rows()["significant"].to_list()[1] and found.rows()["significant"].to_list()[5]
    assert found.metrics == list(found.values) == ["logit_diff", "prob"]
    assert found.values["prob"].dtype == np.float32


def test_one_image_has_an_effect_but_no_interval():
    row = Result.from_values("k", "t", [{"layer": 0}], {"m": np.array([[2.0]])}).top(1).row(0, named=True)
    assert (row["effect"], row["low"], row["high"], row["p"], row["significant"]) == (2.0, None, None, None, False)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ({"layer": 3, "head": 1}, "L3H1"),
        ({"layer": 2, "part": "mlp"}, "L2 mlp"),
        ({"layer": 1, "neuron": 17}, "L1 neuron 17"),
        ({"layer": 2, "token": 5}, "L2 token 5"),
        ({"token": 0}, "token 0"),
        ({"layer": 0, "head": 0, "token": 0}, "L0H0 token 0"),
    ],
)
def test_unit_names(place, name):
    assert unit_name(**place) == name


def test_top():
    found = heads()
    assert found.top(2)["unit"].to_list()[0] == "L1H2"
    assert found.top(1, by="size", metric="prob")["unit"].to_list() == ["L1H2"]
    assert found.top(2, by="size")["unit"].to_list() == ["L1H2", "L0H1"]
    assert found.top(99).height == 6
    assert found.top(6, by="p")["p"].is_sorted()
    assert found.top(6, by="low")["low"].is_sorted(descending=True)


def test_top_keeps_the_order_of_ties():
    found = Result.from_values("k", "t", [{"unit": name, "layer": 0} for name in "cab"], {"m": np.ones((3, 4))})
    assert found.top(3)["unit"].to_list() == ["c", "a", "b"]


def test_cube_index_is_the_number_itself():
    units = [{"layer": 2, "head": 1}, {"layer": 0, "head": 3}]
    found = Result.from_values("k", "t", units, {"m": np.array([[1.0, 1.0], [2.0, 2.0]])})
    cube = found.cube("layer", "head")
    assert cube.shape == (3, 4) and cube[2, 1] == 1 and cube[0, 3] == 2 and np.isnan(cube).sum() == 10
    assert found.cube("head", "layer", value="n").T[2, 1] == 2
    assert heads().cube("unit", metric="prob").tolist() == heads().rows("prob")["effect"].to_list()
    assert heads().cube("layer", "head", value="significant")[1, 2] == 1


def test_cube_of_units_that_coincide_is_refused():
    with pytest.raises(ShapeMismatch, match=r"\['layer'\] do not tell 'L0H0' and 'L0H1' apart"):
        heads().cube("layer")


def test_xarray(monkeypatch):
    class DataArray:
        def __init__(self, array, *, dims, coords, name, attrs):
            assert array.shape == tuple(len(coords[axis]) for axis in dims)
            self.array, self.dims, self.coords, self.name, self.attrs = array, dims, coords, name, attrs

    monkeypatch.setitem(sys.modules, "xarray", types.SimpleNamespace(DataArray=DataArray))
    found = heads().to_xarray("layer", "head", metric="prob")
    assert found.dims == ("layer", "head") and found.coords == {"layer": [0, 1], "head": [0, 1, 2]}
    assert found.attrs["metric"] == "prob" and found.name == "effect"
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(MissingPackage, match=r"mechvis\[cube\]"):
        heads().to_xarray("layer", "head")


TABLE = pl.DataFrame(
    {
        "unit": ["a", "b"],
        "layer": [0, 1],
        "metric": ["m", "m"],
        "effect": [0.1, 0.2],
        "low": [0.0, 0.1],
        "high": [0.2, 0.3],
        "n": [3, 3],
        "p": [0.1, 0.2],
        "significant": [False, True],
    }
)
IMAGES = pl.DataFrame({"id": ["x", "y", "z"]})


def direct(**change) -> Result:
    return Result(
        **{"kind": "k", "title": "t", "table": TABLE, "values": {"m": np.zeros((2, 3))}, "images": IMAGES, **change}
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: direct(table=TABLE.drop("p", "n")), ShapeMismatch, r"lacks the columns \['n', 'p'\]"),
        (lambda: direct(table=TABLE.head(0)), ShapeMismatch, "no rows"),
        (lambda: direct(table=TABLE.with_columns(pl.lit("x").alias("n"))), ShapeMismatch, "'n' holds String"),
        (lambda: direct(table=TABLE.with_columns(pl.lit(np.nan).alias("effect"))), NotFinite, "2 effects are NaN"),
        (lambda: direct(table=TABLE.with_columns(pl.lit(None).alias("effect"))), NotFinite, "the first is 'm' of 'a'"),
        (lambda: direct(table=TABLE.with_columns(pl.lit(np.inf).alias("effect"))), NotFinite, "infinite"),
        (lambda: direct(table=TABLE.with_columns(pl.lit(None).alias("n"))), ShapeMismatch, "'n' is empty in 2 rows"),
        (
            lambda: direct(table=TABLE.with_columns(pl.lit("a").alias("unit"))),
            ShapeMismatch,
            "more than one row for 'm' of",
        ),
        (lambda: direct(values={"m": np.zeros((3, 3))}), ShapeMismatch, r"shape \[3, 3\]; the table has 2 units"),
        (lambda: direct(values={"m": np.zeros(2)}), ShapeMismatch, r"shape \[2\]"),
        (lambda: direct(values={"m": np.zeros((2, 4))}), ShapeMismatch, "for 4 images; 3 are listed"),
        (lambda: direct(values={"m": np.full((2, 3), np.inf)}), NotFinite, "6 infinite"),
        (lambda: direct(values={"m": np.full((2, 3), "x")}), ShapeMismatch, "should be float"),
        (lambda: direct(values={"other": np.zeros((2, 3))}), ShapeMismatch, "no row of that metric"),
        (lambda: direct(values={"__metadata__": np.zeros((2, 3))}), BadData, "__metadata__"),
        (lambda: direct(images=IMAGES.rename({"id": "name"})), ShapeMismatch, "column 'id'"),
        (
            lambda: direct(images=pl.DataFrame({"id": ["x", "x", "y"]})),
            ShapeMismatch,
            "ids repeat: 3 images, 2 different",
        ),
        (lambda: direct(baseline={"m": np.nan}), NotFinite, "baseline of 'm'"),
        (lambda: direct(provenance={"x": object()}), ShapeMismatch, r"provenance\['x'\] is a object"),
        (lambda: Result.from_values("k", "t", [], {"m": np.zeros((0, 3))}), ShapeMismatch, "at least one unit"),
        (lambda: Result.from_values("k", "t", HEADS, {}), ShapeMismatch, "at least one metric"),
        (
            lambda: Result.from_values("k", "t", HEADS, {"m": np.zeros((5, 3))}),
            ShapeMismatch,
            r"6 units need \[6, images\]",
        ),
        (lambda: Result.from_values("k", "t", HEADS, {"m": np.zeros(6)}), ShapeMismatch, r"shape \[6\]"),
        (lambda: Result.from_values("k", "t", [{}], {"m": np.zeros((1, 3))}), ShapeMismatch, "a unit needs a name"),
        (
            lambda: Result.from_values("k", "t", [{"layer": 0}] * 2, {"m": np.zeros((2, 3))}),
            ShapeMismatch,
            "more than one",
        ),
        (
            lambda: Result.from_values("k", "t", HEADS[:1], {"m": np.full((1, 3), np.nan)}),
            NotFinite,
            "NaN on all 3 images for the unit 'L0H0'",
        ),
        (lambda: heads().top(0), OutOfRange, "k of at least 1, got 0"),
        (lambda: heads().top(3, by="efect"), UnknownName, "Nearest: effect"),
        (lambda: heads().top(3, by="unit"), UnknownName, "column to sort by 'unit'"),
        (lambda: heads().top(3, metric="logit"), UnknownName, "Nearest: logit_diff"),
        (lambda: heads().cube(), ShapeMismatch, "at least one axis"),
        (lambda: heads().cube("layer", "heads"), UnknownName, "Nearest: head"),
        (lambda: heads().cube("layer", "head", value="unit"), UnknownName, "unknown column 'unit'"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_values_cannot_be_changed_and_the_callers_stay_free():
    mine = np.zeros((2, 3))
    found = direct(values={"m": mine})
    with pytest.raises(ValueError, match="read-only"):
        found.values["m"][0, 0] = 1
    mine[0, 0] = 1
    with pytest.raises(AttributeError):
        found.kind = "other"


@pytest.mark.parametrize(
    "result",
    [
        heads(),
        heads(images=None),
        direct(values={}),
        Result.from_values(
            "neurons", "<b>é", [{"layer": 1, "neuron": 17, "family": None}], {"a/b c": np.array([[np.nan, 1.0]])}
        ),
    ],
    ids=["heads", "no image table", "no values", "odd names"],
)
def test_save_and_load(tmp_path, result):
    assert result.save(tmp_path / "r") == tmp_path / "r"
    assert same(Result.load(tmp_path / "r"), result)
    # Again over itself, and over another result.
    result.save(tmp_path / "r")
    assert same(Result.load(tmp_path / "r"), result)


def test_saving_over_another_result_leaves_nothing_of_it(tmp_path):
    heads().save(tmp_path)
    other = direct(values={}, images=None)
    other.save(tmp_path)
    assert same(Result.load(tmp_path), other)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["result.json", "table.parquet", "values.safetensors"]


@pytest.mark.parametrize("name", ["table.parquet", "images.parquet", "values.safetensors", "result.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "delete"])
def test_harm_to_any_file_is_found_and_named(tmp_path, name, harm):
    heads().save(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
    if harm == "delete":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes({"flip": data, "truncate": data[:-7], "empty": b""}[harm])
    with pytest.raises(StoreCorrupt, match=name.replace(".", r"\.")):
        Result.load(tmp_path)


def rewrite(folder, change) -> None:
    """Change the manifest as a writer would who knows how checksums are made."""
    manifest = json.loads((folder / "result.json").read_text())
    manifest.pop("checksum")
    change(manifest)
    manifest["checksum"] = files.checksum(files.canonical_json(manifest).encode())
    files.write_json(folder / "result.json", manifest)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m.update(version=2), ResultMismatch, "format version 2; this mechvis reads up to 1. Upgrade"),
        (lambda m: m.update(version="1"), StoreCorrupt, "format version '1', which is none"),
        (lambda m: m.update(format="other"), ResultMismatch, "its format is 'other'"),
        (lambda m: m.pop("kind"), StoreCorrupt, r"result\.json does not hold what a result needs"),
        (lambda m: m.update(baseline=[1]), StoreCorrupt, "does not hold"),
        (lambda m: m["files"].pop("table.parquet"), StoreCorrupt, r"table\.parquet is not listed"),
    ],
)
def test_manifests_that_are_not_ours(tmp_path, change, error, message):
    heads().save(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(error, match=message):
        Result.load(tmp_path)


def test_files_of_a_forger_are_refused(tmp_path):
    heads().save(tmp_path)
    for name in ("table.parquet", "values.safetensors", "images.parquet"):
        kept = (tmp_path / name).read_bytes()
        for junk in (b"junk", b"PAR1" + b"\xff" * 40 + b"PAR1", b"\xff" * 8 + b"{}"):
            (tmp_path / name).write_bytes(junk)
            rewrite(tmp_path, lambda m, n=name, j=junk: m["files"].update({n: {"sha256": files.checksum(j)}}))
            with pytest.raises(StoreCorrupt, match=name.replace(".", r"\.")):
                Result.load(tmp_path)
        (tmp_path / name).write_bytes(kept)
        rewrite(tmp_path, lambda m, n=name, k=kept: m["files"].update({n: {"sha256": files.checksum(k)}}))
    assert same(Result.load(tmp_path), heads())


def test_places_that_cannot_be_written_or_read(tmp_path):
    (tmp_path / "file").write_text("")
    for call in (
        lambda: heads().save(tmp_path / "file"),
        lambda: heads().report(tmp_path / "file" / "r.html"),
        lambda: heads().report(tmp_path),
    ):
        with pytest.raises(OutputNotWritable, match="cannot write"):
            call()
    with pytest.raises(StoreCorrupt, match=r"result\.json does not exist"):
        Result.load(tmp_path / "nowhere")


def test_repr_shows_the_top_n_and_interval():
    text = repr(heads())
    assert text.startswith("Result('head_ablation', 6 units x logit_diff, prob, 40 images, ")
    first = text.splitlines()[1]
    assert first.split()[0] == "L1H2" and "n=40 *" in first and "[+" in first


def test_html_repr_is_escaped():
    units = [{"unit": f"<script>alert({i})</script>", "layer": 0, "head": i} for i in range(12)]
    html = Result.from_values("<i>k", "<b>t</b>", units, {"<m>": np.ones((12, 3))})._repr_html_()
    tags = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.add(tag)

    Reader().feed(html)
    drawn = {"svg", "rect", "line"}
    assert tags == {"div", "style", "b", "code", "table", "thead", "tbody", "tr", "th", "td"} | drawn
    assert "10 of 12 units" in html and html.count("<tr>") == 11


@pytest.mark.parametrize(
    ("units", "kind"),
    [
        (HEADS, "map"),
        ([{"layer": layer, "token": token} for layer in range(2) for token in range(3)], "map"),
        ([{"unit": f"L{i} {g}", "layer": i, "group": g} for i in range(2) for g in ("object", "rest", "CLS")], "map"),
        ([{"layer": layer, "neuron": n} for layer in range(2) for n in range(3)], "bars"),
        ([{"unit": name, "layer": 0} for name in "abcdef"], "bars"),
        ([*HEADS[:5], {"unit": "L0 mlp", "layer": 0}], "bars"),
    ],
)
def test_plot_chooses_the_figure(units, kind):
    figure = Result.from_values("k", "title", units, {"m": np.random.default_rng(0).normal(size=(6, 9))}).plot()
    axes = figure.axes[0]
    assert bool(axes.images) == (kind == "map")
    if kind == "bars":
        assert len(axes.get_yticklabels()) == 6
    figure.draw_without_rendering()
    assert figure.texts[-1].get_text().endswith("n = 9 images")


def test_plot_of_many_units_shows_the_largest_and_says_so():
    values = np.random.default_rng(0).normal(size=(100, 9))
    values[77] -= 9
    figure = Result.from_values("k", "title", [{"layer": 0, "neuron": n} for n in range(100)], {"m": values}).plot()
    assert figure.get_suptitle() == "title, the 20 largest of 100"
    assert figure.axes[0].get_yticklabels()[0].get_text() == "L0 neuron 77"


def test_report_says_what_was_found_and_how_far_to_believe_it(tmp_path):
    page = heads().report(tmp_path / "r" / "heads.html").read_text(encoding="utf-8")
    for text in (
        "What was found",
        "How far to believe it",
        "ablating it lowers logit_diff",
        "Some effects rest on 40",
        "of the clean 4 ",
        "Benjamini-Hochberg",
        "says nothing about other images",
    ):
        assert text in page
    excluded = heads().values["prob"].copy()
    excluded[:, :4] = np.nan
    page = Result.from_values("k", "t", HEADS, {"m": excluded}).report(tmp_path / "x.html").read_text(encoding="utf-8")
    assert "Unreliable: up to 10.0% of the images" in page
    nothing = Result.from_values("k", "t", HEADS, {"m": np.zeros((6, 200))})
    page = nothing.report(tmp_path / "n.html").read_text(encoding="utf-8")
    assert "No unit survives" in page and "Some effects rest" not in page


def test_studies_may_add_columns_and_rows_without_values(tmp_path):
    base = heads()
    extra = base.rows("prob").with_columns(pl.lit("bir").alias("metric"), pl.lit(0.5).alias("effect"))
    table = pl.concat([base.table, extra]).with_columns(pl.lit(1.5).alias("guarded"))
    found = replace(base, table=table)
    assert found.metrics == ["logit_diff", "prob", "bir"] and found.top(1, by="guarded").height == 1
    found.save(tmp_path)
    assert same(Result.load(tmp_path), found)


class Model:
    name = "tiny"

    def fingerprint(self):
        return "abc"


class Data:
    name, fingerprint = "scenes", "def"

    def __len__(self):
        return 5


def test_provenance():
    found = provenance(Model(), Data(), seed=3, command="mechvis sweep", timings={"sweep": np.float64(1.5)})
    assert found["model"] == {"name": "tiny", "fingerprint": "abc"}
    assert found["data"] == {"name": "scenes", "fingerprint": "def", "n": 5}
    assert found["seeds"] == {"seed": 3} and found["command"] == "mechvis sweep" and found["timings"] == {"sweep": 1.5}
    assert set(found["versions"]) == {"python", "mechvis", "torch", "transformers", "numpy"}
    assert found["time"].endswith("+00:00")
    text = json.dumps(found)
    assert os.uname().nodename not in text or len(os.uname().nodename) < 4
    assert str(Path.cwd()) not in text
    assert provenance()["model"] == {} and provenance(seed={"a": 1})["seeds"] == {"a": 1}
    with pytest.raises(BadData, match=r"\['time'\] are filled in"):
        provenance(time="now")
    with pytest.raises(NotFinite, match=r"provenance\['loss'\] is nan"):
        provenance(loss=float("nan"))


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["/opt/x/bin/mechvis", "sweep", "a b"], "mechvis sweep 'a b'"),
        (["/x/mechvis/cli.py", "sites"], "mechvis sites"),
        (["study.py", "--k", "$3"], "python study.py --k '$3'"),
        ([""], ""),
        (["-c"], ""),
    ],
)
def test_command_line(monkeypatch, argv, line):
    monkeypatch.setattr(sys, "argv", argv)
    assert command_line() == line


def test_import_is_light():
    heavy = "{'torch', 'matplotlib', 'jinja2', 'scipy', 'xarray', 'transformers', 'safetensors', 'PIL'}"
    code = (
        f"import sys, mechvis.results, mechvis.provenance, mechvis.plots, mechvis.report; "
        f"found = {heavy} & set(sys.modules); sys.exit(str(found) if found else 0)"
    )
    # The package itself may import torch; what this module adds is looked at alone.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or done.stderr.strip() == "{'torch'}", done.stderr
