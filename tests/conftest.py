"""Set-up for every test: one thread, fixed seeds, quiet and reproducible property tests."""

import random

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
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
