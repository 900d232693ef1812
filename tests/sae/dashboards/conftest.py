"""A model, images and a dictionary whose every code is known.

Each image is black but for one patch of one colour. At `hook_embed` a patch is linear in its pixels, so a direction can
be solved for that is 1 on full red and 0 on the other colours, every black patch and CLS: the code is the brightness.
"""

import numpy as np
import pytest
import torch

import mechvis
import sae
from mechvis import testing
from mechvis.data.images import ImageSet
from sae.architectures.relu import ReLU

SITE = "hook_embed"
COLOURS = ("red", "green", "blue")
CLS, SILENT = 3, 4
"""Latents after those of the three colours: one that fires on CLS alone, and one that never does."""
N = 24


def planted_images(names=COLOURS, ids=None, groups=("even", "odd")) -> ImageSet:
    def read(i):
        image = np.zeros((12, 12, 3), np.uint8)
        row, column = divmod(i % 9, 3)
        image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4, i % 3] = brightness(i)
        return image

    return ImageSet(
        name="patches",
        ids=tuple(f"image {i}" for i in range(N)) if ids is None else ids,
        read=read,
        rows=np.arange(N),
        labels=np.arange(N) % 3,
        class_names=tuple(names),
        groups=np.array([groups[i % 2] for i in range(N)]),
        columns={"place": np.array([f"place {i % 9}" for i in range(N)])},
    )


def brightness(i: int) -> int:
    return 30 + 9 * i


@pytest.fixture(scope="session")
def tiny_vit():
    bare = testing.tiny("vit", dtype=torch.float64)
    return mechvis.load(bare, preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="session")
def images():
    return planted_images()


@pytest.fixture(scope="session")
def planted(tiny_vit):
    """The dictionary: red, green, blue, CLS, silent."""

    def embedded(colour):
        image = np.zeros((1, 3, 12, 12)) - 1
        if colour is not None:
            image[:, colour] = 1
        return tiny_vit.run(torch.tensor(image), capture=[SITE]).cache[SITE][0]

    black = embedded(None)
    steps = torch.stack([embedded(c)[1] - black[1] for c in range(3)])
    rows = torch.cat([black, steps])  # CLS, nine black patches, three colours
    wanted = torch.zeros(13, 5, dtype=torch.float64)
    wanted[10:, :3] = torch.eye(3)
    wanted[0, CLS] = 1
    directions = torch.linalg.lstsq(rows, wanted).solution.T
    assert (rows @ directions.T - wanted).abs().max() < 1e-9
    return made(directions, torch.tensor([-1e-6, -1e-6, -1e-6, -1e-6, -9.0]), {SITE: black})


def made(encoder, bias, rows, **more):
    """A dictionary with these weights."""
    d = sae.start(ReLU(n_latents=len(encoder), normalise="none"), rows, **more).double()
    with torch.no_grad():
        d.W_enc.copy_(encoder)
        d.b_enc.copy_(bias)
        d.b_dec.zero_()
    return d


@pytest.fixture(scope="session")
def random_one(tiny_vit, images):
    """Many latents that mean nothing, of the stream after the first block; dense codes with many different values."""
    site = "blocks.0.hook_resid_post"
    rows = tiny_vit.run(images, capture=[site]).cache[site].flatten(0, 1)
    generator = torch.Generator().manual_seed(3)
    encoder = torch.randn(40, 16, generator=generator, dtype=torch.float64)
    bias = -(rows @ encoder.T).quantile(torch.rand(1, generator=generator, dtype=torch.float64)[0] * 0.3 + 0.65, dim=0)
    return made(encoder, bias, {site: rows})
