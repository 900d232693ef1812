"""The certified top-K through the engine: the numbers of the full sweep, resumable, and in words."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.certified import certificate, certified_top
from mechvis.certified.bounds import TAILS
from mechvis.cli import main
from mechvis.errors import OutOfRange, ResultMismatch
from mechvis.patches import patch_maps
from mechvis.sweep import sweep
from mechvis.wave import bytes_per_row

pytestmark = pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")


@pytest.fixture(scope="module")
def model():
    return mechvis.load(testing.tiny("vit", dtype=torch.float64), preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def pixels():
    return testing.tiny_input("vit", n=300, dtype=torch.float64)


def quiet(model, images, **more):
    return certified_top(model, images, **{"progress": False, "top": 3, **more})


@pytest.mark.parametrize("edit", ["zero", "mean", "mean_positional", "resample", "patch"])
def test_effects_are_those_of_the_full_sweep(model, pixels, edit):
    source = pixels.flip(0) * 0.9 if edit == "patch" else None
    settings = {"edit": edit, "source": source, "metric": ["logit_diff", "prob"], "seed": 2}
    full = sweep(model, pixels, progress=False, **settings)
    found = quiet(model, pixels, eps=0.3, fresh_images=64, audit=0.2, **settings)
    assert sorted(found.rows()["unit"]) == sorted(full.rows()["unit"])
    at = same_values(found, full)
    facts = found.provenance["certificate"]
    assert facts["certified"] and within(found, full, 3, 0.3)
    rows = found.rows().filter(found.rows()["selected"])
    assert rows["unit"].to_list() == facts["selected"] == found.top(3, by="selected")["unit"].to_list()
    assert found.table["excluded"].sum() == 0, "an image that was not measured is not an excluded one"
    decided = found.rows()
    assert (decided["bound_low"] <= decided["bound_high"]).all()
    assert found.rows("prob")["bound_low"].null_count() == 12
    for row in rows.iter_rows(named=True):
        assert row["fresh"] == (len(at) - row["decided_n"] >= 64 or row["n"] == 64)


def same_values(found, full):
    """Every number that was measured is that of the full sweep; what was not measured is missing, never zero."""
    ids = {name: i for i, name in enumerate(full.images["id"])}
    at = [ids[name] for name in found.images["id"]]
    for metric in full.metrics:
        rows = dict(zip(full.rows(metric)["unit"], full.values[metric], strict=True))
        for unit, values in zip(found.rows(metric)["unit"], found.values[metric], strict=True):
            known = rows[unit][at]
            seen = ~np.isnan(values)
            assert np.abs(values[seen] - known[seen]).max() < 1e-10
            assert not np.isnan(known[seen]).any()
    return at


def within(found, full, top, eps):
    effects = dict(zip(full.rows()["unit"], full.rows()["effect"], strict=True))
    bar = sorted(effects.values())[-top]
    selected = found.provenance["certificate"]["selected"]
    return len(selected) == top and all(effects[name] >= bar - eps * abs(bar) for name in selected)


def test_several_targets_from_the_same_forwards(model, pixels):
    """The first one decides; the others are measured where it is, and the table says which class a row is about."""
    settings = {"metric": ["logit", "kl"], "targets": [1, (2, 0)], "seed": 1}
    full = sweep(model, pixels, progress=False, **settings)
    found = quiet(model, pixels, eps=0.3, **settings)
    assert found.metrics == full.metrics == ["logit[LABEL_1]", "logit[LABEL_2 vs LABEL_0]", "kl"]
    assert found.provenance["certificate"]["metric"] == "logit[LABEL_1]"
    assert found.table.group_by("metric", maintain_order=True).first()["target"].to_list() == [
        "LABEL_1",
        "LABEL_2 vs LABEL_0",
        None,
    ]
    same_values(found, full)
    assert within(found, full, 3, 0.3)
    assert found.rows("kl")["bound_low"].null_count() == 12 and found.rows()["bound_low"].null_count() == 0


@pytest.mark.parametrize("kind", ["grid", "per image", "plain"])
def test_groups_of_patches(model, pixels, kind):
    """Groups that differ from image to image are missing where they have no patch, and counted where they have one."""
    labels = torch.randint(0, 40, (300, 3, 3), generator=torch.Generator().manual_seed(1)) % 7
    few = 70 if kind == "plain" else 300
    settings = {"units": "patches", "groups": (3, 3) if kind == "grid" else labels[:few], "layers": [1, 2]}
    full = sweep(model, pixels[:few], progress=False, **settings)
    engine = "plain" if kind == "plain" else "wave"
    found = quiet(model, pixels[:few], eps=0.3, audit=0.2, engine=engine, **settings)
    at = same_values(found, full)
    assert within(found, full, 3, 0.3)
    maps, known = patch_maps(found), patch_maps(full)[at]
    there = ~np.isnan(maps)
    assert there.any() and np.abs(maps[there] - known[there]).max() < 1e-10
    if kind != "grid":
        rows = found.rows()
        assert found.images.columns[-1] == "group_tokens" and (rows["excluded"] > 0).all()
        drawn = rows["n"] + rows["excluded"]
        assert (drawn >= np.where(rows["fresh"], 0, rows["decided_n"])).all()


def test_heads_of_a_pooling(pixels):
    clip = mechvis.load(
        testing.tiny("siglip", dtype=torch.float64), preprocess=testing.tiny_preprocess(), tokenizer=testing.Words()
    ).classifier(["circle", "star", "a blue square"])
    settings = {"units": "pool_heads", "targets": "star", "metric": "logit", "edit": "mean_positional"}
    full = sweep(clip, pixels, progress=False, **settings)
    found = quiet(clip, pixels, top=2, eps=0.2, control=True, control_images=150, **settings)
    same_values(found, full)
    assert within(found, full, 2, 0.2) and found.rows()["unit"][0].startswith("pool H")


def test_certified_equals_the_full_sweep_on_the_bundled_model():
    model, images = mechvis.load("scenes-vit"), mechvis.data.scenes(160, seed=500, correlation=0.5)
    full = sweep(model, images, progress=False)
    found = quiet(model, images, top=5, eps=0, tails="student")
    assert set(found.provenance["certificate"]["selected"]) == set(full.top(5)["unit"])
    assert found.provenance["certificate"]["evaluations"]["elimination"] < 160 * 16


def test_words_saving_figure_and_report(model, pixels, tmp_path):
    found = quiet(model, pixels, eps=0.2, out=tmp_path / "top")
    text = certificate(found)
    assert text.startswith("With probability 0.95 none of the 3 returned units lies more than 0.2 of it below the mean")
    assert "the full sweep: 3,600" in text and "Uniform sampling" in text
    again = mechvis.Result.load(tmp_path / "top")
    assert certificate(again) == text and again.table.equals(found.table)
    again.report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "certified within 0.2" in page and "Unreliable" not in page
    again.plot()
    with pytest.raises(ResultMismatch, match="not the result of certified_top"):
        certificate(sweep(model, pixels[:4], progress=False))
    short = quiet(model, pixels, eps=0.01, max_images=64)
    assert certificate(short).startswith("No certificate: 64 images did not suffice")
    assert "not certified" in short.title


def test_a_bound_that_the_effects_do_not_fit_says_so(model, pixels):
    """Accuracy changes on few images: Student's t has little to go by, and the certificate does not hide it."""
    found = {bound: quiet(model, pixels, tails=bound, metric="accuracy", max_images=100) for bound in TAILS}
    seldom = found["student"].provenance["certificate"]["seldom"]
    assert seldom > 0
    assert f"Caution: {seldom} units had an effect other than zero on fewer than 10" in certificate(found["student"])
    assert all("Caution" not in certificate(found[bound]) for bound in ("guarded", "bernstein"))
    assert "Caution" not in certificate(quiet(model, pixels, tails="student", eps=0.2)), "logits always move"
    assert "Caution" not in certificate(quiet(model, pixels[:60], tails="student", metric="accuracy")), "all were seen"


def test_calibrated_is_not_called_certified(model, pixels):
    found = quiet(model, pixels, eps=0.3, calibrated=True, by="size")
    facts = found.provenance["certificate"]
    assert not facts["certified"]
    assert facts["calibrated"] and "Calibrated, not certified" in certificate(found)


def test_top_of_everything_is_refused_before_any_work(model, pixels):
    with pytest.raises(OutOfRange, match="top=12 of 12 units"):
        quiet(model, pixels * float("nan"), top=12)


def test_resume_and_refusal(model, pixels, tmp_path, monkeypatch):
    from mechvis import engine

    settings = {"eps": 0.05, "audit": 0.2, "control": True, "control_images": 128, "tails": "student"}
    settings["budget"] = 100 * sum(bytes_per_row(model.parts, 8))
    expected = quiet(model, pixels, **settings)
    compute, calls = engine._compute, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return compute(*arguments)

    monkeypatch.setattr(engine, "_compute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quiet(model, pixels, out=tmp_path, **settings)
    assert not (tmp_path / "result.json").exists()
    found = quiet(model, pixels, out=tmp_path, **settings)
    assert found.table.equals(expected.table)
    done = len(calls)
    assert quiet(model, pixels, out=tmp_path, **settings).table.equals(expected.table)
    assert len(calls) == done, "all pieces were kept"
    for change in ({"eps": 0.2}, {"top": 2}, {"tails": "guarded"}):
        with pytest.raises(ResultMismatch, match="holds another job"):
            quiet(model, pixels, out=tmp_path, **{**settings, **change})
    sweep(model, pixels[:4], out=tmp_path / "full", progress=False)
    with pytest.raises(ResultMismatch, match="holds a full sweep"):
        quiet(model, pixels, out=tmp_path / "full")


KILLED = """
import os, signal, sys, time
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
import mechvis
from mechvis import testing

model = mechvis.load(testing.tiny("vit"), preprocess=testing.tiny_preprocess())
pixels, folder = testing.tiny_input("vit", n=500), Path(sys.argv[1])

def work(out):
    return mechvis.certified_top(model, pixels, top=3, eps=0, audit=0.2, tails="student", out=out, progress=False)

for number in (1, 2, 3):
    child = os.fork()
    if child == 0:
        try:
            work(folder / "killed")
        finally:
            os._exit(0)
    # Killed as soon as a round is begun: between the rounds, or in the middle of one.
    while not (folder / "killed" / "rounds" / f"{number:02d}").exists():
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "finished before it was killed"
resumed, whole = work(folder / "killed"), work(folder / "whole")
assert resumed.table.equals(whole.table)
facts = [result.provenance["certificate"] for result in (resumed, whole)]
assert facts[0] == facts[1] and len(facts[0]["rounds"]) >= 3
print("same")
"""


def test_kill_9_between_rounds_and_the_same_call_again(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "same" in done.stdout


def test_command_line(tmp_path, capsys):
    words = ["sweep", "--model", "scenes-vit", "--images", "scenes:200", "--top", "3", "--certified", "--eps", "0.3"]
    words += ["--tails", "student", "--delta", "0.1", "--audit", "0.1", "--out", str(tmp_path / "top"), "--no-progress"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "With probability 0.9 none of the 3 returned units lies more than 0.3 of it below" in text
    assert "3 of 16 units" in text and "evaluations (unit x image)" in text
    assert (tmp_path / "top" / "report.html").is_file()
    assert main(["sweep", "--model", "scenes-vit", "--images", "scenes:20", "--top", "16", "--certified"]) == 1
    assert "top=16 of 16 units" in capsys.readouterr().err
