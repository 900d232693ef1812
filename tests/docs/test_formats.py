"""Golden files of formats that have none beside their own tests: what version 1 wrote is still read, and still written.

Each folder below `golden` was written by `WRITERS` in version 1 of its format. Two things are tested: today's reader
finds in it what it was made from, and today's writer makes a manifest with the same fields. A format that changes in
either way needs a new version, and keeps its old folder here.
"""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from circuits import Circuit, EdgeGraph, Study, load_study
from circuits.drawing import export_json
from circuits.search.acdc_ledger import AcdcLedger
from mechvis import edits
from mechvis.results import Result
from probes.codes import Hierarchy

GOLDEN = Path(__file__).parent / "golden"


def result() -> Result:
    values = {"logit_diff": np.array([[1.0, 2.0, 3.0, np.nan], [0.0, -0.5, 0.25, 0.25]])}
    return Result.from_values(
        "head_ablation",
        "Golden",
        [{"layer": 0, "head": 1}, {"layer": 1, "head": 0}],
        values,
        images=pl.DataFrame({"id": ["a", "b", "c", "d"], "label": [0, 1, 0, 1]}),
        baseline={"logit_diff": 4.0},
        provenance={"seeds": {"seed": 0}},
    )


def changes() -> list[edits.Edit]:
    site = "blocks.1.attn.hook_z"
    return [
        edits.zero(site, heads=[1], rows=[0]),
        edits.scale("blocks.0.hook_resid_post", 0.5, tokens="cls"),
        edits.add("blocks.0.hook_resid_post", torch.tensor([1.0, -2.0, 0.5]), factor=2.0),
        edits.patch(site, {site: torch.arange(12.0).reshape(1, 3, 2, 2)}, tokens=torch.tensor([True, False, True])),
    ]


def hierarchy() -> Hierarchy:
    above = Hierarchy.of({"shape": ["round", "angular"], "round": ["circle"]})
    return above.placed(np.array([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0], [1.0, 3.0]]))


EDGES = {"embed->L0H1.v": 0.5, "L0H1->L1H0.q": -0.25, "L1H0->out": 2.0}


def circuit() -> Circuit:
    graph = EdgeGraph((2, 2))
    scores = sum(np.where(graph.mask([edge]), score, 0.0) for edge, score in EDGES.items())
    return Circuit.of(graph, EDGES, scores=scores, title="Golden")


def study() -> Study:
    frame = pl.DataFrame({"measure": ["BIR"], "before": [0.5], "after": [0.25], "change": [-0.25]})
    frame = frame.with_columns(low=pl.lit(-0.5), high=pl.lit(-0.1), n=pl.lit(4))
    return Study(
        scores=result(),
        true_positives=None,
        ranking=("L0H1", "L1H0"),
        recommended=("L0H1",),
        chosen=("L0H1",),
        curve=pl.DataFrame({"K": [0, 1], "BIR": [0.5, 0.25]}),
        evaluation=frame,
        controls=pl.DataFrame({"selection": ["CIGMA", "random"], "heads": ["L0H1", "L1H0"], "BIR": [0.25, 0.5]}),
        images=pl.DataFrame({"id": ["x", "y"], "answer": [0, 1]}),
        masks={"source": "given"},
        stability={"fill": 0.9},
        settings={"seed": 0},
        provenance={"seeds": {"seed": 0}},
        examples={"pictures": np.zeros((1, 2, 3, 3, 3), dtype=np.uint8)},
    )


def ledger(folder: Path) -> AcdcLedger:
    return AcdcLedger(folder, {"threshold": 0.1, "edges": 3})


WRITERS = {
    "result-v1": lambda folder: result().save(folder),
    "edits-v1": lambda folder: edits.save(changes(), folder / "edits"),
    "hierarchy-v1": lambda folder: hierarchy().save(folder),
    "graph-v1": lambda folder: export_json(circuit(), folder / "graph.json"),
    "cigma-v1": lambda folder: study().save(folder),
    "acdc-v1": lambda folder: ledger(folder).write(np.array([0.5, np.nan, -0.25]), 1.5, {"rows": 12}),
}
MANIFESTS = {
    "result-v1": "result.json",
    "edits-v1": "edits.json",
    "hierarchy-v1": "hierarchy.json",
    "graph-v1": "graph.json",
    "cigma-v1": "study.json",
    "acdc-v1": "acdc.json",
}


def fields(value: object, at: str = "") -> set[str]:
    """Addresses of all fields of a JSON document; what identifies a run (hashes, sizes) is in values, not in names."""
    if isinstance(value, dict):
        return {f"{at}/{key}" for key in value}.union(*(fields(inner, f"{at}/{key}") for key, inner in value.items()))
    if isinstance(value, list):
        return set().union(*(fields(inner, f"{at}/*") for inner in value))
    return set()


@pytest.mark.parametrize("name", WRITERS)
def test_the_writer_still_writes_this_version(name, tmp_path):
    WRITERS[name](tmp_path)
    kept, made = (json.loads((folder / MANIFESTS[name]).read_text()) for folder in (GOLDEN / name, tmp_path))
    assert fields(made) == fields(kept)
    assert (made["format"], made["version"]) == (kept["format"], kept["version"])
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*.*")) for folder in (GOLDEN / name, tmp_path)]
    assert files[0] == files[1]


def test_result_v1():
    found, made = Result.load(GOLDEN / "result-v1"), result()
    assert np.array_equal(found.values["logit_diff"], made.values["logit_diff"], equal_nan=True)
    assert found.table.columns == made.table.columns and found.table["effect"].to_list() == [2.0, 0.0]
    assert (found.kind, found.title, found.baseline) == ("head_ablation", "Golden", {"logit_diff": 4.0})
    assert found.images["id"].to_list() == ["a", "b", "c", "d"]


def test_edits_v1():
    assert edits.load(GOLDEN / "edits-v1" / "edits") == changes()


def test_hierarchy_v1():
    found, made = Hierarchy.load(GOLDEN / "hierarchy-v1"), hierarchy()
    assert (found.names, found.parents) == (made.names, made.parents)
    assert np.array_equal(found.embeddings, made.embeddings) and np.array_equal(found.centre, made.centre)


def test_graph_v1():
    kept = json.loads((GOLDEN / "graph-v1" / "graph.json").read_text())
    found = {f"{edge['source']}->{edge['target']}": edge["score"] for edge in kept["edges"]}
    assert found == {edge.partition(".")[0]: score for edge, score in EDGES.items()}
    assert [edge["input"] for edge in kept["edges"] if edge["source"] == "embed"] == ["v"]


def test_cigma_v1():
    found, made = load_study(GOLDEN / "cigma-v1"), study()
    for name in ("ranking", "recommended", "chosen", "masks", "stability", "settings"):
        assert getattr(found, name) == getattr(made, name), name
    for name in ("curve", "evaluation", "controls", "images"):
        assert getattr(found, name).equals(getattr(made, name)), name
    assert found.measure("BIR")["after"] == 0.25 and found.scores.table.height == 2 and found.true_positives is None


def test_acdc_v1():
    found = ledger(GOLDEN / "acdc-v1").read(3)
    assert np.array_equal(found.increments, [0.5, np.nan, -0.25], equal_nan=True)
    assert (found.current, found.cost) == (1.5, {"rows": 12})


def test_a_changed_field_is_seen():
    assert fields({"a": [{"b": 1}], "c": {}}) == {"/a", "/a/*/b", "/c"}
    assert fields({"a": 1}) != fields({"b": 1})


def test_no_golden_file_says_where_it_was_made():
    for path in GOLDEN.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert str(Path.home()) not in text and "/work" not in text, path
