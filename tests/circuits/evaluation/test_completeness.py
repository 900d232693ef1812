"""What a circuit lacks shows when parts of it are gone: a backup of a planted OR."""

import itertools

import numpy as np
import pytest

from circuits.circuit import Circuit
from circuits.evaluation import completeness
from circuits.evaluation.measured import measured
from mechvis.errors import BadData, OutOfRange, UnknownName


def test_a_missing_backup_is_found(either, path_through):
    """F = 1 and yet incomplete: without the one path the model still answers, the circuit does not."""
    found = completeness(either, path_through(either, 0), n_random=0, steps=1, candidates=3, progress=False)
    assert found.at_nothing == pytest.approx(0, abs=1e-6)
    assert found.gap == pytest.approx(1, abs=1e-6)
    assert found.worst in (("embed->L0H0.v",), ("L0H0->L0MLP",))
    assert found.tried == 4, "nothing, and three candidates"


def test_both_paths_are_complete(either, path_through):
    found = completeness(either, path_through(either, 0, 1), n_random=30, steps=3, progress=False)
    assert found.gap == pytest.approx(0, abs=1e-6)


def test_components(either, path_through):
    found = completeness(either, path_through(either, 0), over="nodes", n_random=0, steps=1, progress=False)
    assert found.gap == pytest.approx(1, abs=1e-6) and found.worst == ("L0H0",)
    assert set(found.table["parts"].explode().drop_nulls()) == {"embed", "L0H0", "L0MLP"}


def test_search_never_exceeds_the_true_maximum_and_enough_of_it_reaches_it(cue, cue_circuit):
    some = Circuit.of(cue.graph, cue_circuit.edges[:-2])
    graph, gone = cue.graph, []
    for size in range(len(some) + 1):
        gone += [graph.mask(chosen) for chosen in itertools.combinations(some.edges, size)]
    own, whole = (measured(cue, [kept & ~part for part in gone]).mean(1) for kept in (some.kept, graph.allowed))
    gaps = abs(own - whole) / (cue.full.mean() - cue.empty.mean())
    little = completeness(cue, some, n_random=2, steps=0, progress=False)
    much = completeness(cue, some, n_random=60, steps=5, progress=False)
    assert little.gap <= much.gap + 1e-9 and much.gap <= max(gaps) + 1e-9
    assert much.gap == pytest.approx(max(gaps), abs=1e-6)
    assert much.low <= much.gap <= much.high
    assert f"{much.tried} subsets tried" in repr(much) and much.tried == 1 + 60 + 5 + 4 + 3 + 2 + 1


def test_table_holds_shares(either, path_through):
    found = completeness(either, path_through(either, 0), n_random=5, steps=0, seed=1, progress=False)
    np.testing.assert_allclose(abs(found.table["circuit"] - found.table["model"]), found.table["gap"], atol=1e-9)
    assert found.table["search"].to_list() == ["nothing"] + ["random"] * 5
    again = completeness(either, path_through(either, 0), n_random=5, steps=0, seed=1, progress=False)
    assert again.table.equals(found.table)


def test_bad_input(f3, core, nothing):
    with pytest.raises(BadData, match="'nothing' has no edge"):
        completeness(f3, nothing)
    with pytest.raises(UnknownName, match="unknown kind of part 'heads'"):
        completeness(f3, core, over="heads", progress=False)
    with pytest.raises(OutOfRange, match="candidates=0"):
        completeness(f3, core, candidates=0)
    with pytest.raises(OutOfRange, match=r"steps=1\.5"):
        completeness(f3, core, steps=1.5)
