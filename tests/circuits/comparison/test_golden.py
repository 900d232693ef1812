"""Comparisons as the first version of the format wrote them (`golden/`), read by today's reader."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from circuits.comparison import Comparison, load_comparison
from mechvis.errors import ResultMismatch

GOLDEN = Path(__file__).parent / "golden"


def models():
    """Two models, with their sums by layer, and a correlation."""
    table = pl.DataFrame({"model": ["m0", "m1"], "ddb_out": [0.5, 0.25], "ddb_out_bias": [0.0, 0.125], "n": [4, 4]})
    correlations = pl.DataFrame(
        {"score": ["ddb_out"], "statistic": ["spearman"], "value": [1.0], "low": [None], "high": [None], "n": [2]},
        schema_overrides={"low": pl.Float64, "high": pl.Float64},
    )
    layers = np.arange(18.0).reshape(2, 3, 3)
    return Comparison(
        kind="models",
        title="golden models",
        table=table,
        correlations=correlations,
        arrays={"layers/m0": layers, "layers/m1": layers + 1},
        provenance={"n_heads": {"m0": [1, 1], "m1": [1, 1]}, "seeds": {"seed": 0}},
    )


def data():
    """One set against the reference; no accuracies."""
    table = pl.DataFrame({"set": ["reference", "monday"], "css": [0.0, 0.5], "alarm": [False, True]})
    arrays = {"weights/monday": np.array([[0.5, 1.5]], dtype=np.float32), "floor/4": np.array([0.125, 0.25])}
    settings = {"settings": {"draws": 2, "threshold": None}}
    return Comparison(kind="data", title="golden data", table=table, arrays=arrays, provenance=settings)


MADE = {"models-v1": models, "data-v1": data}


@pytest.mark.parametrize("name", list(MADE))
def test_version_1_is_read_as_it_was_written(name):
    found, made = load_comparison(GOLDEN / name), MADE[name]()
    assert (found.kind, found.title, found.provenance) == (made.kind, made.title, made.provenance)
    assert found.table.equals(made.table)
    assert (found.correlations is None) == (made.correlations is None)
    assert found.correlations is None or found.correlations.equals(made.correlations)
    assert found.arrays.keys() == made.arrays.keys()
    for key, array in made.arrays.items():
        np.testing.assert_array_equal(found.arrays[key], array)
        assert found.arrays[key].dtype == array.dtype


def test_what_version_1_says():
    compared = load_comparison(GOLDEN / "models-v1")
    assert compared.row("m1")["ddb_out"] == 0.25 and compared.correlation("ddb_out")["value"] == 1.0
    assert compared.layers("m1").graph.n_heads == (1, 1)
    np.testing.assert_array_equal(compared.layers("m1").per_image[0, 0], [1.0, 2.0, 3.0])
    assert load_comparison(GOLDEN / "data-v1").row("monday")["alarm"] is True


@pytest.mark.parametrize("name", list(MADE))
def test_version_1_is_written_as_then(name, tmp_path):
    new, old = MADE[name]().save(tmp_path), GOLDEN / name
    assert {path.name for path in new.iterdir()} == {path.name for path in old.iterdir()}
    keys = [json.loads((folder / "comparison.json").read_text()).keys() for folder in (new, old)]
    assert keys[0] == keys[1]


def test_a_later_version_is_refused(tmp_path):
    manifest = json.loads((GOLDEN / "data-v1" / "comparison.json").read_text())
    (tmp_path / "comparison.json").write_text(json.dumps({**manifest, "version": 2}))
    with pytest.raises(ResultMismatch, match="was written in format version 2; this mechvis reads up to 1"):
        Comparison.load(tmp_path)
