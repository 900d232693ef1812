"""Tests beside other libraries of dictionaries: they run in the third environment only (`make peers`)."""

import importlib.util

if importlib.util.find_spec("sae_lens") is None:
    # No row in SKIPS.md per test: the whole folder belongs to the other environment.
    collect_ignore_glob = ["test_*.py"]
