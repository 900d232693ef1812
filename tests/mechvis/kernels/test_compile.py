"""The kernels compile for GPUs, as launched. Needs Triton, but no GPU: whether they are fast, only one can say."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHARED_OF_SMALL_GPUS = 99 * 1024


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_every_kernel_compiles_for_gpus(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / "compile_kernels.py")],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": _with_root(environment)},
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    kernels = {"_every_slot", "_targets_only", "_sum_per_entry", "_rows_and_norm", "_to_rows", "_attend", "_contract"}
    kernels |= {"_decode", "_pairs", "_segments", "_topk", "_adam"}
    assert {line["kernel"] for line in found} == kernels
    assert {line["target"] for line in found} == {80, 90}
    assert all(line["cubin"] > 0 for line in found)
    too_large = [line for line in found if line["shared"] > SHARED_OF_SMALL_GPUS]
    assert not too_large, "more shared memory than compute capability 8.6 has"


def _with_root(environment):
    return os.pathsep.join([str(HERE.parents[2]), *filter(None, [environment.get("PYTHONPATH")])])
