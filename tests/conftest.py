"""Set-up for every test: one thread, fixed seeds, quiet and reproducible property tests."""

import importlib.util
import random
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)

if importlib.util.find_spec("torchvision") is not None:
    # The second environment; before anything imports transformers, which looks whether torchvision works.
    from mechvis.testing.operators import declare_torchvision_operators

    declare_torchvision_operators()
hypothesis.settings.register_profile(
    "mechvis",
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("mechvis")


@pytest.fixture(autouse=True, scope="session")
def _run_time_checks_draw_random_numbers(request):
    if request.config.getoption("jaxtyping_packages", None):
        from mechvis.testing import untouched

        untouched.IGNORED = ("rng python",)  # beartype draws which item of a container it looks at


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  what code under test might draw from by mistake
    torch.manual_seed(0)


ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption("--families-table", action="store_true", help="write docs/families.md from what is measured")


def pytest_report_header():
    if importlib.util.find_spec("timm") is None:
        return "tests/towers (timm, open_clip, torchvision models) run in the second environment: make towers"
    return None


@pytest.fixture(scope="session")
def families_table(request):
    """Rows of the table of model families, by source and model, as they are measured."""
    from mechvis.files import read_json, write_text
    from mechvis.testing.families import add_rows, render

    measured, file = {}, ROOT / "docs" / "families.json"
    yield measured
    if request.config.getoption("--families-table"):
        for source, rows in measured.items():
            table = add_rows(file, source, rows)
        write_text(file.with_suffix(".md"), render(table))
        return
    listed = read_json(file)["sources"]
    missing = [name for source, rows in measured.items() for name in rows if name not in listed.get(source, {})]
    assert not missing, f"docs/families.md lacks {missing[:3]}: run make families"
