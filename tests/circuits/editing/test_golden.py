"""Edits and their card as the first version of the formats wrote them (`golden/`), read by today's readers."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from circuits.edges.base import Outputs
from circuits.edges.graph import EdgeGraph
from circuits.editing import EditCard, load_edit
from circuits.editing.edge_cut import EdgeCut
from circuits.editing.head_removal import HeadRemoval
from circuits.editing.model_edit import ModelEdit
from circuits.editing.projection import Projection
from circuits.editing.slices import Slice
from mechvis.errors import ResultMismatch
from mechvis.means import Means
from mechvis.units import head_units

GOLDEN = Path(__file__).parent / "golden"
FROM = {"model": {"name": "golden", "fingerprint": "0" * 16}}


def doubles(*shape):
    return torch.arange(1.0, 1.0 + np.prod(shape), dtype=torch.float64).reshape(shape)


def heads():
    """Folded, with means and the entries before and after."""
    per_site = {"blocks.0.attn.hook_z": doubles(3, 2, 2)}
    change = HeadRemoval(heads=tuple(head_units([(0, 1)])), mode="mean", means=Means(per_site, 5, "data", {"a", "b"}))
    weight = Slice(name="layers.0.o.weight", start=(0, 2), old=doubles(2, 2), new=torch.zeros(2, 2).double())
    bias = Slice(name="layers.0.o.bias", start=(1,), old=doubles(1), new=doubles(1) + 0.5)
    return ModelEdit(
        change=change, folded=True, slices=(weight, bias), before="b" * 16, after="a" * 16, chain=("c" * 16,),
        deviation=2.0**-50, allowed=2.0**-40, provenance=FROM,
    )  # fmt: skip


def directions():
    change = Projection(rows=torch.eye(3, dtype=torch.float64)[[2]], at="blocks.1.hook_resid_pre", tokens=(0, 2))
    return ModelEdit(
        change=change, folded=False, before="b" * 16, after="d" * 16, note="a norm couples them", provenance=FROM
    )


def edges():
    graph = EdgeGraph((1, 1))
    base = Outputs(doubles(1, 2, 3), (doubles(1, 2, 1, 3), doubles(1, 2, 1, 3)), (doubles(1, 2, 3), doubles(1, 2, 3)))
    cut = graph.mask(["L0H0->L1H0.q", "embed->out"])
    change = EdgeCut(graph=graph, cut=cut, ablation="mean_positional", base=base, ids=frozenset({"x"}))
    return ModelEdit(change=change, folded=False, before="b" * 16, after="e" * 16, provenance=FROM)


MADE = {"heads-v1": heads, "directions-v1": directions, "edges-v1": edges}


def card():
    rows = [
        ("accuracy", "all", 0.75, 0.875, 8, 0.25, None),
        ("group: rare", "group", 0.5, 1.0, 2, None, 1.0),
        ("class: a", "class", 1.0, 0.5, 4, 0.5, 1.0),
    ]
    names = ("measure", "kind", "before", "after", "n", "p", "p_holm")
    table = pl.DataFrame([dict(zip(names, row, strict=True)) for row in rows], infer_schema_length=None)
    table = table.with_columns(
        better=pl.lit("higher"),
        change=pl.col("after") - pl.col("before"),
        low=pl.Series([0.0, None, -1.0]),
        high=pl.Series([0.25, None, 0.0]),
    )
    return EditCard(
        title="L0H1 removed (mean)",
        edit={"before": "b" * 16, "after": "a" * 16, "folded": True, "note": ""},
        table=table,
        controls=pl.DataFrame({"control": ["L0H0"], "value": [0.5], "change": [-0.25]}),
        images=pl.DataFrame({"id": ["x", "y"], "label": ["a", "b"], "correct before": [1.0, 0.0]}),
        gain={"measure": "accuracy", "improvement": 0.125, "controls": 1, "control_95": -0.25, "p_control": 0.5},
        harmed=("class: a",),
        status=3,
        reasons=("class: a lose more than 0.05 of accuracy",),
        settings={"max_harm": 0.05},
        provenance=FROM,
    )


@pytest.mark.parametrize("name", list(MADE))
def test_edits_of_version_1_are_read_as_they_were_written(name):
    found, made = load_edit(GOLDEN / name), MADE[name]()
    for word in ("folded", "before", "after", "chain", "deviation", "allowed", "note", "provenance", "title"):
        assert getattr(found, word) == getattr(made, word), word
    assert found.change.kind == made.change.kind and found.change.describe() == made.change.describe()
    there, expected = found.change.tensors(), made.change.tensors()
    assert there.keys() == expected.keys() and all(torch.equal(there[key], expected[key]) for key in expected)
    assert len(found.slices) == len(made.slices)
    for part, other in zip(found.slices, made.slices, strict=True):
        assert (part.name, part.start) == (other.name, other.start)
        assert torch.equal(part.old, other.old) and torch.equal(part.new, other.new)
    assert found.change.reference_ids == made.change.reference_ids and repr(found) == repr(made)


def test_what_the_edits_of_version_1_say():
    first, second, third = (load_edit(GOLDEN / name) for name in MADE)
    assert first.n_numbers == 5 and first.change.heads == tuple(head_units([(0, 1)])) and first.change.means.n == 5
    assert second.change.tokens == (0, 2) and not second.slices
    assert third.change.edges == ("L0H0->L1H0.q", "embed->out") and third.change.graph.n_layers == 2


@pytest.mark.parametrize("name", list(MADE))
def test_edits_are_written_as_then(name, tmp_path):
    new = MADE[name]().save(tmp_path)
    assert {path.name for path in new.iterdir()} == {path.name for path in (GOLDEN / name).iterdir()}
    keys = [json.loads((folder / "edit.json").read_text()).keys() for folder in (new, GOLDEN / name)]
    assert keys[0] == keys[1]


def test_the_card_of_version_1_is_read_as_it_was_written():
    found, made = EditCard.load(GOLDEN / "card-v1"), card()
    assert found.row("accuracy")["change"] == 0.125 and found.status == 3 and found.harmed == ("class: a",)
    for frame in ("table", "controls", "images"):
        assert getattr(found, frame).equals(getattr(made, frame)), frame
    assert (found.gain, found.edit, found.settings) == (made.gain, made.edit, made.settings)
    assert found.reasons == made.reasons and found.provenance == made.provenance and str(found) == str(made)
    page = (GOLDEN / "card-v1" / "edit_card.md").read_text(encoding="utf-8")
    assert found.to_markdown() == page and "Status 3" in page


def test_the_card_is_written_as_then(tmp_path):
    new, old = card().save(tmp_path), GOLDEN / "card-v1"
    assert {path.name for path in new.iterdir()} == {path.name for path in old.iterdir()}
    assert json.loads((new / "card.json").read_text()).keys() == json.loads((old / "card.json").read_text()).keys()


@pytest.mark.parametrize(
    "name,manifest,read", [("edges-v1", "edit.json", load_edit), ("card-v1", "card.json", EditCard.load)]
)
def test_a_later_version_is_refused(name, manifest, read, tmp_path):
    known = json.loads((GOLDEN / name / manifest).read_text())
    (tmp_path / manifest).write_text(json.dumps({**known, "version": 2}))
    with pytest.raises(ResultMismatch, match="was written in format version 2; this mechvis reads up to 1"):
        read(tmp_path)
