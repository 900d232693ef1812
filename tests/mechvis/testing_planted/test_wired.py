"""The building block: it is an ordinary family of this library, and its views write where they say."""

import pytest
import torch
from torch import nn

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.testing import assert_close, check_family
from mechvis.testing.planted import PlantedPairs, WiredViT, edges_of, saturation_net, wired_parts, wrapped

SIZES = {"channels": 2, "d_model": 6, "n_layers": 2, "n_heads": 2, "d_head": 3, "d_mlp": 5, "n_classes": 3}


def randomised(**settings):
    model = WiredViT(**SIZES, **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.7)
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {"grid": (2, 3), "patch": 2, "cls": True, "norm": True, "activation": nn.GELU, "scale": 0.5},
        {"grid": (1, 2), "activation": nn.Tanh},
        {"grid": (2, 2), "norm": True, "activation": nn.ReLU},
    ],
)
def test_it_is_a_family_like_any_other(settings):
    (found,) = check_family(randomised(**settings), family=wired_parts)
    assert found.outputs < 1e-12 and found.wave < 1e-10


def test_a_fresh_model_answers_zero():
    model = WiredViT(**SIZES, grid=(2, 2), patch=3, cls=True, norm=True)
    assert (model(torch.randn(2, 2, 6, 6, dtype=torch.float64)) == 0).all() and model.n_tokens == 5


def test_views_are_the_weights():
    model = randomised(grid=(2, 2), cls=True)
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    head, block = model.head(1, 1), model.layers[1]
    for name in "qkv":
        expected = x @ getattr(head, name) + getattr(head, f"{name}_bias")
        assert_close(expected, block.split(getattr(block, f"{name}_proj")(x))[:, :, 1], 1e-14, name)
    z = torch.zeros(4, 5, 2, 3, dtype=torch.float64)
    z[:, :, 1] = x[..., :3]
    assert_close(x[..., :3] @ head.o + block.o_proj.bias, block.o_proj(z.flatten(2)), 1e-14, "o")
    neurons = model.neurons(0)
    hidden = x @ neurons.w_in + neurons.b_in
    assert_close(hidden, model.layers[0].fc1(x), 1e-14, "w_in")
    assert_close(hidden @ neurons.w_out + neurons.b_out, model.layers[0].fc2(hidden), 1e-14, "w_out")
    with torch.no_grad():
        head.v[2, 1], neurons.w_out[3, 4], model.embedding[1, 0], model.readout[5, 2] = 7.0, 8.0, 9.0, 10.0
    assert block.v_proj.weight[3 + 1, 2] == 7 and model.layers[0].fc2.weight[4, 3] == 8
    assert model.embed.weight[0, 1] == 9 and model.classifier.weight[2, 5] == 10


def test_pixels_of_a_patch_are_ordered():
    model = WiredViT(**SIZES | {"d_model": 8}, grid=(2, 1), patch=2)
    with torch.no_grad():
        model.embedding.copy_(torch.eye(8, dtype=torch.float64))
    pixels = torch.arange(16, dtype=torch.float64).reshape(1, 2, 4, 2)
    assert model.tokens(pixels).tolist() == [[[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]]


def test_wrapped_has_names():
    model = wrapped(WiredViT(**SIZES), "blank", class_names=("a", "b", "c"))
    assert model.title == "blank" and model.parts.class_names == ("a", "b", "c") and model.parts.prefix == ()
    assert len(edges_of(model)) == 6 + 3 + 2 * 3 * 4 + 6 + 7


@pytest.mark.parametrize(
    "call,error,words",
    [
        (lambda: WiredViT(**SIZES | {"d_head": 0}), BadData, r"sizes of at least one, got \{'d_head': 0\}"),
        (lambda: WiredViT(**SIZES, grid=(0, 2)), BadData, "'grid': 0"),
        (lambda: WiredViT(**SIZES).head(2, 0), OutOfRange, "layer 2: this model has layers 0 to 1"),
        (lambda: WiredViT(**SIZES).head(0, -1), OutOfRange, "head -1: this model has heads 0 to 1"),
        (lambda: WiredViT(**SIZES).neurons(-1), OutOfRange, "layer -1"),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call()


def pairs(**changes):
    one = torch.ones(2, 1, 1, 1)
    labels = torch.zeros(2, dtype=torch.int64)
    settings = {"name": "p", "clean": one, "corrupt": -one, "clean_labels": labels, "corrupt_labels": labels + 1}
    return PlantedPairs(
        **settings
        | {"contrast": labels + 1, "circuit": frozenset({"a->b", "b->c"}), "active": frozenset({"a->b"})}
        | changes
    )


def test_pairs_know_their_truth():
    found = pairs()
    assert found.structural == {"b->c"} and found.active_nodes == {"a"} and len(found) == 2
    assert found.metric(torch.tensor([[3.0, 1.0], [0.0, 5.0]])).tolist() == [2, -5]


@pytest.mark.parametrize(
    "changes,error,words",
    [
        ({"corrupt": torch.ones(1, 1, 1, 1)}, ShapeMismatch, "aligned, token by token"),
        ({"contrast": torch.ones(3)}, ShapeMismatch, "2 pairs but 3 entries in contrast"),
        ({"active": frozenset({"a->c"})}, BadData, "a->c is called active but is not in the circuit"),
    ],
)
def test_pairs_that_do_not_fit(changes, error, words):
    with pytest.raises(error, match=words):
        pairs(**changes)


def test_models_are_built_in_milliseconds():
    import time

    saturation_net()  # imports
    started = time.perf_counter()
    saturation_net()
    assert time.perf_counter() - started < 0.5, "generous: a loaded machine; alone it takes about 5 ms"
