"""Killed (SIGKILL) at random moments, the same call goes on and ends with the same bits: weights and log."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")

KILLER = Path(__file__).with_name("killer.py")


def killed(out: Path, kills: int, seed: int) -> dict:
    command = [sys.executable, "-W", "ignore", str(KILLER), str(out), str(kills), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + 30 * kills, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_twenty_kills_leave_the_same_bits(tmp_path):
    found = killed(tmp_path, 20, 0)
    assert found["same"] == found["kills"] == 20
    # The kills did hit runs on their way, not only before the first step or after the last one.
    assert sum(0 < step < 60 for step in found["reached"]) >= 5


@pytest.mark.slow
def test_two_hundred_kills_leave_the_same_bits(tmp_path):
    found = killed(tmp_path, 200, 1)
    assert found["same"] == found["kills"] == 200
