"""Architectures of dictionaries, one per file: settings as a value, how they start, how they encode, what they minimise.

`named("topk")` finds a class by the name that stands in files; `NAMES` lists them all.
"""

import importlib

from mechvis.errors import unknown
from mechvis.lazy import publish
from sae.architecture import Architecture

NAMES = {
    "topk": "sae.architectures.topk:TopK",
    "batch_topk": "sae.architectures.batch_topk:BatchTopK",
}
"""Name in files -> where it is."""

__all__ = [*publish(__name__, {place.split(":")[1]: place.split(":")[0] for place in NAMES.values()}), "NAMES", "named"]


def named(name: str) -> type[Architecture]:
    """The class of an architecture, by its name.

    Raises:
        UnknownName: there is none of this name; names the nearest.
    """
    if name not in NAMES:
        raise unknown("architecture", name, NAMES)
    module, found = NAMES[name].split(":")
    return getattr(importlib.import_module(module), found)
