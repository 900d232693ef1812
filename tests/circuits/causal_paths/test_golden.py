"""`golden/paths-v1` was written by the first version of the format: today's reader opens it and finds what it held."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from circuits.causal_paths import PathGraph
from mechvis.errors import ResultMismatch, UnknownName

V1 = Path(__file__).parent / "golden" / "paths-v1"


def golden():
    """What the folder was written from."""
    numbers = {
        "kl": [1.0, 0.5],
        "low": [0.75, 0.25],
        "high": [1.25, 0.75],
        "logit": [2.0, 1.0],
        "necessity": [0.5, 0.25],
    }
    return PathGraph(
        title="golden",
        target="a",
        nodes=pl.DataFrame(
            {
                "unit": ["L1N4", "L0N2"],
                "level": [0, 1],
                "kind": ["neurons", "neurons"],
                "layer": [1, 0],
                "index": [4, 2],
                "activation": [3.0, -1.5],
                **numbers,
                "n": [2, 2],
                "p": [0.01, None],
            }
        ),
        edges=pl.DataFrame(
            {
                "edge": ["L1N4->out", "L0N2->L1N4"],
                "writer": ["L1N4", "L0N2"],
                "reader": ["out", "L1N4"],
                **numbers,
                "n": [2, 2],
                "p": [None, 0.02],
                "kept": [True, False],
            }
        ),
        synergy=pl.DataFrame({"first": ["L1N4"], "second": ["L0N2"], "synergy": [-0.5]}),
        images=pl.DataFrame({"id": ["x", "y"], "answer": ["a", "a"]}),
        tested=({"candidates": 14, "measured": 9, "kept": 1}, {"candidates": 8, "measured": 8, "kept": 1}),
        faithfulness={"found": 1.0, "kept": 0.75, "top": 0.5, "full": 2.0, "empty": 0.0},
        controls={
            "random graphs": {"values": [0.0, 0.25], "p": 0.5},
            "shuffled classes": {"kept": []},
            "loud units": [],
        },
        stability={"nodes": 1.0, "edges": 0.5},
        flags=("few images",),
        settings={"q": 0.1},
        provenance={"model": {"name": "golden"}},
        values={
            "nodes/kl": np.array([[1.5, 0.5], [0.75, 0.25]]),
            "edges/kl": np.array([[1.5, 0.5], [0.75, 0.25]], dtype=np.float32),
        },
    )


def test_version_1_is_read_as_it_was_written():
    found, made = PathGraph.load(V1), golden()
    assert found.kept == ("L1N4->out",) and found.edge("L0N2->L1N4")["p"] == 0.02 and found.node("L1N4")["kl"] == 1.0
    for frame in ("nodes", "edges", "synergy", "images"):
        assert getattr(found, frame).equals(getattr(made, frame)), frame
    for word in ("title", "target", "tested", "faithfulness", "controls", "stability", "flags", "settings"):
        assert getattr(found, word) == getattr(made, word), word
    assert found.provenance == made.provenance and found.values.keys() == made.values.keys()
    for name, array in made.values.items():
        np.testing.assert_array_equal(found.values[name], array)
        assert found.values[name].dtype == array.dtype
    # The manifest sorts its keys, so only the order of facts may differ.
    assert repr(found) == repr(made) and json.loads(found.to_json()) == json.loads(made.to_json())
    with pytest.raises(UnknownName, match=r"'L9N9' is not in the graph"):
        found.node("L9N9")


def test_version_1_is_written_as_then(tmp_path):
    new = golden().save(tmp_path)
    assert {path.name for path in new.iterdir()} == {path.name for path in V1.iterdir()}
    assert json.loads((new / "paths.json").read_text()).keys() == json.loads((V1 / "paths.json").read_text()).keys()


def test_a_later_version_is_refused(tmp_path):
    manifest = json.loads((V1 / "paths.json").read_text())
    (tmp_path / "paths.json").write_text(json.dumps({**manifest, "version": 2}))
    with pytest.raises(ResultMismatch, match=r"was written in format version 2; this mechvis reads up to 1"):
        PathGraph.load(tmp_path)
