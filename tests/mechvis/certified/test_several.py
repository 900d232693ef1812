"""Several processes for one certified top-K: the bytes that one gives, and a death costs the piece it was at."""

import os
import subprocess
import sys
import textwrap

import pytest

from mechvis import cli
from mechvis.testing import tiny, tiny_preprocess

# Ranks are forks of one process that has imported everything; it computes itself only at the very end (a fork of a
# process that has used polars hangs).
RANKS = """
import os, signal, sys, time, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
import mechvis
from mechvis import engine, testing
from mechvis.certified import first_order
from mechvis.certified.top import certified_top
from mechvis.errors import ResultMismatch
from mechvis.results import Result
from mechvis.wave import bytes_per_row

model = mechvis.load(testing.tiny("vit"), preprocess=testing.tiny_preprocess())
pixels = testing.tiny_input("vit", n=400)
root = Path(sys.argv[1])
budget = 100 * sum(bytes_per_row(model.parts, 4))
first_order.BATCH = 16
inner, gradients = engine._with_back_off, first_order._estimate
started = time.monotonic()

def work(out, slow=0.0, **more):
    def note(text):
        with (root / f"{out}.log").open("a") as log:
            log.write(text + chr(10))
        time.sleep(slow)
    def counted(job, piece, *arguments):
        note(f"{job.plan['round']:02d}/{piece.name}")
        return inner(job, piece, *arguments)
    def estimated(prepared, part):
        note(f"gradients {part.tolist()}")
        return gradients(prepared, part)
    engine._with_back_off, first_order._estimate = counted, estimated
    settings = {"top": 3, "eps": 0.02, "audit": 0.2, "tails": "student", "control": True, "control_images": 200}
    return certified_top(model, pixels, out=root / out, budget=budget, progress=False, **{**settings, **more})

def computed(out):
    return (root / f"{out}.log").read_text().splitlines()

def finished(out):
    return len(list((root / out).rglob("images-*.json")))

def until(condition):
    while not condition():
        assert time.monotonic() - started < 200
        time.sleep(0.001)

def fork(size, what):
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ.update({"MECHVIS_RANK": str(rank), "MECHVIS_WORLD_SIZE": str(size)})
            signal.alarm(200)
            code = 1
            try:
                what(rank)
                code = 0
            except ResultMismatch as error:
                assert "another job" in str(error)
                code = 7
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return children

def codes(children):
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

# 1. every rank returns the whole result; each piece of each round is computed once
assert codes(fork(2, lambda rank: work("two", slow=0.002).save(root / f"returned-{rank}"))) == [0, 0]

# 2. one of two is killed in the middle of a round: the other goes on with its pieces, in the same launch
for number, at in enumerate((5, 25)):
    children = fork(2, lambda rank: work(f"killed-{number}", slow=0.01))
    until(lambda: finished(f"killed-{number}") >= at)
    os.kill(children[1 - number], signal.SIGKILL)
    assert sorted(codes(children)) == [-9, 0]

# 3. both are killed, and three go on
children = fork(2, lambda rank: work("resumed", slow=0.01))
until(lambda: finished("resumed") >= 30)
for child in children:
    os.kill(child, signal.SIGKILL)
assert codes(children) == [-9, -9] and not (root / "resumed" / "result.json").exists()
assert codes(fork(3, lambda rank: work("resumed"))) == [0, 0, 0]

# 4. another question is refused on every rank; the same one is answered from what is there
assert codes(fork(2, lambda rank: work("two", eps=0.3))) == [7, 7]
assert codes(fork(2, lambda rank: work("two"))) == [0, 0]

# 5. compared with one process
whole = work("whole")
once = sorted(computed("whole"))
facts = whole.provenance["certificate"]
assert len(facts["rounds"]) >= 3 and len(once) == len(set(once)) > 40, once
assert any(line.startswith("gradients") for line in once)
assert sorted(computed("two")) == once, "a piece twice, or none"
# One survivor does again what the dead one was at; of three that start at once two may (claims save work, no more).
for out, deaths in (("killed-0", 1), ("killed-1", 1), ("resumed", 4)):
    again = len(computed(out)) - len(once)
    print(f"{out}: computed again {again}")
    assert set(computed(out)) == set(once) and 0 <= again <= deaths, out
for out in ("two", "killed-0", "killed-1", "resumed"):
    names = ("table.parquet", "values.safetensors", "images.parquet")
    assert all((root / out / name).read_bytes() == (root / "whole" / name).read_bytes() for name in names), out
    assert Result.load(root / out).provenance["certificate"] == facts
    left = {path.name for path in (root / out).rglob("*") if path.suffix in (".claim", ".clock")}
    assert not left, left
for rank in range(2):
    assert Result.load(root / f"returned-{rank}").table.equals(whole.table)
print("all done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="ranks are forked")
def test_rounds_are_shared_and_a_death_costs_one_piece(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(textwrap.dedent(RANKS))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
    assert "all done" in done.stdout
    print(done.stdout)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A small certified sweep by command, and the folder of what one process makes of it."""
    root = tmp_path_factory.mktemp("several")
    tiny("vit").save_pretrained(root / "model")
    tiny_preprocess().processor.save_pretrained(root / "model")
    words = ["sweep", "--model", str(root / "model"), "--images", "scenes:150:3", "--certified", "--top", "3"]
    words += ["--eps", "0.3", "--budget", "300KB", "--tails", "student"]
    assert cli.main([*words, "--out", str(root / "alone"), "--no-progress"]) == 0
    assert len(list((root / "alone" / "rounds").rglob("*.safetensors"))) > 5
    return words, root / "alone"


@pytest.mark.parametrize("how", ["torchrun", "launch"])
def test_by_command(words, tmp_path, how, monkeypatch):
    words, alone = words
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = [sys.executable, "-m", "mechvis"]
    if how == "torchrun":
        run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "mechvis"]
    out = ["--out", str(tmp_path / "out"), *(["--launch", "local:2"] if how == "launch" else [])]
    done = subprocess.run([*run, *words, *out], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("none of the 3 returned units lies more than 0.3 of it below") == 1, "one process prints"
    assert (tmp_path / "out" / "report.html").is_file()
    for name in ("table.parquet", "values.safetensors", "images.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (alone / name).read_bytes()
