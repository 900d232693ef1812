"""Completeness through the layers of a vision transformer: the tail is the model, and the class token is held still."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, UnknownName
from probes.concept_tests import value_concepts
from probes.concept_tests.completeness import Decoder, completeness, vit_located


@pytest.fixture(scope="module")
def model():
    return mechvis.load(testing.tiny("vit", dtype=torch.float64), preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def images():
    def drawn(n, seed):
        pixels = np.random.default_rng(seed).integers(0, 256, (n, 12, 12, 3)).astype(np.uint8)
        return ImageSet(
            name=f"noise {seed}", ids=tuple(f"{seed}/{i}" for i in range(n)), read=pixels.__getitem__, rows=np.arange(n)
        )

    return drawn


def test_untouched_patches_give_the_models_answers(model, images):
    """With the class token as it is, the tail is the model: logits to 1e-10, for every layer."""
    some = images(6, 0)
    for layer in range(1, len(model.parts.blocks)):
        with testing.assert_untouched(model):
            found = vit_located(model, some, layer, prefix="own", batch=4)
            logits = found.tail(found.z, torch.arange(6))
        testing.assert_close(logits, model.run(some).output, 1e-10, f"layer {layer}")
        assert torch.equal(found.answers, model.run(some).output.argmax(1)) and found.ids == some.ids


def test_the_class_token_is_held_at_the_training_mean(model, images):
    train = vit_located(model, images(8, 0), 2)
    test = vit_located(model, images(5, 1), 2, means=train)
    stream = model.run(images(8, 0), capture="blocks.2.hook_resid_pre").cache["blocks.2.hook_resid_pre"]
    other = model.run(images(5, 1), capture="blocks.2.hook_resid_pre").cache["blocks.2.hook_resid_pre"]
    by_hand = torch.cat([stream[:, :1].mean(0, keepdim=True).expand(5, -1, -1), other[:, 1:]], dim=1)
    expected = model.run(by_hand, start_at_layer=2).output
    testing.assert_close(test.tail(test.z, torch.arange(5)), expected, 1e-10, "mean class token")
    assert train.z.mean((0, 1)).abs().max() < 1e-12 < test.z.mean((0, 1)).abs().max(), "centred by the training patches"
    raw = vit_located(model, images(8, 0), 2, centre=False)
    testing.assert_close(raw.z, stream[:, 1:], 1e-12, "not centred")


def test_gradients_reach_the_patches_and_not_the_weights(model, images):
    found = vit_located(model, images(3, 0), 1)
    z = found.z.clone().requires_grad_()
    with testing.assert_untouched(model):
        (gradient,) = torch.autograd.grad(found.tail(z, torch.arange(3)).sum(), z)
    assert gradient.abs().sum() > 0


def test_with_its_own_class_token_any_concepts_look_complete(model, images):
    """The pitfall: at the last layer the class token holds the answer already."""
    layer = len(model.parts.blocks) - 1
    random = torch.randn(2, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    etas = {}
    for prefix in ("own", "mean"):
        train = vit_located(model, images(48, 0), layer, prefix=prefix)
        test = vit_located(model, images(48, 1), layer, prefix=prefix, means=train)
        if len(test.answers.unique()) < 2:
            pytest.fail("the tiny model gives all images the same answer; the test needs several")
        found = completeness(
            train, test, random, decoder=Decoder(hidden=8, steps=40, rate=0.02), seeds=1, random_draws=1,
            shapley="none", progress=False, model=model,
        )  # fmt: skip
        etas[prefix] = found.eta()
        assert any("the answer can pass by" in line for line in found.caveats) == (prefix == "own")
        assert found.facts["layer"] == layer and found.facts["prefix"] == prefix
    assert etas["own"] > etas["mean"] + 0.2


def test_what_is_refused(model, images):
    some = images(3, 0)
    with pytest.raises(OutOfRange, match="layer=9: a stream between two blocks"):
        vit_located(model, some, 9)
    with pytest.raises(UnknownName, match="unknown content of the prefix tokens 'zero'"):
        vit_located(model, some, 1, prefix="zero")
    train = vit_located(model, some, 1)
    with pytest.raises(BadData, match=r"the means are of layer 1 .* these images of layer 2"):
        vit_located(model, some, 2, means=train)
    with pytest.raises(BadData, match="prefix='mean', centred, these images of layer 1 with prefix='own'"):
        vit_located(model, some, 1, prefix="own", means=train)
    bare = mechvis.load(testing.tiny("vit-base", dtype=torch.float64), preprocess=testing.tiny_preprocess())
    with pytest.raises(BadData, match="this model has no head"):
        vit_located(bare, some, 1)


# concepts of what is known


def test_value_concepts_by_hand():
    z = np.array([[2.0, 0], [4, 0], [0, 3], [0, 1]])
    names, vectors = value_concepts(z, {"shape": np.array(["a", "a", "b", "b"]), "n": np.array([1, 2, 1, 2])})
    assert names == ("shape: a", "shape: b", "n: 1", "n: 2")
    first = np.array([3.0, -2.0]) / 13**0.5  # (3, 0) - (1.5, 1)
    np.testing.assert_allclose(vectors[:2], [first, -first], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1)


def test_values_count_alike_however_rare():
    z = np.array([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    _, vectors = value_concepts(z, {"c": np.array(["x", "x", "x", "y"])})
    np.testing.assert_allclose(vectors[0], [0.5**0.5, -(0.5**0.5)])


def test_value_concepts_that_cannot_be():
    z = np.eye(3)
    with pytest.raises(BadData, match="all rows have the same colour, 'red'"):
        value_concepts(z, {"colour": np.array(["red"] * 3)})
    with pytest.raises(ShapeMismatch, match=r"3 rows but \[2\] entries in 'colour'"):
        value_concepts(z, {"colour": np.array(["red", "blue"])})
    with pytest.raises(BadData, match="no column was given"):
        value_concepts(z, {})
    with pytest.raises(BadData, match="is the mean of all; it has no direction"):
        value_concepts(np.ones((4, 2)), {"c": np.array([0, 0, 1, 1])})


def test_answers_are_needed_for_labels(model, images):
    found = vit_located(model, images(3, 0), 1)
    assert found.labels is None
    with pytest.raises(BadData, match="have no labels"):
        completeness(found, replace(found, z=found.z + 1, ids=()), torch.eye(model.cfg.d_model)[:2], against="labels")
