"""Tests of timm, open_clip and torchvision models: they run in the second environment only (`make towers`)."""

import importlib.util

from mechvis.testing.operators import declare_torchvision_operators

PRESENT = all(importlib.util.find_spec(name) for name in ("timm", "open_clip", "torchvision"))

if PRESENT:
    declare_torchvision_operators()
else:
    # No row in SKIPS.md per test: the whole folder belongs to the other environment, and the header says so.
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header():
    if not PRESENT:
        return None
    import open_clip
    import timm
    import torchvision

    return f"second environment: {', '.join(f'{m.__name__} {m.__version__}' for m in (timm, open_clip, torchvision))}"
