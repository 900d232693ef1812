"""Tasks with a known circuit, and small random ones, for the searches."""

import pytest
import torch

import mechvis
from circuits.pairs.pairs import Pairs
from circuits.task import task as make_task
from mechvis import testing
from mechvis.testing import planted


def _as_pairs(given):
    return Pairs(
        name=given.name,
        clean=given.clean,
        corrupt=given.corrupt,
        ids=tuple(f"pair {i}" for i in range(len(given))),
        clean_labels=given.clean_labels,
        corrupt_labels=given.corrupt_labels,
    )


def _random_task(family="vit", *, n=4, layers=3, seed=0, dtype=torch.float64, **options):
    bare = testing.tiny(family, dtype=dtype, num_hidden_layers=layers)
    model = mechvis.load(bare, preprocess=testing.tiny_preprocess())
    noise = torch.Generator().manual_seed(seed)
    halves = [torch.randn(n, 3, *model.parts.image_size, generator=noise, dtype=torch.float64) for _ in range(2)]
    clean, corrupt = (half.to(dtype) for half in halves)
    if options.get("ablation", "patch") != "patch":
        if options["ablation"].startswith("mean"):
            options["reference"] = corrupt
        return make_task(model, clean, **options)
    pairs = Pairs(name="noise", clean=clean, corrupt=corrupt, ids=tuple(map(str, range(n))))
    return make_task(model, pairs, max_undistinguished=1.0, **options)


@pytest.fixture(scope="session")
def as_pairs():
    """Planted pairs as the package knows pairs."""
    return _as_pairs


@pytest.fixture(scope="session")
def random_task():
    """Random pixels on a tiny random model."""
    return _random_task


@pytest.fixture(scope="session")
def saturation():
    """F3."""
    return make_task(planted.saturation_net(), _as_pairs(planted.saturation_pairs()))


@pytest.fixture(scope="session")
def cue():
    """P1, pairs that differ in everything."""
    return make_task(planted.cue_lookup(), _as_pairs(planted.cue_pairs("all", 8)))


@pytest.fixture(scope="session")
def cue_active():
    """What P1's pairs must show."""
    return planted.cue_active("all")


@pytest.fixture(scope="session")
def shortcut():
    """F2, where cut edges carry nothing."""
    return make_task(testing.shortcut_vit(), testing.shortcut_images(12).image_set(), ablation="zero")
