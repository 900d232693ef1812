"""Methods by name. A package of one's own adds some under the entry-point group `mechvis.attributions`."""

import importlib
from importlib.metadata import entry_points

from mechvis.attribution.method import Method
from mechvis.errors import unknown

METHODS: dict[str, str] = {
    "act_x_grad": "act_x_grad:ActTimesGrad",
    "random": "controls:RandomMap",
    "centre": "controls:CentrePrior",
    "input_norm": "controls:InputNorm",
}
"""Name -> file and class in `mechvis.attribution.methods`."""


def method(given: str | Method | type[Method]) -> type[Method] | Method:
    """A method's class by its name; a method (or class) as it is.

    Raises:
        UnknownName: with the nearest names.

    Example:
        >>> method("act_x_grad").CLAIMS.signed
        True
    """
    if not isinstance(given, str):
        return given
    if given in METHODS:
        module, name = METHODS[given].split(":")
        return getattr(importlib.import_module(f"mechvis.attribution.methods.{module}"), name)
    others = {point.name: point for point in entry_points(group="mechvis.attributions")}
    if given in others:
        return others[given].load()
    raise unknown("attribution method", given, sorted([*METHODS, *others]))
