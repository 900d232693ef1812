"""F16, with images as an image set too, and tiny models of several families."""

import numpy as np
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.data.images import ImageSet
from mechvis.data.preprocess import Preprocess
from mechvis.testing.planted import path_images, path_net, wrapped


def _as_made(images, **settings):
    return {"pixel_values": (torch.from_numpy(np.stack(images)).double().permute(0, 3, 1, 2) - 128) / 32}


PREPROCESS = Preprocess(processor=_as_made, height=1, width=1, mean=(0.0,) * 5, std=(1.0,) * 5, source="made here")


@pytest.fixture(scope="session")
def net():
    return path_net()


@pytest.fixture(scope="session")
def images():
    return path_images()


@pytest.fixture(scope="session")
def reference():
    return path_images(400, seed=9)


@pytest.fixture(scope="session")
def seeing_net(net):
    """F16 with an image processor, for image sets."""
    return wrapped(net.bare, "path with images", class_names=("a", "b", "c"), preprocess=PREPROCESS)


@pytest.fixture(scope="session")
def image_set():
    """Inputs of F16, multiples of 1/32, as an image set of bytes: (pixels, labels, name) -> ImageSet."""

    def made(pixels, labels, name):
        drawn = (pixels * 32 + 128).permute(0, 2, 3, 1).to(torch.uint8).numpy()
        return ImageSet(
            name=name,
            ids=tuple(f"{name}/{i}" for i in range(len(drawn))),
            read=drawn.__getitem__,
            rows=np.arange(len(drawn)),
            labels=np.asarray(labels),
            class_names=("a", "b", "c"),
            preprocess=PREPROCESS,
        )

    return made


@pytest.fixture(scope="session")
def tiny():
    """Wrapped tiny models in float64, by family."""
    known = {}

    def made(family):
        if family not in known:
            bare = testing.tiny(family, dtype=torch.float64)
            known[family] = mechvis.load(bare, preprocess=testing.tiny_preprocess())
        return known[family]

    return made
