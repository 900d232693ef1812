"""nnsight over canonical names, in a process of its own: its import changes a process for good (see traces.py)."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

TRACES = Path(__file__).with_name("traces.py")
CHECKS = re.findall(r"^def (check_\w+)", TRACES.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def outcome():
    done = subprocess.run([sys.executable, TRACES], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("check", CHECKS)
def test_trace(outcome, check):
    assert outcome[check] == "passed", outcome[check]


def test_nnsight_stays_out_until_it_is_asked_for():
    code = """
import sys, torch
import mechvis
from mechvis import edits
model = mechvis.load("scenes-vit")
pixels = torch.zeros(1, 3, *model.parts.image_size)
model.run(pixels, edits=[edits.zero("blocks.0.attn.hook_z", heads=[1])], capture="*")
model.run_with_cache(pixels)
backward, bridge = torch.Tensor.backward, mechvis.interop.nnsight
assert "nnsight" not in sys.modules and not hasattr(3, "save")
bridge.trace(model)
assert "nnsight" in sys.modules and torch.Tensor.backward is not backward
import beartype, jaxtyping  # beartype could not be imported after nnsight if trace had not done so before
print("late")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "late", done.stderr[-2000:]


def test_without_nnsight_the_error_says_what_to_install():
    code = """
import sys, mechvis
sys.modules["nnsight"] = None
from mechvis.interop.nnsight import trace
try:
    trace(mechvis.load("scenes-vit"))
except mechvis.errors.MissingPackage as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert "pip install 'nnsight" in done.stdout, done.stderr[-2000:]
