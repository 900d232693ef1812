"""`mechvis sae harvest` and `train`: from images to a dictionary, in one process, in two, and through submitit."""

import os
import subprocess
import sys

import pytest
import torch

import mechvis
import sae
from mechvis.cli import main
from mechvis.commands import read_images
from mechvis.errors import BadData
from sae.commands.train import train

SITE = "blocks.1.hook_resid_post"
SMALL = ["--n-latents", "64", "--k", "4", "--tokens", "2048", "--batch", "128", "--log-every", "4", "--save-every", "5"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    out = tmp_path_factory.mktemp("acts") / "store"
    words = ["--model", "scenes-vit", "--images", "scenes:16:3", "--sites", SITE, "--out", str(out), "--no-progress"]
    assert main(["sae", "harvest", *words]) == 0
    return out


def test_from_a_store(store, tmp_path, capsys):
    words = [
        "sae",
        "train",
        "--store",
        str(store),
        "--out",
        str(tmp_path),
        *SMALL,
        "--no-progress",
        "--settings",
        "aux=0",
    ]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "batch_topk autoencoder" in told and "FVU" in told and str(tmp_path) in told
    found = sae.load(tmp_path / "dictionaries" / "dictionary")
    assert found.architecture == sae.BatchTopK(n_latents=64, k=4, aux=0)
    assert found.ends.reads == {SITE: 128}
    # The same words return what is done; others are refused.
    assert main(words) == 0
    assert main([*words, "--lr", "0.5"]) == 1
    assert "another folder" in capsys.readouterr().err


def test_from_a_model_it_is_what_python_trains(tmp_path):
    words = [
        "--model",
        "scenes-vit",
        "--images",
        "scenes:16:3",
        "--reads",
        SITE,
        "--architecture",
        "topk",
        "--which",
        "patches",
        "--budget",
        "1GB",
    ]
    assert main(["sae", "train", *words, "--out", str(tmp_path), *SMALL, "--no-progress"]) == 0
    # The budget decides how many images share a forward pass, and so the last bits.
    model, images = mechvis.load("scenes-vit"), read_images("scenes:16:3")
    rows = sae.from_model(model, images, SITE, size=128, which="patches", budget="1GB")
    settings = sae.Training(tokens=2048, batch=128, log_every=4, save_every=5)
    expected = sae.train(rows, sae.TopK(n_latents=64, k=4), settings, progress=False).dictionary
    found = sae.load(tmp_path / "dictionaries" / "dictionary")
    assert all(torch.equal(t, found.state_dict()[name]) for name, t in expected.state_dict().items())


@pytest.mark.parametrize("launch", ["local:2", "slurm:cluster=debug", "slurm:cluster=local,tasks_per_node=2"])
def test_several_processes(store, tmp_path, launch):
    """A transcoder command line, started through each launcher; two processes learn what one does."""
    words = ["-m", "mechvis", "sae", "train", "--store", str(store), *SMALL, "--no-progress", "--architecture", "topk"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    for more in ([], ["--launch", launch]):
        out = tmp_path / ("several" if more else "one")
        command = [sys.executable, *words, "--out", str(out), *more]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    one, several = (sae.load(tmp_path / name / "dictionaries" / "dictionary") for name in ("one", "several"))
    difference = max(float((t - several.state_dict()[name]).abs().max()) for name, t in one.state_dict().items())
    assert difference < 1e-5


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(BadData, match="--store FOLDER, or from --model"):
        train(out=tmp_path, n_latents=8)
    with pytest.raises(BadData, match="--store FOLDER, or from --model"):
        train(out=tmp_path, n_latents=8, model="scenes-vit")
    with pytest.raises(BadData, match="needs --reads"):
        train(out=tmp_path, n_latents=64, model="scenes-vit", images="scenes:4")
    with pytest.raises(BadData, match="not name=value"):
        train(out=tmp_path, n_latents=64, model="scenes-vit", images="scenes:4", settings=("aux",))
