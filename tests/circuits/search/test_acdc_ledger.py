"""ACDC goes on where it was stopped, and refuses what is not its own."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from circuits.circuit import Circuit
from circuits.search.acdc import acdc, acdc_sweep
from circuits.search.acdc_ledger import AcdcLedger
from circuits.search.drops import Drops
from mechvis.errors import OutputNotWritable, ResultMismatch, StoreCorrupt


def cost(circuit):
    return circuit.provenance["acdc"]


def find(task, tau, engine="speculative", **options):
    return acdc(task, tau, engine=engine, progress=False, **options)


class Stopped(Exception):
    """The process was killed here."""


def stop_after(monkeypatch, calls):
    left, run = [calls], Drops.__call__

    def stopping(self, kept):
        left[0] -= 1
        if left[0] < 0:
            raise Stopped
        return run(self, kept)

    monkeypatch.setattr(Drops, "__call__", stopping)


@pytest.mark.parametrize(
    "engine, other", [("suffix", "suffix"), ("speculative", "speculative"), ("sequential", "speculative")]
)
def test_an_interrupted_search_goes_on(tmp_path, monkeypatch, engine, other, random_task):
    task = random_task("vit", n=2, layers=2)
    expected = find(task, 1e-3, "sequential")
    for calls in (1, 4, 9):
        with monkeypatch.context() as patched, pytest.raises(Stopped):
            stop_after(patched, calls)
            find(task, 1e-3, engine, out=tmp_path)
    decided = sum(value is not None for value in json.loads((tmp_path / "acdc.json").read_text())["increments"])
    assert 14 <= decided < task.graph.n_edges
    found = find(task, 1e-3, other, out=tmp_path)
    np.testing.assert_array_equal(found.kept, expected.kept)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-12)
    if engine == other == "suffix":
        assert cost(found)["circuits"] <= task.graph.n_edges + 3, "only what is left is measured again, once a call"
    with monkeypatch.context() as patched:
        stop_after(patched, 0)
        again = find(task, 1e-3, out=tmp_path)
    np.testing.assert_array_equal(again.kept, expected.kept)
    loaded = Circuit.load(tmp_path, task.model)
    np.testing.assert_array_equal(loaded.kept, expected.kept)
    np.testing.assert_array_equal(loaded.scores, again.scores)


def test_a_ledger_is_written_while_it_runs(tmp_path, monkeypatch, saturation):
    written = []
    monkeypatch.setattr("circuits.search.acdc_ledger.EVERY", 0.0)
    write = AcdcLedger.write
    monkeypatch.setattr(AcdcLedger, "write", lambda self, *given: (written.append(1), write(self, *given)))
    find(saturation, 0.1, "suffix", out=tmp_path)
    assert len(written) >= saturation.graph.n_edges


def test_a_sweep_keeps_its_thresholds(tmp_path, cue, monkeypatch):
    expected = acdc_sweep(cue, (1e-3, 1e-2), progress=False, ahead=3)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_after(patched, 20)
        acdc_sweep(cue, (1e-3, 1e-2), progress=False, ahead=3, out=tmp_path)
    assert (tmp_path / "tau-0.001" / "circuit.json").exists() and not (tmp_path / "tau-0.01" / "circuit.json").exists()
    found = acdc_sweep(cue, (1e-3, 1e-2), progress=False, out=tmp_path)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert (tmp_path / "tau-0.001" / "circuit.json").exists() and (tmp_path / "tau-0.01" / "acdc.json").exists()
    np.testing.assert_array_equal(Circuit.load(tmp_path).scores, expected.scores)


def test_ledgers_of_other_searches_are_refused(tmp_path, saturation):
    find(saturation, 0.1, out=tmp_path)
    with pytest.raises(ResultMismatch, match=r"another search \(tau: there 0.1, now 0.2\)"):
        find(saturation, 0.2, out=tmp_path)
    with pytest.raises(ResultMismatch, match="metric: there 'kl', now 'logit_diff'; order: there 'late', now 'early'"):
        find(saturation, 0.1, metric=None, order="early", out=tmp_path)
    file = tmp_path / "acdc.json"
    text = file.read_text()
    file.write_text(text.replace('"current":', '"current":1'))
    with pytest.raises(StoreCorrupt, match=r"was changed after it was written. Delete it to begin again"):
        find(saturation, 0.1, out=tmp_path)
    file.write_text(text[: len(text) // 2])
    with pytest.raises(StoreCorrupt, match="cannot be read as JSON"):
        find(saturation, 0.1, out=tmp_path)
    file.write_text('{"format": "something"}')
    with pytest.raises(ResultMismatch, match="not the ledger of an ACDC search"):
        find(saturation, 0.1, out=tmp_path)


_SCRIPT = """
import sys
import circuits.search.acdc_ledger as ledger
from circuits.pairs.pairs import Pairs
from circuits.search.acdc import acdc
from circuits.task import task
from mechvis.testing import planted

ledger.EVERY = 0.0
given = planted.cue_pairs("all", 8)
pairs = Pairs(name=given.name, clean=given.clean, corrupt=given.corrupt, ids=tuple(f"pair {i}" for i in range(8)),
              clean_labels=given.clean_labels, corrupt_labels=given.corrupt_labels)
acdc(task(planted.cue_lookup(), pairs), 0.01, engine="suffix", progress=False, out=sys.argv[1])
"""


@pytest.mark.slow
def test_a_killed_process_goes_on(tmp_path, cue, cue_active):
    """SIGKILL in the middle: the next call decides the rest, and finds the same."""
    file, decided = tmp_path / "acdc.json", 0
    process = subprocess.Popen([sys.executable, "-c", _SCRIPT, str(tmp_path)])
    try:
        until = time.monotonic() + 120
        while decided < 12 and time.monotonic() < until and process.poll() is None:
            time.sleep(0.01)
            if file.exists():
                decided = sum(value is not None for value in json.loads(file.read_text())["increments"])
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    kept = sum(value is not None for value in json.loads(file.read_text())["increments"])
    assert 12 <= kept < cue.graph.n_edges, "it was killed in the middle"
    found = find(cue, 0.01, "suffix", out=tmp_path)
    assert set(found.edges) == cue_active
    assert cost(found)["circuits"] <= cue.graph.n_edges + 2, "decided edges are not run again"


def test_an_unwritable_place_is_said_before_anything_is_run(tmp_path, saturation, monkeypatch):
    (tmp_path / "file").write_text("")
    stop_after(monkeypatch, 0)
    with pytest.raises(OutputNotWritable, match="file"):
        find(saturation, 0.1, out=tmp_path / "file" / "folder")
