"""The log: lines in a file that survive a crash, other places to log to, and what is missing for them."""

import json
import sys
import types

import pytest
import torch

import sae
from mechvis.errors import MissingPackage, OutputNotWritable
from sae.training.log import Log, wandb_tracker

SETTINGS = sae.Training(tokens=640, batch=64, log_every=5)


def train(**options):
    rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    jobs = {"a": sae.TopK(n_latents=16, k=2), "b": sae.TopK(n_latents=16, k=4)}
    return sae.train(rows, jobs, SETTINGS, progress=False, **options)


def test_every_line_is_in_the_file_and_in_the_table(tmp_path):
    run = train(out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == run.log.to_dicts()
    assert [(line["step"], line["job"]) for line in lines] == [(5, "a"), (5, "b"), (10, "a"), (10, "b")]


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path):
    log = Log(tmp_path)
    log.write({"step": 1})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "fv')
    again = Log(tmp_path)
    again.resume(1)
    again.write({"step": 2})
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
    ]


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(OutputNotWritable, match=r"cannot write the log .*nowhere"):
        Log(tmp_path / "nowhere").write({"step": 1})


def test_wandb_gets_every_line(monkeypatch):
    sent, started = [], []

    class Run:
        def log(self, values, step):
            sent.append((step, values))

    fake = types.ModuleType("wandb")
    fake.init = lambda **settings: started.append(settings) or Run()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = train(trackers=[wandb_tracker(project="saes")])
    assert started == [{"project": "saes"}] and [step for step, _ in sent] == [5, 5, 10, 10]
    assert sent[1][1]["b/fvu"] == run.log["fvu"][1] and "b/step" not in sent[1][1]


def test_without_wandb(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackage, match=r"mechvis\[track\]"):
        wandb_tracker()
