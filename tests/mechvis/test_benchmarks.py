"""The speed that is promised, loosely: the benchmark's own ratios, in its quick form.

The table in `benchmarks/results.md` holds the sharp figures; here only a real loss of speed should show.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_ratios(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks", "--quick", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "results.json").read_text())
    assert (tmp_path / "results.md").read_text().startswith("# Timings side by side")
    targets = [(row, name, goal) for row in found["rows"] for name, goal in row["targets"].items()]
    assert len(targets) == 5 + 2 * 2
    slow = [f"{row['task']}: {row['ratios'][name]:.3f} of {name}" for row, name, goal in targets
            if row["ratios"][name] > 1.25 * goal]  # fmt: skip
    assert not slow


def test_multiply_adds_from_shapes():
    """2529 and 1130 billion for a ViT-B/16, counted by hand elsewhere."""
    from types import SimpleNamespace

    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks.run import multiplications
    finally:
        sys.path.remove(str(ROOT))
    shape = {"num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 768, "intermediate_size": 3072}
    naive, least = multiplications(SimpleNamespace(config=SimpleNamespace(**shape, image_size=224, patch_size=16)))
    assert naive == pytest.approx(2529, rel=1e-3)
    assert least == pytest.approx(1130, rel=1e-3)
