"""Bad input, one row each: our own error class, and a message that says what was asked, what was seen, what fits."""

import jaxtyping
import pytest
import torch

import mechvis
from mechvis import edits
from mechvis.errors import (
    BadData,
    BadImages,
    MechvisError,
    MixedDevices,
    NotFinite,
    OutOfRange,
    ShapeMismatch,
    UnknownSite,
)
from mechvis.models.load import wrap
from mechvis.testing import assert_untouched, tiny, tiny_input, tiny_preprocess

Z = "blocks.1.attn.hook_z"


@pytest.fixture(scope="module")
def model():
    return wrap(tiny("vit"), preprocess=tiny_preprocess())


@pytest.fixture(scope="module")
def text():
    return wrap(tiny("clip-text"))


def refused(error, words):
    """Where annotations are checked at run time, a wrong type is stopped before our own check sees it."""
    return pytest.raises((error, jaxtyping.TypeCheckError), match=rf"{words}|Type-check error")


def image(*shape, **options):
    return torch.zeros(shape, **options)


def poisoned(value):
    pixels = torch.zeros(4, 3, 12, 12)
    pixels[2, 0, 3, 3] = value
    return pixels


BAD_IMAGES = {
    "channels last": (
        image(2, 12, 12, 3),
        BadImages,
        r"expected 3 channels, got shape \(2, 12, 12, 3\)\. The channel axis seems to be last",
    ),
    "one channel": (image(2, 1, 12, 12), BadImages, r"expected 3 channels, got shape \(2, 1, 12, 12\)"),
    "four channels": (image(2, 4, 12, 12), BadImages, r"expected 3 channels"),
    "too large": (
        image(2, 3, 16, 16),
        BadImages,
        r"expected images of 12 x 12 pixels, got 16 x 16\. Pass raw images through model\.preprocess",
    ),
    "not square": (image(2, 3, 12, 11), BadImages, r"got 12 x 11"),
    "no image axis": (image(3, 12, 12), BadImages, r"got shape \(3, 12, 12\)\. Add the image axis: pixels\[None\]"),
    "five axes": (image(1, 2, 3, 12, 12), BadImages, r"expected \[image channel height width\]"),
    "flat": (image(432), BadImages, r"got shape \(432,\)"),
    "empty batch": (image(0, 3, 12, 12), BadImages, r"the batch is empty: shape \(0, 3, 12, 12\)"),
    "bytes": (
        image(2, 3, 12, 12, dtype=torch.uint8),
        BadImages,
        r"expected normalised floats, got torch\.uint8: raw images of 0-255\?",
    ),
    "integers": (image(2, 3, 12, 12, dtype=torch.int64), BadImages, r"got torch\.int64"),
    "0 to 255": (
        torch.linspace(0, 255, 432).view(1, 3, 12, 12),
        BadImages,
        r"values lie in \[0, 255\], normalised images of this model in \[-1, 1\]: these look like 0-255 images",
    ),
    "far below": (image(1, 3, 12, 12) - 100, BadImages, r"values lie in \[-100, -100\]"),
    "NaN": (poisoned(float("nan")), BadImages, r"NaN or Inf in the pixels of image\(s\) \[2\]"),
    "Inf": (poisoned(float("inf")), BadImages, r"NaN or Inf in the pixels of image\(s\) \[2\]"),
    "another device": (
        image(2, 3, 12, 12, device="meta"),
        MixedDevices,
        r"model is on cpu, the pixels on meta\. Move them: pixels\.to\('cpu'\)",
    ),
    "double": (
        image(2, 3, 12, 12, dtype=torch.float64),
        MixedDevices,
        r"the model is torch\.float32, the pixels torch\.float64\. Convert: pixels\.to",
    ),
    "half": (image(2, 3, 12, 12, dtype=torch.float16), MixedDevices, r"the pixels torch\.float16"),
    "a list": ([[0.0]], BadImages, r"expected a float tensor .*got list"),
    "numpy": (image(2, 3, 12, 12).numpy(), BadImages, r"got ndarray"),
    "None": (None, BadImages, r"got NoneType"),
    "a path": ("cat.png", BadImages, r"got str"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_images(model, case):
    pixels, error, words = BAD_IMAGES[case]
    with assert_untouched(model), refused(error, words):
        model.run(pixels)


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_images_in_other_entry_points(model, case):
    pixels, error, _ = BAD_IMAGES[case]
    if hasattr(pixels, "__len__") and len(pixels):
        with pytest.raises(error):
            mechvis.means(model, pixels, "hook_embed")
    clip = wrap(tiny("clip"), preprocess=tiny_preprocess())
    with pytest.raises(error):
        clip.encode_image(pixels)


BAD_TEXT = {
    "floats": image(2, 10),
    "pixels": image(2, 3, 12, 12),
    "no row axis": image(10, dtype=torch.int64),
    "strings": ["a cat"],
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_texts(text, case):
    with pytest.raises(ShapeMismatch, match=r"token ids \[row token\].*clip\.tokenize"):
        text.run(BAD_TEXT[case])


def test_too_long_texts_and_ids_out_of_range(text):
    with pytest.raises(MechvisError, match=r"13 tokens.*12"):
        text.run(torch.full((1, 13), 49))
    with pytest.raises(MechvisError, match=r"token id 50.*0 to 49"):
        text.run(torch.full((1, 5), 50))
    with pytest.raises(MechvisError, match="batch of token ids is empty"):
        text.run(torch.zeros(0, 5, dtype=torch.int64))


BAD_STREAMS = {
    "pixels": (image(2, 3, 12, 12), ShapeMismatch, r"takes the stream \[row token 16\], got \[2, 3, 12, 12\]"),
    "another width": (image(2, 10, 15), ShapeMismatch, r"got \[2, 10, 15\]"),
    "a list": ([1], ShapeMismatch, r"got list"),
    "double": (image(2, 10, 16, dtype=torch.float64), MixedDevices, r"torch\.float64"),
    "another device": (image(2, 10, 16, device="meta"), MixedDevices, r"meta"),
    "no rows": (image(0, 10, 16), ShapeMismatch, r"\[0, 10, 16\]"),
    "NaN": (image(2, 10, 16) * float("nan"), NotFinite, r"NaN or Inf"),
}


@pytest.mark.parametrize("case", BAD_STREAMS)
def test_streams(model, case):
    stream, error, words = BAD_STREAMS[case]
    with refused(error, words):
        model.run(stream, start_at_layer=1)


def cached():
    return torch.zeros(3, 10, 4, 4)


BAD_RUNS = {
    "unknown site": (
        {"capture": ["blocks.1.attn.hook_zz"]},
        UnknownSite,
        r"no site matches 'blocks\.1\.attn\.hook_zz'\. Nearest: blocks\.1\.attn\.hook_z, \S+, \S+\. print",
    ),
    "unknown pattern": ({"capture": "blocks.*.attn.hook_zz"}, UnknownSite, r"Nearest: "),
    "unknown edit site": (
        {"edits": [edits.zero("block.1.attn.hook_z")]},
        UnknownSite,
        r"Nearest: blocks\.1\.attn\.hook_z",
    ),
    "layer": ({"capture": ["blocks.3.attn.hook_z"]}, OutOfRange, r"layer 3 .*layers 0 to 2"),
    "negative layer": ({"edits": [edits.zero("blocks.-1.attn.hook_z")]}, OutOfRange, r"layer -1"),
    "head": (
        {"edits": [edits.zero(Z, heads=[4])]},
        OutOfRange,
        r"head 4 does not exist at blocks\.1\.attn\.hook_z, which has 4 \(0 to 3\)",
    ),
    "negative head": ({"edits": [edits.zero(Z, heads=[-5])]}, OutOfRange, r"head -5 does not exist"),
    "one of several heads": ({"edits": [edits.zero(Z, heads=[1, 7])]}, OutOfRange, r"head 7"),
    "unit": (
        {"edits": [edits.zero("blocks.0.mlp.hook_post", units=[32])]},
        OutOfRange,
        r"unit 32 .*has 32 \(0 to 31\)",
    ),
    "logit": ({"edits": [edits.zero("hook_logits", units=[8])]}, OutOfRange, r"unit 8"),
    "token": ({"edits": [edits.zero(Z, tokens=[10])]}, OutOfRange, r"token 10 does not exist; there are 10 \(0 to 9\)"),
    "row": ({"edits": [edits.zero(Z, rows=[3])]}, OutOfRange, r"row 3 does not exist; there are 3 \(0 to 2\)"),
    "heads where there are none": (
        {"edits": [edits.zero("hook_embed", heads=[0])]},
        BadData,
        r"hook_embed has no head axis",
    ),
    "tokens where there are none": ({"edits": [edits.zero("hook_logits", tokens=[0])]}, BadData, r"has no token axis"),
    "no such token name here": (
        {"edits": [edits.zero(Z, tokens="registers")]},
        BadData,
        r"no registers token; its prefix is \['cls'\]",
    ),
    "mask length": (
        {"edits": [edits.zero(Z, tokens=torch.ones(4, dtype=torch.bool))]},
        ShapeMismatch,
        r"mask is \[4\]; this run has 3 rows of 10 tokens \(1 prefix \+ 9 patches\)",
    ),
    "mask rows": (
        {"edits": [edits.zero(Z, tokens=torch.ones(2, 9, dtype=torch.bool))]},
        ShapeMismatch,
        r"mask is \[2, 9\]",
    ),
    "source rows missing": (
        {"edits": [edits.patch(Z, cached()[:2])]},
        ShapeMismatch,
        r"the source has 2 rows, the batch 3",
    ),
    "source row": (
        {"edits": [edits.patch(Z, cached(), [0, 1, 5])]},
        ShapeMismatch,
        r"one row of the source \(0 to 2\)",
    ),
    "number of source rows": (
        {"edits": [edits.patch(Z, cached(), [0, 1])]},
        ShapeMismatch,
        r"for each of the 3 rows, got \[0, 1\]",
    ),
    "source shape": ({"edits": [edits.patch(Z, torch.zeros(3, 9, 4, 4))]}, ShapeMismatch, r"\[9, 4, 4\] do not fit"),
    "source rank": ({"edits": [edits.patch(Z, torch.zeros(3, 10))]}, ShapeMismatch, r"do not fit"),
    "source site": (
        {"edits": [edits.patch(Z, {"hook_embed": cached()})]},
        UnknownSite,
        r"the source holds no values for blocks\.1\.attn\.hook_z",
    ),
    "source NaN": ({"edits": [edits.patch(Z, cached() * float("nan"))]}, BadData, r"the values hold NaN or Inf"),
    "means rank": ({"edits": [edits.mean_positional(Z, {Z: torch.zeros(4, 4)})]}, ShapeMismatch, r"do not fit"),
    "vector width": (
        {"edits": [edits.add(Z, torch.ones(5))]},
        ShapeMismatch,
        r"vector of shape \[5\] does not broadcast .*\[3, 10, 4, 4\]",
    ),
    "direction width": (
        {"edits": [edits.project(Z, torch.ones(16))]},
        ShapeMismatch,
        r"directions have 16 entries, the site 4",
    ),
    "an edit that is none": ({"edits": [{"kind": "zero"}]}, BadData, r"made with mechvis\.edits .*got dict"),
    "start": ({"start_at_layer": 7}, OutOfRange, r"start_at_layer=7: this model has layers 0 to 2"),
    "stop": ({"stop_at_layer": -9}, OutOfRange, r"stop_at_layer=-9"),
    "stop is no layer": ({"stop_at_layer": 1.5}, OutOfRange, r"stop_at_layer=1\.5"),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_runs(model, case):
    options, error, words = BAD_RUNS[case]
    inputs = torch.zeros(3, 10, 16) if options.get("start_at_layer") else tiny_input("vit")
    with assert_untouched(model), refused(error, words):
        model.run(inputs, **options)


BAD_EDITS = {
    "empty mask": (lambda: edits.zero(Z, tokens=torch.zeros(9, dtype=torch.bool)), BadData, r"selects no token"),
    "fraction": (lambda: edits.zero(Z, heads=[1.5]), BadData, r"heads=\[1\.5\]: expected an index"),
    "site": (lambda: edits.zero(3), BadData, r"a site is a string .*got int"),
    "no rows": (lambda: edits.zero(Z, rows=[]), BadData, r"rows=\[\] selects nothing"),
    "twice": (lambda: edits.zero(Z, heads=[1, 1]), BadData, r"heads=\[1, 1\] repeats an index"),
    "head name": (lambda: edits.zero(Z, heads=["a"]), BadData, r"heads"),
    "float mask": (
        lambda: edits.zero(Z, tokens=torch.ones(9)),
        ShapeMismatch,
        r"bool \[token\] or \[row token\], got torch\.float32 \[9\]",
    ),
    "cube mask": (lambda: edits.zero(Z, tokens=torch.ones(2, 3, 3, dtype=torch.bool)), ShapeMismatch, r"\[2, 3, 3\]"),
    "resample": (lambda: edits.resample(Z, cached()), BadData, r"source_rows= .*or seed="),
    "directions": (lambda: edits.project(Z, torch.zeros(2, 4)), ShapeMismatch, r"non-zero"),
    "factor": (lambda: edits.scale(Z, float("nan")), BadData, r"factor"),
    "function": (lambda: edits.call(Z, "tanh"), BadData, r"function"),
}


@pytest.mark.parametrize("case", BAD_EDITS)
def test_edits(case):
    make, error, words = BAD_EDITS[case]
    with refused(error, words):
        make()


def test_clip_inputs():
    clip = wrap(tiny("clip"), preprocess=tiny_preprocess())
    with pytest.raises(BadData, match=r"without a tokenizer; pass tokenizer="):
        clip.encode_text(["a"])
    with pytest.raises(BadData, match=r"at least one class name"):
        clip.classifier([])
    with pytest.raises(BadData, match=r"no texts given"):
        clip.tokenize([])


def test_every_error_is_one_of_ours_and_a_familiar_one():
    assert issubclass(UnknownSite, KeyError) and issubclass(OutOfRange, IndexError)
    assert issubclass(ShapeMismatch, ValueError) and issubclass(BadImages, ValueError)
    for table in (BAD_IMAGES, BAD_STREAMS, BAD_RUNS, BAD_EDITS):
        assert all(issubclass(row[1], MechvisError) for row in table.values())
    assert sum(map(len, (BAD_IMAGES, BAD_TEXT, BAD_STREAMS, BAD_RUNS, BAD_EDITS))) >= 40
    assert str(UnknownSite("no quotes")) == "no quotes"
