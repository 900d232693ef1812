"""Claims: one owner at a time, void when the owner is gone, nothing left behind."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from mechvis.parallel.claims import Claims


def gone() -> int:
    """Number of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def plant(claims: Claims, name: str, host: str, process: object, age: float = 0.0) -> None:
    claims.path(name).write_text(json.dumps({"host": host, "process": process}))
    when = time.time() - age
    os.utime(claims.path(name), (when, when))


def test_one_owner(tmp_path):
    with Claims(tmp_path) as mine, Claims(tmp_path) as theirs:
        assert mine.take("a")
        assert not theirs.take("a") and not theirs.void("a")
        assert theirs.take("b")
        assert mine.owner("a") == f"process {os.getpid()} on {socket.gethostname()}"
        mine.release("a")
        assert theirs.take("a")
    assert list(tmp_path.iterdir()) == []


def test_given_back_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), Claims(tmp_path) as claims:
        claims.take("a")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    assert not any(thread.name == "mechvis claims" for thread in threading.enumerate())


def test_a_dead_process_of_this_machine(tmp_path, caplog):
    with Claims(tmp_path) as claims:
        plant(claims, "a", socket.gethostname(), gone())
        assert claims.take("a")
        assert "its owner is gone, taking it over" in caplog.text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only /proc tells a zombie")
def test_a_killed_process_that_nobody_has_waited_for(tmp_path):
    zombie = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with Claims(tmp_path) as claims:
        plant(claims, "a", socket.gethostname(), zombie.pid)
        assert not claims.take("a")
        zombie.kill()
        until = time.monotonic() + 10
        while not claims.take("a") and time.monotonic() < until:
            time.sleep(0.01)
        assert "a" in claims.held
    zombie.wait()


@pytest.mark.parametrize("process", [1, os.getpid(), 2**80], ids=["first", "this", "none"])
def test_another_machine_counts_until_it_is_silent(tmp_path, process):
    with Claims(tmp_path, stale=60) as claims:
        plant(claims, "a", "elsewhere", process, age=50)
        assert not claims.take("a")
        plant(claims, "a", "elsewhere", process, age=70)
        assert claims.take("a")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"host": 3}', '{"host": "here", "process": "x"}'])
def test_a_claim_that_cannot_be_read_counts_by_its_age(tmp_path, content):
    with Claims(tmp_path, stale=60) as claims:
        claims.path("a").write_text(content)
        assert not claims.take("a")
        assert claims.owner("a") == "another process"
        os.utime(claims.path("a"), (1, 1))
        assert claims.take("a")


@pytest.mark.parametrize("links", [True, False], ids=["", "no hard links here"])
def test_a_claim_has_its_owner_from_the_first_instant(tmp_path, monkeypatch, links):
    """Killed between the two, a process would leave a claim that others wait for until it is old."""
    seen, link = [], os.link

    def linking(source, target):
        if not links:
            raise OSError(95, "Operation not supported")
        link(source, target)
        seen.append(json.loads(target.read_text()))

    monkeypatch.setattr(os, "link", linking)
    with Claims(tmp_path) as claims:
        assert claims.take("a") and not claims.take("a")
        assert seen == [{"host": socket.gethostname(), "process": os.getpid()}] * links
        assert claims.owner("a") == f"process {os.getpid()} on {socket.gethostname()}"
    assert list(tmp_path.iterdir()) == []


def test_force(tmp_path, caplog):
    with Claims(tmp_path) as mine, Claims(tmp_path) as theirs:
        mine.take("a")
        assert theirs.take("a", force=True)
        assert "is too slow" in caplog.text


def test_signs_of_life(tmp_path):
    with Claims(tmp_path, stale=60, beat=0.02) as claims:
        claims.take("a")
        os.utime(claims.path("a"), (1, 1))
        until = time.monotonic() + 10
        while claims.path("a").stat().st_mtime < 2 and time.monotonic() < until:
            time.sleep(0.01)
        with Claims(tmp_path, stale=60) as theirs:
            assert not theirs.take("a")
        claims.remove("a")  # somebody found the piece finished
        time.sleep(0.05)
        claims.release("a")


def test_only_one_of_many_takes_over(tmp_path):
    """Not promised in every instant, but the usual case: the others see the new claim."""
    with Claims(tmp_path) as first:
        plant(first, "a", socket.gethostname(), gone())
        assert first.take("a")
        for _ in range(5):
            with Claims(tmp_path) as other:
                assert not other.take("a")
