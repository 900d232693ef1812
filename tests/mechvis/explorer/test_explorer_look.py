"""Images as a model sees them: the same numbers as a forward pass gives, whatever the batches."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import mechvis
from mechvis import testing
from mechvis.errors import BadData, OutOfRange, UnsupportedModel
from mechvis.explorer import look
from mechvis.explorer.look import heads_of
from mechvis.explorer.packing import weights_of


@pytest.fixture(scope="module")
def model():
    return mechvis.load(testing.tiny("vit"), preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def images():
    return mechvis.data.scenes(n=7, seed=3)


def wanted(model, images):
    sites = [f"blocks.{layer}.attn.hook_pattern" for layer in range(len(model.parts.blocks))]
    run = model.run(images.pixels_for(model.preprocess), capture=sites)
    return [run.cache[site].numpy() for site in sites], run.output


def test_patterns_and_rows_are_the_models(model, images):
    patterns, _ = wanted(model, images)
    pictures, attention = look(model, images, batch_size=3, progress=False)
    assert pictures.ids == images.ids == attention.read_ids == attention.ids
    assert (
        attention.grid == model.parts.grid and attention.prefix == model.parts.prefix and attention.read_name == "cls"
    )
    for layer, pattern in enumerate(patterns):
        found = weights_of(attention.patterns[layer], attention.largest[layer])
        assert np.abs(found - pattern).max() < 1 / 255
    heads = sum(attention.heads)
    rows = weights_of(attention.read, attention.read_largest)
    assert np.abs(rows - np.concatenate([pattern[:, :, 0] for pattern in patterns], 1)).max() < 1 / 255
    assert rows.shape[1] == heads == len(heads_of(attention)) and heads_of(attention)[1] == "L0H1"


def test_batches_change_nothing(model, images):
    one, many = (look(model, images, batch_size=size, progress=False) for size in (1, 7))
    assert one[0].files == many[0].files
    for layer in one[1].patterns:
        assert np.abs(one[1].patterns[layer].astype(int) - many[1].patterns[layer]).max() <= 1
    assert np.abs(one[1].read.astype(int) - many[1].read).max() <= 1


def test_bytes_decide_how_many_images_have_full_patterns(model, images):
    cost = sum(pattern[0].size for pattern in wanted(model, images)[0])
    _, none = look(model, images, full_bytes=0, progress=False)
    _, some = look(model, images, full_bytes=2 * cost, progress=False)
    assert none.ids == () and none.patterns == {} and len(none.read_ids) == 7
    assert some.ids == images.ids[: len(some.ids)] and 1 <= len(some.ids) < 7
    _, last = look(model, images, layers=[1], progress=False)
    assert last.layers == (1,) and set(last.patterns) == {1}
    _, no_layers = look(model, images[:2], layers=[0], n=1, progress=False)
    assert len(no_layers.read_ids) == 1


def test_predictions_labels_and_margins_of_the_bundled_model():
    model, images = mechvis.load("scenes-vit"), mechvis.data.scenes(n=12, seed=7, correlation=0.5)
    pictures, _ = look(model, images, full_bytes=0, progress=False)
    logits = model.run(images.pixels_for(model.preprocess)).output
    names = model.parts.class_names
    assert pictures.predictions == tuple(names[i] for i in logits.argmax(1).tolist())
    assert pictures.labels == tuple(names[i] for i in images.labels)
    assert np.allclose(pictures.numbers["confidence"], logits.softmax(1).max(1).values.numpy(), atol=1e-5)
    own = logits[torch.arange(12), torch.as_tensor(images.labels)]
    rest = logits.clone().scatter_(1, torch.as_tensor(images.labels)[:, None], -torch.inf).max(1).values
    assert np.allclose(pictures.numbers["margin"], (own - rest).numpy(), atol=1e-4)
    assert ((pictures.numbers["margin"] > 0) == (np.array(pictures.labels) == np.array(pictures.predictions))).all()
    assert pictures.groups == tuple(images.groups) and pictures.captions == images.captions
    shown = np.asarray(Image.open(io.BytesIO(pictures.files[0])).convert("RGB")).astype(int)
    assert shown.shape == (64, 64, 3) and np.abs(shown - images.raw()[0]).mean() < 12


def test_pictures_are_small(model):
    big = mechvis.data.scenes(n=1, seed=1)
    pictures, _ = look(mechvis.load("scenes-vit"), big, thumbnail=16, full_bytes=0, progress=False)
    assert Image.open(io.BytesIO(pictures.files[0])).size == (16, 16)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"layers": [9]}, OutOfRange, "layer 9 does not exist: there are 0 to"),
        ({"n": 0}, OutOfRange, "n=0 images"),
        ({"thumbnail": 2}, OutOfRange, r"thumbnail=2 \(at least 8\)"),
        ({"full_bytes": -1}, OutOfRange, r"full_bytes=-1"),
    ],
)
def test_settings_that_cannot_be(model, images, settings, error, text):
    with pytest.raises(error, match=text):
        look(model, images, progress=False, **settings)


def test_what_is_no_image_model_or_no_image_set(model, images):
    with pytest.raises(BadData, match="are an ImageSet"):
        look(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(UnsupportedModel, match="looks at images"):
        look(mechvis.load("scenes-clip").text, images)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    look(model, images[:2], progress=False)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
