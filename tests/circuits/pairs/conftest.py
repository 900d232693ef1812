"""Bundled scenes and the model that reads them, and a folder-like set of images of several sizes."""

from dataclasses import replace

import numpy as np
import pytest

import mechvis
from mechvis.data.images import ImageSet


@pytest.fixture(scope="session")
def model():
    return mechvis.load("scenes-vit")


@pytest.fixture(scope="session")
def images():
    return mechvis.data.scenes(16, seed=31)


@pytest.fixture(scope="session")
def uneven():
    """Photos of several sizes: a bright rectangle (its mask) on noise."""
    generator = np.random.default_rng(2)
    drawn, masks = [], []
    for i in range(6):
        height, width = 50 + 7 * i, 90 - 6 * i
        image = generator.integers(0, 120, (height, width, 3), dtype=np.uint8)
        mask = np.zeros((height, width), bool)
        mask[10 : 26 + i, 12 : 40 - 2 * i] = True
        image[mask] = (200, 20 + 30 * i, 40)
        drawn.append(image)
        masks.append(mask)
    return ImageSet(
        name="uneven",
        ids=tuple(f"uneven/{i}" for i in range(6)),
        read=drawn.__getitem__,
        rows=np.arange(6),
        labels=np.array([0, 1, 2, 0, 1, 2]),
        class_names=("circle", "square", "star"),
        read_mask=masks.__getitem__,
    )


@pytest.fixture
def without_masks(images):
    return replace(images, read_mask=None)
