"""Public names of a package: imported when first used, and a function wins over the module of its name.

`mechvis.sweep` is a function in the module `mechvis/sweep.py`. Python puts the *module* on the package whenever anybody
imports it first, after which `mechvis.sweep(...)` would fail. A package that calls :func:`publish` puts the function
there instead, whatever was imported in which order.
"""

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType


def publish(package: str, home: Mapping[str, str], modules: tuple[str, ...] = ()) -> list[str]:
    """Make public names available on a package without importing their modules yet.

    Args:
        package: its import name.
        home: public name -> module that defines it.
        modules: sub-modules that are public as such.

    Returns:
        The public names, for `__all__`.
    """

    class Package(ModuleType):
        def __setattr__(self, name: str, value: object) -> None:
            if isinstance(value, ModuleType) and name in home and value.__name__ == f"{package}.{name}":
                if home[name] != value.__name__:
                    return  # the public thing of this name lives elsewhere: found when first asked for
                value = getattr(value, name)
            super().__setattr__(name, value)

        def __getattr__(self, name: str) -> object:
            if name in home:
                value = getattr(importlib.import_module(home[name]), name)
                setattr(self, name, value)
                return value
            if name in modules:
                return importlib.import_module(f"{package}.{name}")
            raise AttributeError(f"module {package!r} has no attribute {name!r}")

        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *home, *modules})

    sys.modules[package].__class__ = Package
    return sorted([*home, *modules])
