"""Every Hugging Face family holds what is promised of it; the page in the documentation shows what was measured."""

from pathlib import Path

import pytest
import torch

from mechvis.files import read_json
from mechvis.testing import check_family, tiny, tiny_families
from mechvis.testing.families import render

DOCS = Path(__file__).resolve().parents[3] / "docs"
SOURCE = "Hugging Face"


@pytest.mark.parametrize("name", tiny_families())
def test_family(name, families_table):
    bare = tiny(name)
    measured = check_family(bare)
    assert {tower.outputs for tower in measured} == {0.0}, "bitwise on a CPU"
    families_table.setdefault(SOURCE, {})[f"{type(bare).__name__} ({name})"] = measured


@pytest.mark.parametrize("name", tiny_families())
def test_family_in_float64(name):
    # Rounding is 2^-52 here: what is left is a mistake in a map.
    check_family(tiny(name, dtype=torch.float64))


@pytest.mark.parametrize("name", tiny_families())
def test_family_with_explicit_attention(name):
    # Upstream's own explicit softmax rounds float64 to float32 in most families; in float32 nothing is lost.
    check_family(tiny(name, attention="eager"))


def test_page_is_drawn_from_the_measurements_and_lists_every_family():
    table = read_json(DOCS / "families.json")
    assert (DOCS / "families.md").read_text(encoding="utf-8") == render(table), "run: make families"
    listed = {name.rpartition("(")[2].rstrip(")") for name in table["sources"][SOURCE]}
    assert listed == set(tiny_families()), "run: make families"
