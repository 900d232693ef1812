"""What each edge adds to a circuit: needed ones, ballast, and ones that stand in for each other."""

import polars as pl
import pytest

from circuits.circuit import Circuit
from circuits.evaluation import minimality
from circuits.evaluation.measured import measured
from mechvis.errors import BadData, OutOfRange
from mechvis.results import Result
from mechvis.testing.planted import SATURATION_EDGES


def by_edge(result, column):
    return dict(result.table.select("unit", column).iter_rows())


def test_f3(f3):
    circuit = Circuit.of(f3.graph, {*SATURATION_EDGES, "L0H0->out", "embed->L0H1.k"})
    found = minimality(f3, circuit, n_subsets=2, progress=False)
    assert {edge for edge, light in by_edge(found, "ballast").items() if light} == {"L0H0->out", "embed->L0H1.k"}
    shares = by_edge(found, "share")
    for edge in ("embed->L0H0.v", "L0H0->L0MLP", "L0MLP->out"):
        assert shares[edge] == pytest.approx(0.9302, abs=5e-5)
    assert shares["L0H1->out"] == pytest.approx(1 - 0.9302, abs=5e-5)
    assert found.values["logit_diff"].shape == (7, 1)
    assert found.table["unit"].to_list() == list(circuit.edges)


def test_stand_ins_show_only_without_each_other(either, path_through):
    """OR: each of the two paths alone is ballast by the first test, and everything by the second."""
    circuit = path_through(either, 0, 1)
    alone = by_edge(minimality(either, circuit, n_subsets=0, progress=False), "largest")
    assert alone["L0H0->L0MLP"] == pytest.approx(0, abs=1e-6) and alone["L0MLP->out"] == pytest.approx(1, abs=1e-6)
    found = minimality(either, circuit, n_subsets=8, progress=False)
    assert by_edge(found, "largest")["L0H0->L0MLP"] == pytest.approx(1, abs=1e-6)
    assert by_edge(found, "share")["L0H0->L0MLP"] == pytest.approx(0, abs=1e-6)
    assert not any(by_edge(found, "ballast").values())


def test_effects_are_differences_of_the_metric(cue, cue_circuit):
    found = minimality(cue, cue_circuit, n_subsets=0, progress=False)
    (whole,) = measured(cue, cue_circuit.kept[None])
    for row, edge in enumerate(found.table["unit"]):
        kept = cue_circuit.kept & ~cue.graph.mask([edge])
        expected = whole - measured(cue, kept[None])[0]
        assert found.values["logit_diff"][row] == pytest.approx(expected, abs=1e-9)
    assert found.table.filter(pl.col("ballast"))["unit"].to_list() == ["embed->L0H1.q"], "constant: structural"


def test_saved_as_a_result(f3, core, tmp_path):
    found = minimality(f3, core, n_subsets=1, progress=False)
    found.save(tmp_path)
    assert Result.load(tmp_path).table.equals(found.table)
    assert found.provenance["minimality"] == {"subsets": 1, "threshold": 0.01, "seed": 0, "edges": 3}


def test_one_edge(f3):
    found = minimality(f3, Circuit.of(f3.graph, ["embed->out"]), n_subsets=3, progress=False)
    assert found.table["largest"].to_list() == [0.0] and found.table["subsets"].to_list() == [1]


def test_bad_input(f3, core, nothing):
    with pytest.raises(BadData, match="'nothing' has no edge"):
        minimality(f3, nothing)
    with pytest.raises(OutOfRange, match="n_subsets=-1"):
        minimality(f3, core, n_subsets=-1)
    with pytest.raises(OutOfRange, match="threshold=-1"):
        minimality(f3, core, threshold=-1)
