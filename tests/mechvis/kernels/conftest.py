"""Every test here that takes `twin` runs the plain twin and the Triton kernel: on a GPU where there is one, else in
Triton's interpreter, which must be asked for before Triton is imported."""

import importlib.util
import os
import sys

import pytest
import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
if HAS_TRITON and not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ.setdefault("TRITON_INTERPRET", "1")


def _triton_runs() -> bool:
    if not HAS_TRITON:
        return False
    from mechvis.kernels.language import INTERPRETED

    return INTERPRETED or torch.cuda.is_available()


@pytest.fixture(params=["naive", "triton"])
def twin(request, monkeypatch):
    """Which twin the dispatch rule is told to take."""
    if request.param == "triton" and not _triton_runs():
        pytest.skip("triton is not installed, or was imported before it could be asked to interpret")
    monkeypatch.setenv("MECHVIS_KERNELS", request.param)
    return request.param


@pytest.fixture
def device(twin):
    """Where the twin's tensors live."""
    return "cuda" if twin == "triton" and torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """Fresh memory is full of NaN, so that an output nobody wrote cannot look right by chance."""

    def poisoned(make):
        def made(*args, **kwargs):
            fresh = make(*args, **kwargs)
            return fresh.fill_(float("nan")) if fresh.is_floating_point() else fresh

        return made

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
