"""The benchmark of dictionaries: its own contenders start alike, take turns, and are compared by medians of rounds."""

import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
OWN = ["fair dense, bf16", "mechvis"]


@pytest.fixture
def dictionaries(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import dictionaries

    return dictionaries


@pytest.fixture
def pages(dictionaries):
    from benchmarks import dictionaries_page

    return dictionaries_page


def timed(*rounds, fvu=0.5):
    return {"seconds": [list(r) for r in rounds], "start": 0.9, "fvu": fvu, "l0": 4.0, "torch": "2"}


def test_two_contenders_end_to_end(dictionaries, pages):
    size = dictionaries.SIZES["tiny"] | {"warm": 1, "turn": 2, "rounds": 2}
    found = dictionaries.measure(OWN, size, None, "cpu", 1)
    assert list(found) == OWN
    for one in found.values():
        assert [len(turn) for turn in one["seconds"]] == [2, 2] and one["l0"] == pytest.approx(4, abs=0.05)
        assert one["fvu"] < one["start"] - 0.002
    starts, ends = ([one[word] for one in found.values()] for word in ("start", "fvu"))
    assert starts[0] == pytest.approx(starts[1], rel=1e-5), "the same initial weights"
    assert ends[0] == pytest.approx(ends[1], rel=5e-3), "the same loss after the same rows"
    part = {"size": size, "threads": 1, "machine": dictionaries.machine(None, "cpu"), "contenders": found}
    text = pages.page({"cpu tiny": part})
    assert "(a rehearsal)" in text and "| mechvis |" in text and "no GPU was at hand" in text


def test_what_fails_is_named_and_the_others_go_on(dictionaries, pages, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'ModuleNotFoundError: no such library' >&2\nexit 1\n")
    broken.chmod(0o755)
    size = dictionaries.SIZES["tiny"] | {"warm": 0, "turn": 1, "rounds": 1}
    found = dictionaries.measure(["sparsify", "mechvis"], size, str(broken), "cpu", 1)
    assert found["sparsify"] == {"failed": "ModuleNotFoundError: no such library"}
    assert len(found["mechvis"]["seconds"]) == 1


def test_speeds_are_of_medians_and_ranges_of_rounds(dictionaries):
    mine, theirs = timed([1.0, 1.0], [2.0, 2.0], [1.0, 1.0]), timed([3.0, 3.0], [4.0, 4.0], [3.5, 3.5])
    assert dictionaries.step_of(theirs) == 3.5
    assert dictionaries.spread_of(mine, theirs) == (3.5, 2.0, 3.5)


def test_goals_are_told_reached_or_missed(dictionaries, pages):
    found = {
        "SAELens": timed([6.0]), "overcomplete": timed([4.0]), "sparsify": timed([2.0]), "mechvis": timed([1.0]),
        "mechvis, bf16 encoder": timed([1.0]),
    }  # fmt: skip
    lines = pages._goals(found)
    assert lines[0].endswith("at least 4.00 times (overcomplete): reached.") and "asked for 3 times" in lines[0]
    assert lines[1].endswith("2.00 times (sparsify): reached.")
    assert lines[3].endswith("4.00 times (overcomplete): missed.") and "asked for 6 times" in lines[3]


def test_a_gpu_page_has_the_share_of_the_roofline(dictionaries, pages):
    about = {"processor": "one GPU", "bf16": True, "peers": {}, "torch": "2", "python": "3"}
    size = dictionaries.SIZES["gpu-24576"]
    seconds = size["batch"] / dictionaries.IDEAL["gpu-24576"]
    part = {"size": size, "threads": 1, "machine": about, "contenders": {"mechvis": timed([2 * seconds])}}
    text = pages.page({"cuda gpu-24576": part})
    assert "of ideal" in text and "| 50% |" in text and "no GPU" not in text


def test_what_is_kept_is_not_measured_again(dictionaries, monkeypatch, tmp_path, capsys):
    kept = tmp_path / "page.json"
    monkeypatch.setattr(dictionaries, "measure", lambda *args: {"mechvis": timed([1.0])})
    monkeypatch.setattr("sys.argv", ["dictionaries", "--size", "tiny", "--out", str(tmp_path / "page.md")])
    dictionaries.main()
    first = json.loads(kept.read_text())
    monkeypatch.setattr(dictionaries, "measure", lambda *args: pytest.fail("measured again"))
    dictionaries.main()
    assert json.loads(kept.read_text()) == first and "| mechvis | 1000.0 |" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["dictionaries", "--page", "--out", str(tmp_path / "page.md")])
    dictionaries.main()


def test_rows_are_planted_and_weights_have_unit_rows(dictionaries, tmp_path):
    from safetensors.torch import load_file

    dictionaries.prepare(dictionaries.SIZES["tiny"], tmp_path, "cpu", 1)
    start = load_file(tmp_path / "start.safetensors")
    torch.testing.assert_close(start["W"].norm(dim=1), torch.ones(1024))
    torch.testing.assert_close(start["mean"], start["rows"].mean(0))
    assert start["rows"].shape == (512, 64) and start["held_out"].shape == (512, 64)
