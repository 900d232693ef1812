"""One harvest by several processes: the bytes that one gives, also after ranks were killed and their number changed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mechvis import cli

# Ranks are forks of one process that has imported everything, so that many launches cost one start. That process itself
# harvests only at the very end: a fork of one that has used polars hangs.
RANKS = """
import importlib, os, random, signal, sys, time, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
import mechvis
from mechvis import testing
from mechvis.errors import ResultMismatch
module = importlib.import_module("mechvis.store.harvest")

model = mechvis.load(testing.tiny("vit"), preprocess=testing.tiny_preprocess())
pixels = testing.tiny_input("vit", n=96)
root = Path(sys.argv[1])
SITES = ["blocks.0.hook_resid_post", "blocks.2.mlp.hook_post", "hook_pooled"]
PIECES = 24
inner = module.Forward.rows
started = time.monotonic()

def work(out, slow=0.0, **more):
    def counted(self, images, *rest, **options):
        with (root / f"{out}.log").open("a") as log:
            log.write(f"{images[0]}" + chr(10))
        time.sleep(slow * random.random())
        return inner(self, images, *rest, **options)
    module.Forward.rows = counted
    module.images_at_once = lambda *_: 2
    settings = {"tokens": "cls,patches:4", "dtype": "bfloat16", "shard": 4 * 5 * 32 * 2, "progress": False}
    return mechvis.harvest(model, pixels, SITES, out=root / out, **{**settings, **more})

def computed(out):
    return sorted(map(int, (root / f"{out}.log").read_text().split()))

def finished(out):
    return len(list((root / out / "pieces").glob("images-*.json")))

def until(condition):
    while not condition():
        assert time.monotonic() - started < 180
        time.sleep(0.001)

def fork(size, what):
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ.update({"MECHVIS_RANK": str(rank), "MECHVIS_WORLD_SIZE": str(size)})
            random.seed(rank)
            signal.alarm(120)
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

# 1. two and three ranks; each returns the whole store
assert codes(fork(2, lambda rank: work("two", slow=0.002).verify())) == [0, 0]
assert codes(fork(3, lambda rank: work("three", slow=0.002).verify())) == [0, 0, 0]

# 2. one of three is killed: the others do its pieces, in the same launch
children = fork(3, lambda rank: work("one-killed", slow=0.02))
until(lambda: finished("one-killed") >= 6)
os.kill(children[1], signal.SIGKILL)
assert codes(children) == [0, -9, 0]

# 3. killed at random moments again and again, each time another number goes on
random.seed(int(sys.argv[2]))
deaths, folder = 0, root / "all-killed"
for size, goal in ((1, 2), (3, 6), (2, 10), (4, 14)):
    children = fork(size, lambda rank: work("all-killed", slow=0.01))
    until(lambda: finished("all-killed") >= goal)
    for child in children:
        time.sleep(random.random() * 0.01)  # anywhere in a piece, the writes of it included
        os.kill(child, signal.SIGKILL)
    assert codes(children) == [-9] * size, "finished before it was killed"
    deaths += size
assert finished("all-killed") < PIECES and not (folder / "store.json").exists()
left = len(list(folder.glob("shards/*/.*.tmp")))
assert codes(fork(3, lambda rank: work("all-killed").verify())) == [0] * 3

# 4. the same launch twice at the same time; another job is refused by every rank; a finished one is left alone
twice = [fork(2, lambda rank: work("twice", slow=0.002)) for _ in range(2)]
assert codes(twice[0] + twice[1]) == [0] * 4
assert codes(fork(2, lambda rank: work("twice", tokens="cls"))) == [7, 7]
before = computed("twice")
assert codes(fork(3, lambda rank: work("twice"))) == [0, 0, 0] and computed("twice") == before

# 5. compared with one process
whole = work("whole")
once = computed("whole")
assert once == list(range(0, 96, 2)) and len(whole.paths()) == PIECES * 3
for out in ("two", "three", "twice"):
    # Claims save work and promise nothing: in a rare instant two ranks do one piece (two batches).
    assert sorted(set(computed(out))) == once and len(computed(out)) <= len(once) + 2, out
again = {out: len(computed(out)) - len(once) for out in ("one-killed", "all-killed")}
print(f"batches computed again after 1 and {deaths} deaths: {again}; half-written files swept away: {left}")
# A rank holds the piece it is at and the one it reads ahead for; of the latter nothing has been computed.
assert 0 <= again["one-killed"] <= 4 and 0 < again["all-killed"] <= 2 * deaths
for out in ("two", "three", "one-killed", "all-killed", "twice"):
    store = mechvis.store.open(root / out)
    assert store.fingerprint == whole.fingerprint
    for path in whole.paths():
        assert (root / out / path.relative_to(root / "whole")).read_bytes() == path.read_bytes(), (out, path.name)
    assert (root / out / "images.parquet").read_bytes() == (root / "whole" / "images.parquet").read_bytes()
    strange = [p.name for p in (root / out).rglob("*") if p.suffix in (".claim", ".clock")]
    assert not strange, strange
    assert not list((root / out / "shards").rglob(".*.tmp")), "half-written files were left"
print("all done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="ranks are forked")
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_ranks_killed_and_resumed_in_another_number(tmp_path, seed):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "all done" in done.stdout
    print(done.stdout)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A small harvest by command, and the folder of what one process makes of it."""
    from mechvis.testing import tiny, tiny_preprocess

    root = tmp_path_factory.mktemp("launch")
    tiny("vit").save_pretrained(root / "model")
    tiny_preprocess().processor.save_pretrained(root / "model")
    words = [
        "harvest",
        "--model",
        str(root / "model"),
        "--images",
        "scenes:20:3",
        "--sites",
        "blocks.1.hook_resid_post",
    ]
    words += ["--tokens", "cls,patches:4", "--shard", "1KB"]
    assert cli.main([*words, "--out", str(root / "alone"), "--no-progress"]) == 0
    return words, root / "alone"


def same(out: Path, alone: Path) -> bool:
    files = sorted(path.relative_to(alone) for path in (alone / "shards").rglob("*.safetensors"))
    assert len(files) > 5 and files == sorted(p.relative_to(out) for p in (out / "shards").rglob("*.safetensors"))
    return all((out / name).read_bytes() == (alone / name).read_bytes() for name in (*files, "images.parquet"))


def test_torchrun(words, tmp_path):
    words, alone = words
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "mechvis"]
    done = subprocess.run(
        [*torchrun, *words, "--out", str(tmp_path / "out")],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("100 rows of [d_model=16]") == 1, "one process prints"
    assert same(tmp_path / "out", alone)


def test_local_by_command(words, tmp_path, monkeypatch, capfd):
    words, alone = words
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = ["--out", str(tmp_path / "out"), "--launch", "local:2"]
    assert cli.main([*words, *out]) == 0
    told = capfd.readouterr()
    assert told.out.count("100 rows of [d_model=16]") == 1 and "harvest:" in told.err
    assert same(tmp_path / "out", alone)
    assert cli.main([*words, *out, "--dtype", "float16"]) == 1
    assert "holds another job; it differs in: " in capfd.readouterr().err
