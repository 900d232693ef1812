"""What read-outs return: kept, read back as it was, refused where it cannot be right, shown and reported."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mechvis import files
from mechvis.errors import (
    BadData,
    NotFinite,
    OutputNotWritable,
    ResultMismatch,
    ShapeMismatch,
    StoreCorrupt,
    UnknownName,
)
from mechvis.record import Record, finite, load_record

V1 = Path(__file__).parent / "golden" / "record-v1"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Reading(Record):
    KIND = "reading_in_tests"

    def first(self) -> float:
        return self.table["accuracy"][0]


def made(of=Record, **changes):
    """A record with one of everything: text, numbers, nothing, lists; arrays of three types; nested facts."""
    layers = pl.DataFrame({"layer": [0, 1, None], "accuracy": [0.5, 0.75, None], "top": [["a", "b"], [], ["c"]]})
    words = pl.DataFrame({"name": ["é & <b>", "plain"], "share": [0.25, 1.0]})
    about = {
        "title": "Probes & <layers>",
        "tables": {"layers": layers, "by_name": words},
        "arrays": {"maps/0": np.arange(6.0).reshape(2, 3), "which": np.array([True, False]), "n": np.arange(3)},
        "facts": {"n": 8, "share": 0.5, "settings": {"k": [1, 2], "name": None}, "small": np.float32(0.25)},
        "words": {"accuracy": "share that is right"},
        "caveats": ("Eight images only.",),
        "provenance": {"model": {"name": "golden"}, "seeds": {"seed": 0}},
    }
    if of is Record:
        about["kind"] = "probe"
    return of(**{**about, **changes})


def assert_same(found, expected):
    assert (found.kind, found.title, found.facts, found.words, found.caveats, found.provenance) == (
        expected.kind, expected.title, expected.facts, expected.words, expected.caveats, expected.provenance,
    )  # fmt: skip
    assert list(found.tables) == list(expected.tables) and found.arrays.keys() == expected.arrays.keys()
    for name, table in expected.tables.items():
        assert found.tables[name].equals(table) and found.tables[name].schema == table.schema
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
        assert found.arrays[name].dtype == array.dtype


def test_format_version_1_is_read_and_written_as_then(tmp_path):
    """`golden/record-v1` was written by the first version of the format."""
    assert_same(load_record(V1), made())
    new = made().save(tmp_path)
    assert {path.name for path in new.iterdir()} == {path.name for path in V1.iterdir()}
    assert json.loads((new / "record.json").read_text()).keys() == json.loads((V1 / "record.json").read_text()).keys()


@pytest.mark.parametrize("kind", [Record, Reading])
def test_saved_and_loaded(kind, tmp_path):
    record = made(kind)
    folder = record.save(tmp_path / "deep" / "folder")
    again = kind.load(folder)
    assert type(again) is kind and repr(again) == repr(record)
    assert_same(again, record)
    assert_same(load_record(str(folder)), record)
    if kind is Reading:
        assert again.first() == 0.5 and again.kind == "reading_in_tests"


def test_without_arrays_facts_or_words(tmp_path):
    bare = Record(kind="probe", title="Bare", tables={"t": pl.DataFrame({"x": pl.Series([], dtype=pl.Float64)})})
    assert_same(load_record(bare.save(tmp_path)), bare)


def test_saving_again_replaces_all_of_it(tmp_path):
    made().save(tmp_path)
    fewer = made(tables={"layers": pl.DataFrame({"layer": [7]})}, arrays={})
    assert_same(load_record(fewer.save(tmp_path)), fewer)


def test_slices_of_arrays_are_written_as_seen(tmp_path):
    """A transposed or strided view is not contiguous; its bytes in memory are not its content in order."""
    whole = np.arange(12.0).reshape(3, 4)
    record = made(arrays={"turned": whole.T, "every second": whole[:, ::2]})
    found = load_record(record.save(tmp_path)).arrays
    np.testing.assert_array_equal(found["turned"], whole.T)
    np.testing.assert_array_equal(found["every second"], whole[:, ::2])


def test_another_kind_is_refused(tmp_path):
    folder = made().save(tmp_path)
    with pytest.raises(ResultMismatch, match="holds a record of kind 'probe', not 'reading_in_tests'"):
        Reading.load(folder)
    with pytest.raises(BadData, match="a Reading is of kind 'reading_in_tests', got 'probe'"):
        made(Reading, kind="probe")
    with pytest.raises(BadData, match="a Record is of kind 'its own', got ''"):
        Record(title="No kind", tables={"t": pl.DataFrame({"x": [1]})})


@pytest.mark.parametrize("name", ["layers.parquet", "by_name.parquet", "arrays.safetensors", "record.json"])
def test_a_changed_or_missing_file_is_noticed(name, tmp_path):
    folder = made().save(tmp_path)
    content = (folder / name).read_bytes()
    place = content.index(b"Probes") if name == "record.json" else len(content) // 2
    (folder / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(StoreCorrupt, match=r"checksum does not fit"):
        load_record(folder)
    (folder / name).unlink()
    with pytest.raises(StoreCorrupt, match=f"{name} (is missing|does not exist)"):
        load_record(folder)


@pytest.mark.parametrize(
    "change,error,words",
    [
        ({"format": "mechvis.result"}, ResultMismatch, "does not hold a record: its format is 'mechvis.result'"),
        ({"version": 2}, ResultMismatch, "was written in format version 2; this mechvis reads up to 1"),
        ({"version": "1"}, StoreCorrupt, "has the format version '1', which is none"),
        ({"tables": ["other"]}, StoreCorrupt, "does not hold what its manifest says"),
        ({"tables": []}, StoreCorrupt, "does not hold what its manifest says: the record .* has no table"),
        ({"caveats": 3}, StoreCorrupt, "does not hold what its manifest says"),
    ],
)
def test_manifests_that_contradict_their_files(change, error, words, tmp_path):
    """With right checksums, as a hostile or foreign writer would make them."""
    folder = made().save(tmp_path / "a")
    manifest = json.loads((folder / "record.json").read_text())
    content = {name: (folder / name).read_bytes() for name in manifest["files"]}
    plain = {name: value for name, value in manifest.items() if name not in ("files", "checksum")}
    files.write_together(tmp_path / "b", content, "record.json", {**plain, **change})
    with pytest.raises(error, match=words):
        load_record(tmp_path / "b")


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "", "UP", "con", "a b", "x.new", "x" * 80, "é", "..", "layers-" + "0" * 16]
)
def test_hostile_table_names_are_refused(name, tmp_path):
    with pytest.raises(BadData, match="becomes a file: use lower-case letters"):
        made(tables={name: pl.DataFrame({"x": [1]})})


@pytest.mark.parametrize("name", ["../up", "é <script>", "a b", ""])
def test_any_name_of_an_array_comes_back(name, tmp_path):
    """Names of arrays are keys inside one file, never file names."""
    record = made(arrays={name: np.ones(2)})
    assert list(load_record(record.save(tmp_path / "r")).arrays) == [name]
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), [1.0, float("nan")]])
@pytest.mark.parametrize("where", ["facts", "provenance"])
def test_facts_are_finite(value, where):
    with pytest.raises(NotFinite, match=rf"{where}\['bad'\].* is (nan|inf), which JSON cannot hold"):
        made(**{where: {"bad": value}})


@pytest.mark.parametrize(
    "changes,error,words",
    [
        ({"tables": {}}, BadData, "has no table"),
        ({"arrays": {"a": [1.0]}}, ShapeMismatch, "the array 'a' is list, not real numbers"),
        ({"arrays": {"a": np.array([{}])}}, ShapeMismatch, "the array 'a' is object, not real numbers"),
        ({"facts": {1: 2}}, ShapeMismatch, "has the key 1 of type int"),
        ({"facts": {"a": object()}}, ShapeMismatch, "is a object, which JSON cannot hold"),
    ],
)
def test_what_cannot_be_kept_is_refused_at_once(changes, error, words):
    with pytest.raises(error, match=words):
        made(**changes)


def test_nan_in_tables_and_arrays_is_kept(tmp_path):
    """A value that is not defined is data there; methods check their own with `finite`."""
    record = made(arrays={"a": np.array([np.nan, np.inf])}, tables={"t": pl.DataFrame({"x": [float("nan"), 1.0]})})
    found = load_record(record.save(tmp_path))
    assert np.isnan(found.arrays["a"][0]) and np.isnan(found.table["x"][0])


def test_finite():
    array = np.arange(4.0).reshape(2, 2)
    assert finite("weights", array) is array
    array[1, 0] = np.inf
    with pytest.raises(NotFinite, match=r"weights holds 1 NaN or Inf values, the first at \[1, 0\]"):
        finite("weights", array)


def test_pick():
    record = made(
        tables={"t": pl.DataFrame({"layer": [0, 0, 1], "token": ["cls", "mean", "cls"], "x": [1.0, 2.0, 3.0]})}
    )
    assert record.pick(layer=0, token="mean") == {"layer": 0, "token": "mean", "x": 2.0}
    with pytest.raises(BadData, match=r"2 rows of .* have \{'layer': 0\}; exactly one"):
        record.pick(layer=0)
    with pytest.raises(BadData, match="0 rows of"):
        record.pick(layer=9)
    with pytest.raises(UnknownName, match=r"unknown column 'tokens'\. Nearest: token"):
        record.pick(tokens="cls")


def test_shown():
    text = repr(made())
    assert text.startswith("Probes & <layers>\n") and "a, b" in text
    assert "also: by_name (2 rows)" in text and text.endswith("- Eight images only.")
    page = made(caveats=("a < b",))._repr_html_()
    assert "Probes &amp; &lt;layers&gt;" in page and "<li>a &lt; b</li>" in page
    long = made(tables={"t": pl.DataFrame({"x": range(500)})})
    assert re.search(r"\.\.\. 4\d\d more rows", repr(long)) and len(repr(long).splitlines()) < 40


def test_reported(tmp_path):
    page = made().report(tmp_path / "report.html").read_text(encoding="utf-8")
    for part in ("What was found", "How far to believe it", "Eight images only.", "What the words mean", "by name"):
        assert part in page, part
    assert "probe · golden" in page and "<layers>" not in page and "é &amp; &lt;b&gt;" in page
    assert "<script src" not in page and "http://" not in page.replace("http://www.w3.org", "")
    bare = made(caveats=(), facts={}, words={}, provenance={})
    assert "probe · a model" in bare.report(tmp_path / "bare.html").read_text(encoding="utf-8")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputNotWritable, match="file"):
        made().save(tmp_path / "file")
    with pytest.raises(OutputNotWritable, match="file"):
        made().report(tmp_path / "file" / "report.html")


def test_a_record_is_not_changed_in_place():
    record = made()
    with pytest.raises(AttributeError):
        record.title = "Other"
    assert replace(record, title="Other").title == "Other" and record.title != "Other"


@pytest.mark.parametrize(
    ("name", "array", "error", "said"),
    [
        ("__metadata__", np.zeros(2), BadData, "no name for an array"),
        ("\ud800", np.zeros(2), BadData, "no name for an array"),
        ("x", np.array(["a"]), ShapeMismatch, "not real numbers"),
        ("x", np.array([1j]), ShapeMismatch, "complex"),
    ],
)
def test_arrays_that_no_file_can_hold_are_refused_at_once(name, array, error, said):
    with pytest.raises(error, match=said):
        made(arrays={name: array})


def test_single_numbers_keep_their_shape(tmp_path):
    folder = made(arrays={"x": np.array(3.0), "empty": np.zeros((0, 2))}).save(tmp_path / "r")
    found = Record.load(folder).arrays
    assert found["x"].shape == () and found["empty"].shape == (0, 2)


def test_tables_of_objects_are_refused():
    with pytest.raises(BadData, match="Python objects"):
        made(tables={"t": pl.DataFrame({"x": [object()]})})


@pytest.mark.parametrize("field", ["facts", "words", "provenance"])
def test_a_manifest_with_a_hole_is_no_record(field, tmp_path):
    folder = made().save(tmp_path / "r")
    manifest = json.loads((folder / "record.json").read_text())
    manifest[field] = None
    manifest["checksum"] = files.checksum(
        files.canonical_json({k: v for k, v in manifest.items() if k != "checksum"}).encode()
    )
    (folder / "record.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreCorrupt, match="manifest says"):
        Record.load(folder)
