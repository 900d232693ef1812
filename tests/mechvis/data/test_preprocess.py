"""Preprocessing equals the model's own image processor; masks stay on their images; impossible pixels are refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

from mechvis.data import Preprocess
from mechvis.data.preprocess import check_pixels
from mechvis.errors import BadImages, MixedDevices

PROCESSORS = {
    "resize": lambda: ViTImageProcessorPil(size={"height": 48, "width": 48}),
    "resize to an oblong": lambda: ViTImageProcessorPil(size={"height": 32, "width": 48}),
    "shortest edge and crop": lambda: CLIPImageProcessorPil(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}
    ),
    "crop inside": lambda: CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 48, "width": 40}),
    "raw colours": lambda: ViTImageProcessorPil(size={"height": 48, "width": 48}, do_normalize=False),
}
SHAPES = [(64, 64), (64, 100), (101, 53), (30, 20)]


@pytest.fixture(params=PROCESSORS, ids=str)
def processor(request):
    return PROCESSORS[request.param]()


def test_equals_the_processor_exactly(processor):
    generator = np.random.default_rng(0)
    raw = [generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]
    preprocess = Preprocess.of_processor(processor)
    pixels = preprocess(raw)
    expected = processor(images=[Image.fromarray(image) for image in raw], return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, expected)
    assert pixels.shape == (4, 3, preprocess.height, preprocess.width) and pixels.dtype == torch.float32


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_masks_stay_on_their_images(processor, shape):
    height, width = shape
    mask = np.zeros(shape, bool)
    mask[height // 4 : height * 3 // 4, width // 3 : width * 2 // 3] = True
    image = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)
    preprocess = Preprocess.of_processor(processor)
    seen = preprocess.unnormalise(preprocess([image]))[0].mean(0) > 0.5
    out = preprocess.masks([mask])[0]
    assert out.dtype == torch.bool and out.shape == seen.shape and 0 < out.sum() < out.numel()
    # interpolated and nearest edges may differ by the pixel on the edge, never by more
    edge = torch.nn.functional.max_pool2d(out[None].float(), 3, 1, 1) + torch.nn.functional.max_pool2d(
        (~out)[None].float(), 3, 1, 1
    )
    assert (seen[edge[0] < 2] == out[edge[0] < 2]).all()
    assert (seen != out).float().mean() < 0.05


def test_masks_refuse_what_is_none(processor):
    preprocess = Preprocess.of_processor(processor)
    with pytest.raises(BadImages, match="no masks given"):
        preprocess.masks([])
    with pytest.raises(BadImages, match=r"mask 1: expected bool \[height width\], got uint8 \(4, 4\)"):
        preprocess.masks([np.ones((4, 4), bool), np.ones((4, 4), np.uint8)])


def test_normalise_and_back(processor):
    preprocess = Preprocess.of_processor(processor)
    colours = torch.rand(2, 3, preprocess.height, preprocess.width, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(preprocess.unnormalise(preprocess.normalise(colours)), colours, atol=1e-6)


def test_raw_images_are_checked(processor):
    preprocess = Preprocess.of_processor(processor)
    with pytest.raises(BadImages, match="the list is empty"):
        preprocess([])
    good = np.zeros((8, 8, 3), np.uint8)
    for bad in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(BadImages, match=r"image 1: expected uint8 \[height width 3\].*Convert it to RGB"):
            preprocess([good, bad])


def test_fingerprint_changes_with_every_setting():
    prints = [Preprocess.of_processor(make()).fingerprint for make in PROCESSORS.values()]
    assert len(set(prints)) == len(prints)
    assert Preprocess.of_processor(PROCESSORS["resize"]()).fingerprint == prints[0]
    other = ViTImageProcessorPil(size={"height": 48, "width": 48}, image_mean=[0.5, 0.5, 0.4])
    assert Preprocess.of_processor(other).fingerprint != prints[0]


def test_size_must_be_stated():
    with pytest.raises(BadImages, match=r"ViTImageProcessor.* does not state its output size"):
        Preprocess.of_processor(ViTImageProcessorPil(size={"longest_edge": 48}))


GOOD = torch.zeros(2, 3, 48, 48)


def _with(value: float) -> torch.Tensor:
    pixels = torch.zeros(2, 3, 48, 48)
    pixels[1, 0, 5, 5] = value
    return pixels


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((2, 3, 48, 48), np.float32), "expected a float tensor .*, got ndarray. Pass raw images through"),
        ([GOOD], "got list"),
        (
            torch.zeros(2, 3, 48, 48, dtype=torch.uint8),
            r"expected normalised floats, got torch\.uint8: raw images of 0-255\?",
        ),
        (torch.zeros(2, 3, 48, 48, dtype=torch.int64), r"got torch\.int64"),
        (
            torch.linspace(0, 255, 2 * 3 * 48 * 48).reshape(2, 3, 48, 48),
            r"in \[0, 255\].*look like 0-255 images\. Pass raw",
        ),
        (_with(float("nan")), r"NaN or Inf in the pixels of image\(s\) \[1\]"),
        (_with(float("-inf")), r"NaN or Inf in the pixels of image\(s\) \[1\]"),
        (torch.zeros(2, 1, 48, 48), r"expected 3 channels, got shape \(2, 1, 48, 48\)\.$"),
        (
            torch.zeros(2, 48, 48, 3),
            r"expected 3 channels, got shape \(2, 48, 48, 3\)\. The channel axis seems to be last",
        ),
        (torch.zeros(3, 48, 48), r"got shape \(3, 48, 48\)\. Add the image axis: pixels\[None\]"),
        (torch.zeros(48, 48), r"expected \[image channel height width\], got shape \(48, 48\)\.$"),
        (torch.zeros(0, 3, 48, 48), "the batch is empty"),
        (torch.zeros(2, 3, 64, 48), "expected images of 48 x 48 pixels, got 64 x 48"),
        (torch.zeros(2, 3, 0, 0), "expected images of 48 x 48 pixels, got 0 x 0"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_pixels_that_cannot_be_right(pixels, message):
    preprocess = Preprocess.of_processor(PROCESSORS["resize"]())
    with pytest.raises(BadImages, match=message):
        check_pixels(pixels, channels=3, sizes=(48, 48), preprocess=preprocess)


def test_pixels_that_are_right():
    preprocess = Preprocess.of_processor(PROCESSORS["shortest edge and crop"]())
    noisy = preprocess([np.full((48, 48, 3), 255, np.uint8)]) * 1.5
    for pixels in (GOOD, noisy, GOOD.half(), GOOD.double(), GOOD.bfloat16(), GOOD.clone().requires_grad_()):
        check_pixels(pixels, channels=3, sizes=(48, 48), preprocess=preprocess, device=torch.device("cpu"))
    check_pixels(torch.zeros(1, 3, 80, 64), channels=3, sizes=None, preprocess=None)
    check_pixels(GOOD * 0 + 255, channels=3, sizes=(48, 48), preprocess=None)


def test_pixels_on_another_device():
    with pytest.raises(MixedDevices, match=r"model is on cpu, the pixels on meta\. Move them: pixels\.to\('cpu'\)"):
        check_pixels(GOOD.to("meta"), channels=3, sizes=(48, 48), preprocess=None, device=torch.device("cpu"))


def test_plain_scaling_equals_the_image_processor() -> None:
    """Scenes have pixels before any model is loaded; they are the same pixels."""
    from transformers import ViTImageProcessorPil

    from mechvis.data.preprocess import plain_scaling

    images = list(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8))
    theirs = Preprocess.of_processor(ViTImageProcessorPil(size={"height": 16, "width": 16}))
    ours = plain_scaling(16, 16)
    torch.testing.assert_close(ours(images), theirs(images), atol=5e-7, rtol=0)
    mask = np.zeros((16, 16), bool)
    mask[3:5, 7:9] = True
    assert torch.equal(ours.masks([mask]), theirs.masks([mask]))
    with pytest.raises(BadImages, match="not all 16 x 16"):
        ours([np.zeros((8, 16, 3), np.uint8)])
