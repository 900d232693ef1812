"""Causal structure: which parts of a model cause a behaviour, tested by intervening.

Here now: head-ablation studies (CIGMA with guards, controls and comparators) and pruning.
"""

import importlib

_HOME = {
    "cigma": "circuits.cigma",
    "Study": "circuits.study",
    "load_study": "circuits.study",
    "prune": "circuits.prune",
    "save_pruned": "circuits.prune",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value  # over a module of the same name (circuits.cigma): the function is what users mean
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
