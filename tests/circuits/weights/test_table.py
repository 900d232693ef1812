"""The table of numbers off the weights: what it refuses, how it is written, and the file of format version 1."""

import json
from pathlib import Path

import polars as pl
import pytest

from circuits.weights import WeightTable, composition, load_weights
from mechvis import testing
from mechvis.errors import OutOfRange, ResultMismatch, ShapeMismatch, StoreCorrupt, UnknownName
from mechvis.models.load import wrap

V1 = Path(__file__).with_name("v1")


def table():
    return WeightTable(
        kind="composition",
        title="Two pairs",
        table=pl.DataFrame({"unit": ["a", "b", "c"], "score": [0.5, None, 0.75], "p": [0.1, None, 0.01]}),
        words={"unit": "pair", "score": "a share", "p": "chance"},
        provenance={"seeds": {"seed": 3}},
    )


def test_top_sorts_and_filters():
    assert table().top(2)["unit"].to_list() == ["c", "a"]
    assert table().top(1, by="p")["unit"].to_list() == ["c"]
    assert table().top(5, unit="a").height == 1
    with pytest.raises(OutOfRange, match="top needs k of at least 1"):
        table().top(0)
    with pytest.raises(UnknownName, match="unknown column to sort by 'unit'"):
        table().top(1, by="unit")
    with pytest.raises(UnknownName, match="unknown column 'kind'"):
        table().top(1, kind="q")


def test_a_table_says_what_its_columns_hold():
    with pytest.raises(ShapeMismatch, match=r"nothing says what the columns \['score'\] hold"):
        WeightTable(kind="x", title="X", table=pl.DataFrame({"unit": ["a"], "score": [1.0]}), words={"unit": "u"})
    with pytest.raises(ShapeMismatch, match="has no rows"):
        WeightTable(kind="x", title="X", table=pl.DataFrame({"unit": []}), words={"unit": "u"})
    with pytest.raises(ShapeMismatch, match="the first column is 'unit', got 'score'"):
        WeightTable(kind="x", title="X", table=pl.DataFrame({"score": [1.0]}), words={"score": "u"})


def test_saved_and_loaded(tmp_path):
    model = wrap(testing.rand_vit(), preprocess=testing.tiny_preprocess())
    found = composition(model, kinds="v")
    loaded = load_weights(found.save(tmp_path / "weights"))
    assert loaded.table.equals(found.table) and loaded.words == found.words
    assert (loaded.kind, loaded.title, loaded.provenance) == (found.kind, found.title, found.provenance)
    assert loaded.provenance["composition"] == {"kinds": ["v"], "layers": [0, 1, 2], "folded": False}
    page = found.report(tmp_path / "report.html").read_text()
    assert "These numbers come from weights alone" in page and "L0H0-&gt;L1H0.v" in page


def test_format_version_1_is_read_and_written_as_then(tmp_path):
    """`v1/` was written by the first version of the format."""
    old = load_weights(V1)
    assert old.table.equals(table().table) and old.words == table().words and old.provenance == table().provenance
    new = table().save(tmp_path)
    assert json.loads((new / "weights.json").read_text()).keys() == json.loads((V1 / "weights.json").read_text()).keys()


def test_damaged_and_foreign_folders(tmp_path):
    folder = table().save(tmp_path / "one")
    data = (folder / "table.parquet").read_bytes()
    (folder / "table.parquet").write_bytes(data[:-7])
    with pytest.raises(StoreCorrupt, match="is damaged"):
        load_weights(folder)
    with pytest.raises(StoreCorrupt, match="does not exist"):
        load_weights(tmp_path / "nowhere")
    later = json.loads((V1 / "weights.json").read_text())
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "weights.json").write_text(json.dumps({**later, "version": 2}))
    with pytest.raises(ResultMismatch, match="was written in format version 2"):
        load_weights(tmp_path / "later")
    (tmp_path / "later" / "weights.json").write_text(json.dumps({**later, "format": "mechvis.result"}))
    with pytest.raises(ResultMismatch, match=r"not hold a table of weights: its format is 'mechvis\.result'"):
        load_weights(tmp_path / "later")
