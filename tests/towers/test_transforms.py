"""Chains of image steps as a Preprocess: the library's pixels bit for bit, masks beside their images, other sizes."""

import numpy as np
import open_clip.transform as oc
import pytest
import timm.data
import torch
from PIL import Image
from torchvision import transforms as tv
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from mechvis.data.preprocess import Preprocess
from mechvis.data.transforms import of_transform
from mechvis.errors import BadImages

SHAPES = ((37, 61), (61, 37), (40, 40), (24, 24), (91, 23))
MEAN, STD = (0.48, 0.45, 0.41), (0.27, 0.26, 0.28)


def timm_eval(size=24, **settings):
    config = {"input_size": (3, size, size), "interpolation": "bicubic", "mean": MEAN, "std": STD, **settings}
    return timm.data.create_transform(**config, is_training=False)


def open_clip_eval(size=24, **settings):
    config = {"size": size, "mode": "RGB", "mean": MEAN, "std": STD, **settings}
    return oc.image_transform_v2(oc.PreprocessCfg(**config), is_train=False)


CHAINS = {
    "timm": timm_eval,
    "timm crop 0.9": lambda size=24: timm_eval(size, crop_pct=0.9),
    "timm squash": lambda size=24: timm_eval(size, crop_mode="squash", crop_pct=0.95),
    "timm border": lambda size=24: timm_eval(size, crop_mode="border", crop_pct=1.0),
    "timm lanczos": lambda size=24: timm_eval(size, interpolation="lanczos"),
    "open_clip": open_clip_eval,
    "open_clip squash": lambda size=24: open_clip_eval(size, resize_mode="squash", interpolation="bilinear"),
    "open_clip longest": lambda size=24: open_clip_eval(size, resize_mode="longest", fill_color=9),
    "torchvision preset": lambda size=24: ImageClassification(crop_size=size, resize_size=round(size * 4 / 3)),
    "torchvision v1": lambda size=24: tv.Compose(
        [tv.Resize((size, size)), tv.Compose([tv.ToTensor(), tv.Normalize(MEAN, STD)])]
    ),
    "torchvision v2": lambda size=24: v2.Compose(
        [
            v2.ToImage(),
            v2.Resize(size, interpolation=tv.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(size),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    ),
    "without Normalize": lambda size=24: tv.Compose([tv.Resize(size), tv.CenterCrop(size), tv.ToTensor()]),
}


def images(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]


@pytest.mark.parametrize("name", CHAINS)
def test_pixels_are_the_librarys_own(name):
    chain = CHAINS[name]()
    preprocess = of_transform(chain, source="test")
    assert (preprocess.height, preprocess.width) == (24, 24)
    pixels = preprocess(images())
    assert type(pixels) is torch.Tensor and pixels.dtype == torch.float32
    expected = torch.stack([chain(Image.fromarray(image)).as_subclass(torch.Tensor) for image in images()])
    assert torch.equal(pixels, expected)


@pytest.mark.parametrize("name", CHAINS)
def test_mean_and_deviation_are_those_of_the_chain(name):
    preprocess = of_transform(CHAINS[name]())
    white = np.full((40, 40, 3), 255, np.uint8)
    expected = (1 - torch.tensor(preprocess.mean)) / torch.tensor(preprocess.std)
    # Bicubic interpolation of a constant is that constant only to rounding of 8-bit colours.
    assert torch.allclose(preprocess([white]).mean((0, 2, 3)), expected, atol=1e-3)
    assert torch.allclose(preprocess.unnormalise(preprocess([white])), torch.ones(()), atol=1e-3)


def blobs(shape):
    """A bright rectangle on black and its mask; the edges lie off the image's middle."""
    height, width = shape
    mask = np.zeros(shape, bool)
    mask[height // 4 : height // 2 + 3, width // 3 : width // 3 * 2] = True
    return np.where(mask[..., None], 255, 0).astype(np.uint8).repeat(3, axis=2), mask


@pytest.mark.parametrize("name", CHAINS)
def test_masks_stay_aligned_with_their_images(name):
    preprocess = of_transform(CHAINS[name]())
    for shape in ((37, 61), (61, 37), (120, 96)):
        image, mask = blobs(shape)
        done = preprocess.masks([mask])
        assert done.dtype == torch.bool and done.shape == (1, 24, 24)
        bright = preprocess.unnormalise(preprocess([image]))[0].mean(0) > 0.5
        # Nearest neighbour and interpolation may differ along the edge, by less than one pixel.
        inside, around = bright.clone(), bright.clone()
        for step in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            moved = torch.roll(bright, step, (0, 1))
            inside, around = inside & moved, around | moved
        assert inside.any() and (done[0] >= inside).all() and (done[0] <= around).all(), shape


def test_mask_borders_are_outside():
    preprocess = of_transform(CHAINS["timm border"]())
    mask = preprocess.masks([np.ones((12, 48), bool)])[0]
    assert mask.any(1).sum() == 6 and not mask[0].any()


@pytest.mark.parametrize("name", CHAINS)
def test_other_sizes_are_the_chain_made_for_them(name):
    make = CHAINS[name]
    preprocess = of_transform(make())
    larger = preprocess.at_size(48, 48)
    assert isinstance(larger, Preprocess) and (larger.height, larger.width) == (48, 48)
    assert larger.mean == preprocess.mean and larger.source == preprocess.source
    assert preprocess.at_size(24, 24) is preprocess
    if name not in ("timm", "timm crop 0.9", "timm squash", "timm lanczos"):  # these round; see the next test
        assert torch.equal(larger(images()), of_transform(make(48))(images()))
    assert larger.masks([np.ones((50, 60), bool)]).shape == (1, 48, 48)
    oblong = preprocess.at_size(24, 48)
    assert oblong(images()).shape == (len(SHAPES), 3, 24, 48)
    assert len({preprocess.fingerprint, larger.fingerprint, oblong.fingerprint}) == 3


@pytest.mark.parametrize("name", ["timm", "timm crop 0.9", "timm squash", "timm lanczos"])
def test_a_factory_is_asked_for_other_sizes(name):
    make = CHAINS[name]
    preprocess = of_transform(make(), remake=lambda height, width: make(height))
    assert torch.equal(preprocess.at_size(50, 50)(images()), of_transform(make(50))(images()))
    assert preprocess.at_size(50, 50).at_size(24, 24).fingerprint == preprocess.fingerprint


def test_fingerprint_is_that_of_the_settings():
    assert of_transform(timm_eval()).fingerprint == of_transform(timm_eval()).fingerprint
    others = [timm_eval(interpolation="bilinear"), timm_eval(crop_pct=0.8), timm_eval(mean=(0.5, 0.5, 0.5))]
    assert len({of_transform(chain).fingerprint for chain in [timm_eval(), *others]}) == 4
    assert "0x" not in str(of_transform(open_clip_eval()).settings)  # no address in memory


@pytest.mark.parametrize(
    "chain,message",
    [
        (timm.data.create_transform((3, 24, 24), is_training=True), "draws random numbers"),
        (tv.Compose([tv.RandomHorizontalFlip(), tv.CenterCrop(24), tv.ToTensor()]), "RandomHorizontalFlip"),
        (tv.Compose([tv.Lambda(lambda image: image), tv.Resize(24), tv.ToTensor()]), "different sizes"),
        (tv.Compose([tv.CenterCrop(24), tv.PILToTensor()]), "uint8"),
        (tv.Compose([tv.CenterCrop(24)]), "ends with Image"),
        (
            tv.Compose([tv.CenterCrop(24), tv.ToTensor(), tv.Normalize(MEAN, STD), tv.Normalize(MEAN, STD)]),
            "normalises twice",
        ),
        (
            tv.Compose([tv.CenterCrop(24), tv.ToTensor(), lambda pixels: pixels + torch.rand(())]),
            "draws random numbers",
        ),
    ],
)
def test_chains_that_cannot_be_used_are_refused(chain, message):
    with pytest.raises(BadImages, match=message):
        of_transform(chain)


def test_steps_that_may_move_masks_in_unknown_ways_are_told():
    preprocess = of_transform(tv.Compose([tv.Lambda(lambda image: image), tv.CenterCrop(24), tv.ToTensor()]))
    assert preprocess(images()).shape == (len(SHAPES), 3, 24, 24)
    with pytest.raises(BadImages, match=r"step Lambda .* moves a mask is not known"):
        preprocess.masks([np.ones((30, 30), bool)])


def test_sizes_that_a_step_forbids_are_told():
    chain = tv.Compose([tv.Lambda(lambda image: image.resize((24, 24))), tv.ToTensor()])
    with pytest.raises(BadImages, match="cannot be changed to 30 x 30"):
        of_transform(chain).at_size(30, 30)
