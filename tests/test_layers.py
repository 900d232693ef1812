"""The four packages build on each other in one direction only, and tests do not shadow them."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_layers_hold():
    program = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_init_below_tests():
    found = [str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("__init__.py")]
    assert not found, "an __init__.py below tests hides the package of the same name: " + ", ".join(found)


def test_every_source_folder_has_typing_marker():
    for package in ("mechvis", "circuits", "probes", "sae"):
        assert (ROOT / package / "py.typed").is_file(), package
