"""Tests of timm, open_clip and torchvision models: they run in the second environment only (`make towers`)."""

import importlib.util

import pytest
import torch

PRESENT = all(importlib.util.find_spec(name) for name in ("timm", "open_clip", "torchvision"))

if not PRESENT:
    # No row in SKIPS.md per test: the whole folder belongs to the other environment, and the header says so.
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header():
    if not PRESENT:
        return None
    import open_clip
    import timm
    import torchvision

    here = [f"{module.__name__} {module.__version__}" for module in (timm, open_clip, torchvision)]
    triton = "with Triton" if importlib.util.find_spec("triton") else "without Triton"
    return f"second environment: {', '.join(here)}, {triton}"


@pytest.fixture
def no_native_path():
    """torch's own attention without a graph rounds in another way; off, upstream is compared bit for bit."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)
