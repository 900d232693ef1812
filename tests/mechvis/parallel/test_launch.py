"""Several processes for one sweep: the bytes that one gives, also after ranks were killed and their number changed."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from mechvis import cli
from mechvis.errors import BadData
from mechvis.parallel import RankFailed, launch, start
from mechvis.parallel.launch import last_words

SAME = ("table.parquet", "values.safetensors", "images.parquet")

# Ranks are forks of one process that has imported everything, so that many launches cost one start. That process itself
# sweeps only at the very end: a fork of one that has used polars hangs.
RANKS = """
import os, random, signal, sys, time, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
import mechvis
from mechvis import engine, testing
from mechvis.errors import ResultMismatch
from mechvis.results import Result
from mechvis.sweep import sweep
from mechvis.wave import bytes_per_row

model = mechvis.load(testing.tiny("vit"), preprocess=testing.tiny_preprocess())
pixels = testing.tiny_input("vit", n=24)
root = Path(sys.argv[1])
budget = 4 * sum(bytes_per_row(model.parts, 4))  # a quarter of the units on one image at a time
PIECES = 24 * 4
inner = engine._with_back_off
started = time.monotonic()

def work(out, slow=0.0, **more):
    def counted(job, piece, *arguments):
        with (root / f"{out}.log").open("a") as log:
            log.write(piece.name + chr(10))
        time.sleep(slow)
        return inner(job, piece, *arguments)
    engine._with_back_off = counted
    settings = {"edit": "resample", "metric": ["logit_diff", "js"], "budget": budget, "progress": False}
    return sweep(model, pixels, out=root / out, **{**settings, **more})

def computed(out):
    return (root / f"{out}.log").read_text().splitlines()

def finished(out):
    return len(list((root / out / "pieces").glob("images-*.json")))

def until(condition):
    while not condition():
        assert time.monotonic() - started < 120
        time.sleep(0.001)

def fork(size, what):
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ.update({"MECHVIS_RANK": str(rank), "MECHVIS_WORLD_SIZE": str(size)})
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

# 1. every rank returns the whole table; each piece is computed once
assert codes(fork(3, lambda rank: work("three", slow=0.002).save(root / f"returned-{rank}"))) == [0, 0, 0]

# 2. one of three is killed: the others do its pieces, in the same launch
children = fork(3, lambda rank: work("one-killed", slow=0.01))
until(lambda: finished("one-killed") >= 20)
os.kill(children[1], signal.SIGKILL)
assert codes(children) == [0, -9, 0]

# 3. all are killed, twice, and each time another number goes on
random.seed(0)
deaths = 0
for size, goal in ((3, 15), (2, 40)):
    children = fork(size, lambda rank: work("all-killed", slow=0.01))
    until(lambda: finished("all-killed") >= goal)
    for child in children:
        time.sleep(random.random() * 0.01)  # anywhere in a piece, the write of it included
        os.kill(child, signal.SIGKILL)
    assert codes(children) == [-9] * size, "finished before it was killed"
    deaths += size
assert finished("all-killed") < PIECES and not (root / "all-killed" / "result.json").exists()
assert codes(fork(4, lambda rank: work("all-killed"))) == [0] * 4

# 4. the same launch twice at the same time
twice = [fork(2, lambda rank: work("twice", slow=0.002)) for _ in range(2)]
assert codes(twice[0] + twice[1]) == [0] * 4

# 5. another job is refused on every rank, and a finished one is not computed again
assert codes(fork(2, lambda rank: work("twice", edit="zero"))) == [7, 7]
assert codes(fork(3, lambda rank: work("twice"))) == [0, 0, 0]

# 6. other jobs in other folders, one per rank: each is done and saved by the rank that was asked
assert codes(fork(2, lambda rank: work(f"own-{rank}"))) == [0, 0]

# 7. compared with one process
whole = work("whole")
once = sorted(computed("whole"))
assert len(once) == len(set(once)) == PIECES
for out in ("three", "twice", "own-0", "own-1"):
    assert sorted(computed(out)) == once, f"{out}: a piece twice, or none"
again = {out: len(computed(out)) - PIECES for out in ("one-killed", "all-killed")}
print(f"computed again after 1 and {deaths} deaths: {again}")
# Claims save work and promise no more: of ranks that find the same dead owner at once, several may take its piece. But
# what is finished is not done again.
assert 0 <= again["one-killed"] < PIECES // 2 and 0 <= again["all-killed"] < PIECES, again
for out in ("three", "one-killed", "all-killed", "twice", "own-0", "own-1"):
    names = ("table.parquet", "values.safetensors", "images.parquet")
    assert all((root / out / name).read_bytes() == (root / "whole" / name).read_bytes() for name in names), out
    left = {path.name for path in (root / out / "pieces").iterdir()}
    kept = {f"{name}.{kind}" for name in once for kind in ("json", "safetensors")} | {"plan.json"}
    assert {name for name in left - kept if not name.endswith(".tmp")} == set(), "a claim or a clock was left"
for rank in range(3):
    assert Result.load(root / f"returned-{rank}").table.equals(whole.table)
print("all done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="ranks are forked")
def test_ranks_killed_and_resumed_in_another_number(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(textwrap.dedent(RANKS))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)], capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all done" in done.stdout
    print(done.stdout)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A small sweep by command, and the folder of what one process makes of it."""
    from mechvis.testing import tiny, tiny_preprocess

    root = tmp_path_factory.mktemp("launch")
    tiny("vit").save_pretrained(root / "model")
    tiny_preprocess().processor.save_pretrained(root / "model")
    words = ["sweep", "--model", str(root / "model"), "--images", "scenes:18:3", "--edit", "mean_positional"]
    words += ["--top", "3", "--budget", "100KB"]
    assert cli.main([*words, "--out", str(root / "alone"), "--no-progress"]) == 0
    assert len(list((root / "alone" / "pieces").glob("*.safetensors"))) > 5
    return words, root / "alone"


def same(out: Path, alone: Path) -> bool:
    return all((out / name).read_bytes() == (alone / name).read_bytes() for name in SAME)


def test_torchrun(words, tmp_path):
    words, alone = words
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "mechvis"]
    done = subprocess.run(
        [*torchrun, *words, "--out", str(tmp_path / "out")],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("3 of 12 units") == 1, "one process prints"
    assert (tmp_path / "out" / "report.html").is_file()
    assert same(tmp_path / "out", alone)


def test_local_by_command(words, tmp_path, monkeypatch, capfd):
    words, alone = words
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = ["--out", str(tmp_path / "out"), "--launch", "local:2"]
    assert cli.main([*words, *out]) == 0
    told = capfd.readouterr()
    assert told.out.count("3 of 12 units") == 1
    assert "mean_positional heads" in told.err, "the first one's progress"
    assert same(tmp_path / "out", alone)
    # One refuses, and says why; so do both, and the first to say it ends the launch.
    assert cli.main([*words, *out, "--edit", "zero"]) == 1
    err = capfd.readouterr().err
    assert "of 2 ended with exit code 1:" in err and "holds another job; it differs in" in err
    assert "Traceback" not in err


# what is refused before anything is started


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--launch", "local:2"], "give --out FOLDER"),
        (["--launch", "locl:2", "--out", "x"], "unknown launch 'locl:2'. Nearest: local:2"),
        (["--launch", "local:none", "--out", "x"], "say how many processes, e.g. local:2"),
        (["--launch", "local:0", "--out", "x"], "say how many processes"),
        (["--launch", "slurm:gpu", "--out", "x"], "'gpu' is not name=value"),
        (["--launch", "slurm:nodes=0", "--out", "x"], "nodes is a whole number of at least 1"),
        (["--launch", "local:2", "--certified"], "give --out FOLDER"),
    ],
)
def test_refused(more, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", "--model", "scenes-vit", "--images", "scenes", *more]) == 1
    assert text in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_torchrun_without_a_folder(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["sweep", "--model", "scenes-vit", "--images", "scenes"]) == 1
    assert "give --out FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["MECHVIS_RANK", "TORCHELASTIC_RUN_ID"])
def test_no_launch_in_a_launch(monkeypatch, name):
    monkeypatch.setenv(name, "0")
    with pytest.raises(BadData, match="one of several already"):
        start(["true"], launch="local:2")


def test_from_python_there_are_no_words():
    from mechvis import commands

    with pytest.raises(BadData, match=r"use mechvis\.parallel\.start"):
        commands.sweep(model="scenes-vit", images="scenes", out=Path("x"), launch="local:2")


# how processes end


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def test_every_process_knows_its_rank(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = f"""
        import os
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        numbers = [os.environ["MECHVIS_" + name] for name in names] + [os.environ["OMP_NUM_THREADS"]]
        open({str(tmp_path)!r} + "/" + numbers[0], "w").write(" ".join(numbers))
    """
    assert start(python(code), launch="local:3") == []
    threads = max(1, launch._cores() // 3)
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == [f"{r} 3 {r} 3 {threads}" for r in range(3)]


def test_the_first_output_is_shown_and_the_others_are_not(capfd):
    start(python("import os, sys; print('said', os.environ['MECHVIS_RANK']); print('told', file=sys.stderr)"),
          launch="local:2")  # fmt: skip
    told = capfd.readouterr()
    assert told.out == "said 0\n" and told.err == "told\n"


WAIT = "import os, sys, time; rank = int(os.environ['MECHVIS_RANK']); "


def test_an_error_ends_all_and_is_told():
    code = WAIT + "sys.exit('reading\\nerror: image 3 is broken\\nsecond line') if rank == 1 else time.sleep(60)"
    began = time.monotonic()
    with pytest.raises(RankFailed, match=r"^process 1 of 3 ended with exit code 1: image 3 is broken\nsecond line$"):
        start(python(code), launch="local:3")
    assert time.monotonic() - began < 15


def test_a_killed_process_ends_all_and_is_told():
    code = WAIT + "os.kill(os.getpid(), 9) if rank == 1 else time.sleep(60)"
    with pytest.raises(RankFailed, match=r"process 1 of 2 was killed by signal 9 \(SIGKILL\), perhaps for want of mem"):
        start(python(code), launch="local:2")


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_stopping_stops_all(tmp_path, which, monkeypatch):
    """Those who do not listen are killed."""
    monkeypatch.setattr(launch, "GRACE", 1.0)
    deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN) if rank else None; "
    code = WAIT + deaf + f"open({str(tmp_path)!r} + f'/{{rank}}', 'w').write(str(os.getpid())); time.sleep(60)"

    def stop():
        until = time.monotonic() + 20
        while not all((tmp_path / str(rank)).exists() for rank in range(2)) and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(os.getpid(), which)

    # Where the tests run in the background of a shell, it has them ignore Ctrl-C.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            start(python(code), launch="local:2")
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert signal.getsignal(signal.SIGTERM) is before
    for rank in range(2):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / str(rank)).read_text()), 0)


def test_a_program_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        start(["no-such-program"], launch="local:2")


def test_last_words():
    assert last_words("") == ""
    assert last_words("10%\r20%\rerror: a\nb\n") == "a\nb"
    assert last_words("error: first\nerror: last") == "last"
    assert last_words("\n".join(map(str, range(30)))).splitlines() == [str(i) for i in range(15, 30)]
