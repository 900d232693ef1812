"""What the first version of the formats wrote is still read, and means the same."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sae
from sae.training import checkpoint
from sae.training.job import Learner

GOLDEN = Path(__file__).parent / "golden"
SITE = "blocks.0.hook_resid_post"
SETTINGS = sae.Training(tokens=640, batch=32, lr=1e-2, log_every=5, save_every=10, keep=1, init_rows=64)
ARCHITECTURE = sae.BatchTopK(n_latents=12, k=2)


@pytest.fixture(scope="module")
def expected():
    return load_file(GOLDEN / "expected.safetensors")


def test_dictionary_v1(expected):
    d = sae.load(GOLDEN / "dictionary-v1")
    assert d.architecture == ARCHITECTURE and d.ends.reads == {SITE: 6}
    assert d.provenance == {"rows": {"kind": "golden"}}
    assert torch.allclose(d.encode(expected["x"]), expected["codes"], atol=1e-5)
    assert torch.allclose(d(expected["x"]), expected["y"], atol=1e-5)


def test_checkpoint_v1():
    start = sae.start(ARCHITECTURE, {SITE: torch.randn(64, 6)})
    learner = Learner(start, SETTINGS)
    found = checkpoint.newest(GOLDEN / "run-v1" / "checkpoints", {"batch": learner.tensors()})
    assert found.step == 20 and found.log_lines == 4
    learner.load(found.tensors["batch"], found.numbers["batch"])
    kept = sae.load(GOLDEN / "run-v1" / "dictionaries" / "batch")
    assert all(torch.allclose(t, kept.state_dict()[n], atol=1e-6) for n, t in learner.dictionary.state_dict().items())


def test_run_v1_is_known_to_be_done(tmp_path):
    shutil.copytree(GOLDEN / "run-v1", tmp_path / "run")
    generator = torch.Generator().manual_seed(0)
    rows = {SITE: torch.randn(64, 6, generator=generator) + 1, "blocks.1.hook_resid_post": torch.randn(64, 6)}
    jobs = {"batch": sae.Job(architecture=ARCHITECTURE, reads=SITE)}
    run = sae.train(rows, jobs, SETTINGS, out=tmp_path / "run", progress=False)
    assert run.log["step"].to_list() == [5, 10, 15, 20] and run.dictionary.ends.reads == {SITE: 6}
