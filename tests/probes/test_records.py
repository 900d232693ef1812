"""Every record that knows more than its tables opens as itself: `mechvis report` and `load_record` find its class."""

import importlib
import pkgutil
import sys
from importlib.metadata import entry_points

import polars as pl
import pytest

import mechvis.decompose.terms  # noqa: F401
import probes
import sae
from mechvis.record import Record, load_record


def kinds():
    for package in (probes, sae, sys.modules["mechvis.decompose"]):  # `mechvis.decompose` itself is the function
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    found, left = {}, [Record]
    while left:
        children = left.pop().__subclasses__()
        left += children
        found |= {child.KIND: child for child in children if child.__module__.startswith(("probes", "sae", "mechvis"))}
    return found


def test_every_kind_is_registered_once_and_under_its_name():
    registered = {point.name: point.load() for point in entry_points(group="mechvis.records")}
    assert kinds() == registered
    assert all(name.replace("_", "").isalnum() and name == name.lower() for name in registered)


def test_a_folder_opens_as_its_own_class(tmp_path):
    from probes.timeline import Timeline

    table = pl.DataFrame({"group": ["all"], "n": [1]})
    Timeline(title="t", tables={"timeline": table}).save(tmp_path / "t")
    assert type(load_record(tmp_path / "t")) is Timeline
    Record(kind="something", title="t", tables={"one": table}).save(tmp_path / "s")
    assert type(load_record(tmp_path / "s")) is Record


@pytest.mark.parametrize("name", [name for name in probes.__all__ if not name[0].isupper()])
def test_public_names_are_what_they_say(name):
    assert getattr(probes, name).__name__.rpartition(".")[2] == name
