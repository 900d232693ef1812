"""Several processes for one CIGMA study: they share the scores, one saves, and a death costs the piece it was at."""

import os
import subprocess
import sys
import textwrap

import pytest

# Ranks are forks of one process that has imported everything; it computes itself only at the very end (a fork of a
# process that has used polars hangs).
RANKS = """
import os, signal, sys, time, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
from circuits import cigma, load_study
from circuits.study import Study
from mechvis import engine, testing

model, images = testing.shortcut_vit(), testing.shortcut_images(600).image_set()
root, inner, saves = Path(sys.argv[1]), engine._with_back_off, Study.save
started = time.monotonic()
WAYS = {"all": {}, "top": {"certified": True, "top": 2}}

def work(out, way, slow=0.0):
    def note(text):
        with (root / f"{out}.log").open("a") as log:
            log.write(text + chr(10))
    def counted(job, piece, *arguments):
        note(f"{job.plan.get('round')} {job.plan.get('sensitivity')} {piece.name}")
        time.sleep(slow)
        return inner(job, piece, *arguments)
    def saved(study, folder):
        note("saved")
        return saves(study, folder)
    engine._with_back_off, Study.save = counted, saved
    return cigma(model, images, fill="zero", budget=2_000_000, progress=False, out=root / out, **WAYS[way])

def lines(out):
    return (root / f"{out}.log").read_text().splitlines()

def computed(out):
    return sorted(line for line in lines(out) if line != "saved")

def fork(size, what):
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ.update({"MECHVIS_RANK": str(rank), "MECHVIS_WORLD_SIZE": str(size)})
            signal.alarm(200)
            code = 1
            try:
                what()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return children

def codes(children):
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

for way in WAYS:
    assert codes(fork(2, lambda: work(f"{way}-two", way, slow=0.005))) == [0, 0]
    children = fork(2, lambda: work(f"{way}-killed", way, slow=0.02))
    while len(list((root / f"{way}-killed").rglob("images-*.json"))) < 5:
        assert time.monotonic() - started < 150
        time.sleep(0.001)
    os.kill(children[0], signal.SIGKILL)
    assert codes(children) == [-9, 0]

for way in WAYS:
    whole = work(f"{way}-alone", way)
    once = computed(f"{way}-alone")
    assert len(once) == len(set(once)) > 8, once
    assert computed(f"{way}-two") == once, "a piece twice, or none"
    assert len(computed(f"{way}-killed")) - len(once) in (0, 1)
    for out in (f"{way}-two", f"{way}-killed"):
        assert lines(out).count("saved") == 1, "one saves"
        for name in ("curve", "evaluation", "controls", "images", "scores/table", "scores/images"):
            mine, theirs = (root / folder / f"{name}.parquet" for folder in (out, f"{way}-alone"))
            assert mine.read_bytes() == theirs.read_bytes(), name
        found = load_study(root / out)
        assert found.summary() == whole.summary() and found.chosen == ("L1H1",)
        assert found.stability == whole.stability and found.certificate == whole.certificate
        assert not [path for path in (root / out).rglob("*") if path.suffix in (".claim", ".clock")]
print("all done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="ranks are forked")
def test_scores_are_shared_and_a_death_costs_one_piece(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(textwrap.dedent(RANKS))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
    assert "all done" in done.stdout


def test_by_command(tmp_path):
    words = ["cigma", "--model", "scenes-vit", "--images", "scenes:60", "--certified", "--top", "2", "--no-sensitivity"]
    words += ["--out", str(tmp_path / "s"), "--launch", "local:2", "--save-model", str(tmp_path / "pruned")]
    done = subprocess.run(
        [sys.executable, "-m", "mechvis", *words],
        capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("With probability 0.95 none of the 2 returned units") == 1, "one process prints"
    assert (tmp_path / "s" / "report.html").is_file() and (tmp_path / "pruned" / "model.safetensors").is_file()
