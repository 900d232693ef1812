"""Models whose edits have a known outcome: a backup head, an OR of two heads, F2 with its images, a tiny ViT."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.data.images import ImageSet
from mechvis.data.preprocess import Preprocess
from mechvis.testing.planted import WiredViT, wrapped

EVIDENCE, MARKER, ANSWER, SPOKEN, LOUD = range(5)
CHANNELS = 2


def _as_made(images, **settings):
    pixels = torch.from_numpy(np.stack(images)).double().permute(0, 3, 1, 2).contiguous()
    return {"pixel_values": pixels / torch.tensor([127.0, 1.0], dtype=torch.float64)[:, None, None]}


PREPROCESS = Preprocess(
    processor=_as_made, height=1, width=2, mean=(0.0,) * CHANNELS, std=(1.0,) * CHANNELS, source="made here"
)


def image_set(n, seed, name):
    """Two patches: the first is read, the second carries evidence between -1 and 1, whose sign is the class. Drawn as
    bytes; the preprocessing makes 0 to 2 of them, and the models' embedding takes one off."""
    drawn = np.random.default_rng(seed).integers(0, 127, n)
    label = np.random.default_rng(seed + 1).integers(0, 2, n)
    evidence = np.where(label == 1, 127 + 1 + drawn, 127 - 1 - drawn)
    pixels = np.zeros((n, 1, 2, CHANNELS), dtype=np.uint8)
    pixels[:, 0, 1, 0], pixels[:, 0, 1, 1] = evidence, 1
    return ImageSet(
        name=name,
        ids=tuple(f"{name}/{i}" for i in range(n)),
        read=pixels.__getitem__,
        rows=np.arange(n),
        labels=label,
        class_names=("minus", "plus"),
        groups=np.where(drawn > 60, "far", "near"),
        preprocess=PREPROCESS,
    )


@torch.no_grad()
def backup_net(share=0.6, title="backup"):
    """P (L0H0) copies the evidence of patch 1 to the read-out of patch 0, and says that it has spoken. R (L1H1) copies
    the same evidence, `share` of it, but looks at patch 1 only where nobody has spoken. L0H1 is loud and not read."""
    model = WiredViT(channels=CHANNELS, d_model=5, n_layers=2, n_heads=2, d_head=2, n_classes=2, grid=(1, 2))
    model.embedding[0, EVIDENCE] = 1.0
    model.embedding[1, EVIDENCE], model.embedding[1, MARKER] = -1.0, 1.0
    first, loud, second = model.head(0, 0), model.head(0, 1), model.head(1, 1)
    first.q_bias[0], first.k[MARKER, 0] = 1.0, 40.0
    first.v[EVIDENCE, 0], first.o[0, ANSWER] = 1.0, 1.0
    first.v[MARKER, 1], first.o[1, SPOKEN] = 1.0, 1.0
    loud.v_bias[0], loud.o[0, LOUD] = 9.0, 3.0
    # Patch 1 scores 20 where nobody has spoken, and -20 where somebody has.
    second.q_bias[0], second.q[SPOKEN, 0], second.k[MARKER, 0] = 20.0, -40.0, 1.0
    second.v[EVIDENCE, 0], second.o[0, ANSWER] = 1.0, share
    model.readout[ANSWER] = torch.tensor([-2.0, 2.0], dtype=torch.float64)
    return wrapped(model, title, class_names=("minus", "plus"), preprocess=PREPROCESS)


@torch.no_grad()
def or_net():
    """L0H0 and L0H1 both copy the evidence, many times, and the answer goes through tanh: each is enough."""
    model = WiredViT(
        channels=CHANNELS, d_model=5, n_layers=1, n_heads=3, d_head=1, d_mlp=1, n_classes=2, grid=(1, 2),
        activation=torch.nn.Tanh,
    )  # fmt: skip
    model.embedding[0, EVIDENCE] = 1.0
    model.embedding[1, EVIDENCE], model.embedding[1, MARKER] = -1.0, 1.0
    for index in (0, 1):
        head = model.head(0, index)
        head.q_bias[0], head.k[MARKER, 0] = 1.0, 40.0
        head.v[EVIDENCE, 0], head.o[0, ANSWER] = 1.0, 1000.0
    model.head(0, 2).v_bias[0] = 1.0
    model.head(0, 2).o[0, LOUD] = 50.0
    mlp = model.neurons(0)
    mlp.w_in[ANSWER, 0], mlp.w_out[0, SPOKEN] = 1.0, 1.0
    model.readout[SPOKEN] = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    return wrapped(model, "or", class_names=("minus", "plus"), preprocess=PREPROCESS)


@pytest.fixture(scope="session")
def backup():
    return backup_net()


@pytest.fixture(scope="session")
def evidence():
    return image_set(60, 0, "evidence")


@pytest.fixture(scope="session")
def shortcut():
    return testing.shortcut_vit()


@pytest.fixture(scope="session")
def shortcut_sets():
    """Selection and evaluation images of F2, of different names."""
    first = testing.shortcut_images(90, seed=1).image_set()
    second = testing.shortcut_images(200).image_set()
    return replace(first, ids=tuple(f"selection {i}" for i in first.ids)), second


@pytest.fixture(scope="session")
def tiny():
    return mechvis.load(testing.tiny("vit", dtype=torch.float64), preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="session")
def pixels():
    return testing.tiny_input("vit", dtype=torch.float64)


@pytest.fixture(scope="session")
def reference(pixels):
    return torch.randn(7, *pixels.shape[1:], generator=torch.Generator().manual_seed(5), dtype=torch.float64)
