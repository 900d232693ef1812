"""`mechvis report`: a report of one thing, an explorer of several, and what it says when there is nothing."""

import json

import numpy as np
import polars as pl
import pytest

from mechvis import cli
from mechvis.commands import report
from mechvis.errors import BadData, ResultMismatch, StoreCorrupt
from mechvis.explorer.saved import load_circuit, load_things
from mechvis.record import Record
from mechvis.results import Result


@pytest.fixture
def folders(tmp_path):
    import circuits

    values = {"logit_diff": np.array([[1.0, 2.0, 3.0], [0.0, 0.1, -0.1]])}
    study = tmp_path / "study"
    Result.from_values("head_ablation", "Heads", [{"layer": 0, "head": 0}, {"layer": 0, "head": 1}], values).save(
        study / "heads"
    )
    Record(kind="probe", title="Probes", tables={"layers": pl.DataFrame({"layer": [0], "accuracy": [0.5]})}).save(
        study / "probes"
    )
    graph = circuits.EdgeGraph((2,))
    scores = np.full(graph.shape, np.nan)
    scores[graph.edge("L0H1->out")] = 0.5
    circuits.Circuit(graph=graph, kept=graph.mask(["embed->L0H1.v", "L0H1->out"]), scores=scores, title="small").save(
        study / "circuit"
    )
    (study / "cards").mkdir()
    card = {"object_kind": "circuit", "gates": [{"id": "G1", "status": "pass"}], "measures": []}
    (study / "cards" / "card.json").write_text(json.dumps(card))
    (study / "notes").mkdir()
    return study


def test_one_folder_is_an_ordinary_report_as_before(folders, capsys):
    report((folders / "heads",))
    assert capsys.readouterr().out == f"report: {folders / 'heads' / 'report.html'}\n"
    assert "data-graph" not in (folders / "heads" / "report.html").read_text(encoding="utf-8")


def test_a_study_and_several_folders_are_explored(folders, tmp_path, capsys):
    assert cli.main(["report", str(folders)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"explorer: {folders / 'study.html'}: 1 circuits, 1 cards, 2 reports; 0.")
    out = tmp_path / "two.html"
    assert (
        cli.main(["report", str(folders / "heads"), str(folders / "circuit"), "--out", str(out), "--title", "Two"]) == 0
    )
    assert "<title>Two</title>" in out.read_text(encoding="utf-8") and "L0H1" in out.read_text(encoding="utf-8")
    # What has no report of its own is explored also when it is alone; a card's file can be named.
    assert cli.main(["report", str(folders / "circuit")]) == 0
    assert cli.main(["report", str(folders / "cards" / "card.json"), "--out", str(out)]) == 0


def test_with_a_model_images_are_looked_at(folders, tmp_path, capsys):
    out = tmp_path / "looked.html"
    words = [
        "report",
        str(folders / "heads"),
        "--model",
        "scenes-vit",
        "--images",
        "scenes:6:3",
        "--n",
        "4",
        "--layers",
        "3",
    ]
    assert cli.main([*words, "--out", str(out), "--no-progress"]) == 0
    assert "4 images, 4 with full attention, 1 reports" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((["--model", "scenes-vit"]), "--model and --images go together"),
        (([]), "name a folder that holds"),
        ((["heads", "probes"]), "needs --out FILE"),
        ((["notes"]), "holds no saved result"),
        ((["nowhere"]), "nowhere is not a folder"),
        ((["heads", "nowhere", "--out", "x.html"]), "nowhere is not a folder"),
    ],
)
def test_what_cannot_be(folders, words, text, capsys):
    words = [str(folders / word) if not word.startswith("-") and word != "scenes-vit" else word for word in words]
    assert cli.main(["report", *words]) == 1
    assert text in capsys.readouterr().err


def test_loading(folders, tmp_path):
    assert [type(thing).__name__ for thing in load_things(folders)] == ["dict", "Graph", "Result", "Record"]
    graph = load_circuit(folders / "circuit")
    assert graph.name == "small" and [(edge.source, edge.target, edge.score) for edge in graph.edges] == [
        ("embed", "L0H1", None), ("L0H1", "out", 0.5),
    ]  # fmt: skip
    with pytest.raises(BadData, match="neither do its 0 sub-folders"):
        load_things(folders / "notes")
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(BadData, match="is no card"):
        load_things(tmp_path / "no.json")
    (folders / "circuit" / "edges.parquet").write_bytes(b"x")
    with pytest.raises(StoreCorrupt, match="is damaged"):
        load_circuit(folders / "circuit")
    (folders / "heads" / "circuit.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(ResultMismatch, match="does not hold a circuit"):
        load_circuit(folders / "heads")
    for i in range(201):
        (folders / f"more{i}").mkdir()
    with pytest.raises(BadData, match="a study has at most 200"):
        load_things(folders)
