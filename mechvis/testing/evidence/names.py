"""Planted variants by name, and the two suites that they make up."""

import importlib

from mechvis.errors import unknown
from mechvis.testing.evidence.task import Variant

VARIANTS: dict[str, str] = {
    "object": "object:Object",
    "redundant": "redundant:Redundant",
    "shortcut": "shortcut:Shortcut",
    "class_specific": "class_specific:ClassSpecific",
    "two_heads": "two_heads:TwoHeads",
}
"""Name -> file and class in `mechvis.testing.evidence.variants`: suite B."""


def variant(name: str | Variant) -> Variant:
    """A trained variant by its name.

    Raises:
        UnknownName: with the nearest names.

    Example:
        >>> variant("object").CLASSES
        ('ring', 'plus', 'cross', 'bars')
    """
    if isinstance(name, Variant):
        return name
    if name not in VARIANTS:
        raise unknown("planted variant", name, VARIANTS)
    module, kind = VARIANTS[name].split(":")
    return getattr(importlib.import_module(f"mechvis.testing.evidence.variants.{module}"), kind)()
