"""The one rule: what runs where, and what it says when it cannot."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mechvis.errors import MissingPackage, MixedDevices, UnknownName
from mechvis.kernels import dispatch

ROOT = Path(__file__).parents[3]


def tensor(device="cpu", dtype=torch.float32):
    """A tensor without memory, so that a CUDA one needs no CUDA."""
    with FakeTensorMode():
        return torch.ones(2, device=device, dtype=dtype)


@pytest.fixture(autouse=True)
def _unset(monkeypatch):
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.setattr(dispatch, "installed", lambda: True)


def test_unset_follows_the_tensors(monkeypatch):
    assert dispatch.choose("op", tensor()) == "naive"
    assert dispatch.choose("op", tensor("cuda:0"), None, tensor("cuda:0", torch.bfloat16)) == "triton"
    assert dispatch.choose("op", tensor("cuda:0"), tensor("cuda:1")) == "naive"
    assert dispatch.choose("op", tensor("cuda:0", torch.float64)) == "naive"
    monkeypatch.setattr(dispatch, "installed", lambda: False)
    assert dispatch.choose("op", tensor("cuda:0")) == "naive"


def test_either_can_be_forced(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "naive")
    assert dispatch.choose("op", tensor("cuda:0")) == "naive"
    monkeypatch.setenv(dispatch.VARIABLE, " Triton ")
    assert dispatch.choose("op", tensor("cuda:0")) == "triton"
    monkeypatch.setattr(dispatch, "_interpreted", lambda: True)
    assert dispatch.choose("op", tensor()) == "triton"


def test_what_is_forced_but_impossible_is_an_error(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    monkeypatch.setattr(dispatch, "_interpreted", lambda: False)
    with pytest.raises(MixedDevices, match=r"asks op for its Triton kernel, but the tensors are on cpu.*INTERPRET=1"):
        dispatch.choose("op", tensor())
    with pytest.raises(MixedDevices, match=r"float64 on cuda:0.*bfloat16, float16, float32"):
        dispatch.choose("op", tensor("cuda:0", torch.float64))
    with pytest.raises(MixedDevices, match="on cpu, cuda:0"):
        dispatch.choose("op", tensor("cuda:0"), tensor())
    monkeypatch.setattr(dispatch, "installed", lambda: False)
    with pytest.raises(MissingPackage, match=r"pip install 'mechvis\[kernels\]'"):
        dispatch.choose("op", tensor("cuda:0"))


def test_another_word_is_an_error(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "tritn")
    with pytest.raises(UnknownName, match=r"unknown value of MECHVIS_KERNELS 'tritn'. Nearest: triton"):
        dispatch.choose("op", tensor())


def test_kernel_files_import_without_triton_and_nothing_imports_triton_unasked():
    code = (
        "import sys, torch; held = 'triton' in sys.modules; import mechvis.plan, mechvis.kernels\n"
        "assert held or 'triton' not in sys.modules\n"
        "sys.modules['triton'] = None\n"
        "import mechvis.kernels.language as l, importlib\n"
        f"for op in {OPERATIONS}: importlib.import_module(f'mechvis.kernels.{{op}}.triton')\n"
        "print(l.INTERPRETED)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


OPERATIONS = sorted(path.parent.name for path in (ROOT / "mechvis" / "kernels").glob("*/triton.py"))
