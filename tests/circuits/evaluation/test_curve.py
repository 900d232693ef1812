"""The curve on a model whose seven edges are known: the true order is better than a random and than a reversed one."""

import numpy as np
import polars as pl
import pytest

from circuits.circuit import Circuit
from circuits.edge_patching import patch_edges
from circuits.edges.graph import EdgeGraph
from circuits.evaluation import Curve, curve
from circuits.evaluation.areas import area
from circuits.evaluation.curve import FRACTIONS
from circuits.evaluation.measured import measured
from circuits.evaluation.orders import nested
from circuits.search.select import select
from mechvis.errors import (
    BadData,
    NotFinite,
    OutOfRange,
    ResultMismatch,
    StoreCorrupt,
    UnknownName,
)


@pytest.fixture(scope="module")
def scores(cue_model, pairs_of):
    from circuits.task import task
    from mechvis.testing.planted import cue_pairs

    return patch_edges(task(cue_model, pairs_of(cue_pairs("all", 8, seed=1))), progress=False)


@pytest.fixture(scope="module")
def found(cue, scores):
    return curve(cue, scores, n_random=3, progress=False)


def points(found, order, draw=0):
    return found.points.filter((pl.col("order") == order) & (pl.col("draw") == draw))


def test_true_order_beats_random_and_reversed(found):
    assert found.cmd < 0.1 and found.cpr > 0.9
    for axis in ("realised", "nominal", "log"):
        cmd, cpr = (found.area(kind, axis=axis) for kind in ("cmd", "cpr"))
        assert cmd < found.area("cmd", order="random", axis=axis) - 0.2
        assert cmd < found.area("cmd", order="size reversed", axis=axis) - 0.2
        assert cpr > found.area("cpr", order="random", axis=axis) + 0.2
        assert cpr > found.area("cpr", order="signed reversed", axis=axis) + 0.2
    row = found.area_row("cmd")
    assert row["low"] < row["value"] < row["high"]
    assert row["minus random high"] < -0.2, "paired: far from what random orders give"
    assert row["minus random"] == pytest.approx(found.cmd - found.area("cmd", order="random"))


def test_eleven_edges_are_enough(found):
    rows = points(found, "size").filter(pl.col("edges") >= 11)
    assert (rows["faithfulness"] - 1).abs().max() < 1e-3
    assert points(found, "size").filter(pl.col("edges") == 0)["faithfulness"].to_list() == [0.0] * 4


def test_points_are_the_faithfulness_of_what_is_left(cue, scores, found):
    for row in points(found, "signed").iter_rows(named=True):
        circuit = select(scores, row["asked"], signed=True)
        assert len(circuit) == row["edges"] <= row["fraction"] * 110
        assert row["faithfulness"] == pytest.approx(cue.faithfulness(measured(cue, circuit.kept[None]))[0], abs=1e-9)
    last = points(found, "random", 2).row(-1, named=True)
    assert (last["edges"], last["faithfulness"], last["low"], last["high"]) == (110, 1.0, 1.0, 1.0)


def test_areas_are_those_of_the_points(found):
    rows = points(found, "size")
    columns = rows["faithfulness"].to_numpy(), rows["edges"].to_numpy(), rows["fraction"].to_numpy()
    for kind in ("cpr", "cmd"):
        for axis in ("realised", "nominal", "log"):
            assert found.area(kind, order="size", axis=axis) == pytest.approx(float(area(kind, axis, *columns, 110)))


def test_the_published_way_written_out(cue, scores):
    """MIB: the first floor(f n) edges, pruned; trapezoids over the fractions that were asked for."""
    found = curve(cue, scores, count="asked", n_random=0, progress=False)
    shares, cpr = [], 0.0
    for fraction in FRACTIONS:
        circuit = select(scores, int(fraction * 110), signed=True)
        shares.append(cue.faithfulness(measured(cue, circuit.kept[None]))[0])
    for i in range(9):
        cpr += (FRACTIONS[i + 1] - FRACTIONS[i]) * (shares[i] + shares[i + 1]) / 2
    assert found.area("cpr", axis="nominal") == pytest.approx(cpr, abs=1e-9)
    rows = points(found, "size reversed")
    assert rows["asked"].to_list() == [0, 0, 0, 1, 2, 5, 11, 22, 55, 110]
    assert (rows["edges"] < rows["asked"]).sum() >= 5, "pruning takes some of them"


def test_a_fraction_holds_as_many_edges_as_fit():
    graph = EdgeGraph((3, 3))
    order = np.random.default_rng(0).permutation(graph.places)
    for fraction, asked, kept in nested(graph, order, FRACTIONS):
        assert kept.sum() <= fraction * graph.n_edges
        if asked < graph.n_edges:
            more = np.zeros(graph.shape, dtype=bool)
            more[order[: asked + 1, 0], order[: asked + 1, 1]] = True
            assert len(Circuit(graph=graph, kept=more).pruned()) > fraction * graph.n_edges, "the next one does not fit"


def test_fractions_that_binary_rounding_would_cut():
    graph = EdgeGraph((2, 2, 2))
    n = graph.n_edges
    asked = [nested(graph, graph.places, [k / n, 1.0], count="asked", prune=False)[0][1] for k in range(1, n)]
    assert asked == list(range(1, n))


def test_ties_are_counted(f3):
    scores = np.where(f3.graph.allowed, 1.0, np.nan)
    scores[f3.graph.edge("L0H0->out")] = 2.0
    found = curve(f3, scores, n_random=0, count="asked", prune=False, progress=False)
    rows = points(found, "size")
    assert dict(zip(rows["asked"], rows["ties"], strict=True)) == {0: 0, 1: 0, 2: 11, 6: 7, 13: 0}


def test_partial_scores_end_at_the_whole_model(f3, core):
    scores = np.where(core.kept, 1.0, np.nan)
    found = curve(f3, scores, fractions=(0.1, 0.2, 0.5, 1.0), n_random=0, prune=False, progress=False)
    rows = points(found, "size")
    assert rows["asked"].to_list() == [1, 2, 13] and found.n_scored == 3
    assert rows["faithfulness"].to_list()[-1] == 1.0


def test_one_image_has_no_intervals(f3, core):
    found = curve(f3, np.where(core.kept, 1.0, 0.0), n_random=1, progress=False)
    assert found.points["low"].null_count() == found.points.height
    assert found.area_row("cmd")["low"] is None and "[no interval]" in repr(found)


def test_scores_from_a_circuit_are_its_own(cue, scores, found):
    again = curve(cue, select(scores, 7), n_random=0, progress=False)
    assert again.cmd == found.cmd and again.title.startswith("top 7 by Exact effect")
    with pytest.raises(BadData, match="made without the order 'random'"):
        again.area("cmd", order="random")


def test_saved_and_loaded(found, tmp_path):
    found.save(tmp_path)
    again = Curve.load(tmp_path)
    assert repr(again) == repr(found) and again.provenance == found.provenance
    assert again.points.equals(found.points) and again.areas.equals(found.areas)
    np.testing.assert_array_equal(again.values, found.values)
    (tmp_path / "points.parquet").write_bytes(b"nothing")
    with pytest.raises(StoreCorrupt, match=r"points\.parquet is damaged"):
        Curve.load(tmp_path)


def test_another_format_is_refused(tmp_path, scores):
    from circuits.evaluation import store

    store.save(tmp_path, "something", 1, tables={}, arrays={"x": np.zeros(1)}, facts={})
    with pytest.raises(ResultMismatch, match="does not hold a curve of circuits: its format is 'something'"):
        Curve.load(tmp_path)
    store.save(tmp_path, "mechvis.circuit_curve", 9, tables={}, arrays={"x": np.zeros(1)}, facts={})
    with pytest.raises(ResultMismatch, match="format version 9; this mechvis reads up to 1"):
        Curve.load(tmp_path)
    store.save(tmp_path, "mechvis.circuit_curve", 1, tables={}, arrays={"x": np.zeros(1)}, facts={})
    with pytest.raises(StoreCorrupt, match="does not hold what its manifest says"):
        Curve.load(tmp_path)


def test_plot(found):
    axes = found.plot().axes[0]
    assert axes.get_xscale() == "log" and len(axes.get_lines()) == 4
    assert found.plot(("size reversed",)).axes[0].get_ylabel() == "faithfulness F"
    with pytest.raises(UnknownName, match="unknown order 'best'"):
        found.plot(("best",))


def test_the_table_is_kept_as_it_is(found):
    assert found.table().columns[:6] == ["order", "draw", "fraction", "asked", "edges", "ties"]
    with pytest.raises(ValueError, match="read-only"):
        found.values[0, 0] = 1.0


def test_bad_input(cue, f3, scores):
    with pytest.raises(OutOfRange, match="they rise from above 0 to exactly 1"):
        curve(cue, scores, fractions=(0.5, 0.1, 1.0))
    with pytest.raises(OutOfRange, match="they rise from above 0 to exactly 1"):
        curve(cue, scores, fractions=(0.1, 0.5))
    with pytest.raises(OutOfRange, match="n_random=-1"):
        curve(cue, scores, n_random=-1)
    with pytest.raises(UnknownName, match="unknown way to count 'all'"):
        curve(cue, scores, count="all")
    with pytest.raises(ResultMismatch, match="the model is EdgeGraph"):
        curve(f3, scores)
    with pytest.raises(ResultMismatch, match="edges have no counterpart"):
        curve(f3, select(scores, 5))
    with pytest.raises(BadData, match="has no scores, and a curve needs an order"):
        curve(f3, Circuit.of(f3.graph, ["L0MLP->out"]))
    with pytest.raises(NotFinite, match="every score is NaN"):
        curve(f3, np.full(f3.graph.shape, np.nan))
