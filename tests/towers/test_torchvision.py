"""torchvision's vision transformers, and the map of `torch.nn.MultiheadAttention` that they share with open_clip.

Torch takes a native path for attention without a graph that rounds differently. With a graph, with an odd number of
heads, or with that path switched off, everything is bitwise equal.
"""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

import mechvis
from mechvis.block import merge, mix
from mechvis.errors import BadData, BadImages, DefaultPreprocessing, UnknownName
from mechvis.models import torchvision as maps
from mechvis.models.load import wrap
from mechvis.models.torch_attention import attention
from mechvis.testing import assert_close, assert_untouched, check_family, rand_vit
from mechvis.testing.tiny import randomise

TINY = {
    "image_size": 12,
    "patch_size": 4,
    "num_layers": 3,
    "num_heads": 4,
    "hidden_dim": 16,
    "mlp_dim": 24,
    "num_classes": 5,
}
STEM = [
    ConvStemConfig(out_channels=6, kernel_size=3, stride=2),
    ConvStemConfig(out_channels=8, kernel_size=3, stride=2),
]
DTYPES = (torch.float32, torch.float64)


class Swish(nn.Module):
    def forward(self, x):
        return x * x.sigmoid()


def with_swish(model):
    for layer in model.encoder.layers:
        layer.mlp[1] = Swish()
    return model


def heads(model, module):
    model.heads = module
    return model


# name -> arguments of the class, what is changed afterwards
MODELS = {
    "plain": ({}, lambda m: m),
    "odd number of heads": ({"num_heads": 3, "hidden_dim": 12}, lambda m: m),
    "representation": ({"representation_size": 7}, lambda m: m),
    "dropout in train mode": ({"dropout": 0.3, "attention_dropout": 0.3}, lambda m: m),
    "eps of the norms": ({"norm_layer": partial(nn.LayerNorm, eps=1e-2)}, lambda m: m),
    "norms without weights": ({"norm_layer": partial(nn.LayerNorm, elementwise_affine=False)}, lambda m: m),
    "another activation": ({}, with_swish),
    "no head": ({}, lambda m: heads(m, nn.Identity())),
    "an empty head": ({}, lambda m: heads(m, nn.Sequential())),
    "features": ({"representation_size": 7}, lambda m: heads(m, nn.Sequential(*m.heads[:2], nn.Identity()))),
    "a linear head": ({}, lambda m: heads(m, nn.Linear(16, 3))),
    "a longer head": (
        {},
        lambda m: heads(m, nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 9), nn.GELU(), nn.Linear(9, 3))),
    ),
    "attention without biases": (
        {},
        lambda m: (
            [
                setattr(layer, "self_attention", nn.MultiheadAttention(16, 2, bias=False, batch_first=True))
                for layer in m.encoder.layers
            ]
            and m
        ),
    ),
}


def make(name="plain", dtype=torch.float32, **more):
    settings, change = MODELS[name]
    model = change(VisionTransformer(**{**TINY, **settings, **more}))
    randomise(model, 0)
    return model.to(dtype).eval()


def quiet(model, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DefaultPreprocessing)
        return wrap(model, **more)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_family(name, dtype, families_table):
    measured = check_family(make(name, dtype))
    (found,) = measured
    if dtype == torch.float32:
        families_table.setdefault("torchvision", {})[f"VisionTransformer ({name})"] = measured
    assert found.gradients == 0, "bitwise with a graph"
    assert found.outputs <= (1e-6 if dtype == torch.float32 else 1e-14)
    # Odd numbers of heads, and products without a bias, never take the native path.
    assert found.outputs == 0 or name not in ("odd number of heads", "attention without biases")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_bitwise_but_for_the_native_path(name, dtype, no_native_path):
    bare, pixels = make(name, dtype), torch.randn(3, 3, 12, 12, dtype=dtype)
    with assert_untouched(bare), torch.no_grad():
        model = quiet(bare)
        assert model.parity.plain == 0
        assert torch.equal(model(pixels), bare(pixels))
        assert torch.equal(model.run(pixels, capture=["*hook_z", "*hook_resid_post"]).output, bare(pixels))


def test_a_convolutional_stem():
    # Its patches overlap, so a patch reaches its neighbours: no check of single tokens, everything else.
    bare = VisionTransformer(**TINY, conv_stem_configs=STEM)
    randomise(bare, 0)
    bare = bare.double().eval()
    model, pixels = quiet(bare), torch.randn(2, 3, 12, 12, dtype=torch.float64)
    assert torch.equal(model(pixels), bare(pixels))
    run = model.run(pixels, capture="*")
    assert_close(run.logits, bare(pixels).detach(), 1e-14)
    assert run.cache["hook_embed"].shape == (2, 10, 16)


def test_in_bfloat16():
    (found,) = check_family(make(dtype=torch.bfloat16))
    assert found.gradients == 0


def test_sites_of_changed_heads():
    sites = {name: quiet(make(name)).output_site for name in MODELS}
    assert sites["representation"] == sites["a longer head"] == sites["a linear head"] == "hook_logits"
    assert sites["features"] == "hook_embedding" and sites["no head"] == sites["an empty head"] == "hook_pooled"
    directions = quiet(make("a linear head")).tokens_to_residual_directions(torch.tensor([0, 2]))
    assert directions.shape == (2, 16)


def test_weights_are_read_live():
    bare, pixels = make(), torch.randn(2, 3, 12, 12)
    model, inner = quiet(bare), bare.encoder.layers[1].self_attention
    with torch.no_grad():
        inner.in_proj_weight[:16] *= 2
        inner.in_proj_bias += 0.5
        inner.out_proj.weight *= 1.5
        bare.class_token += 1
    assert torch.equal(model(pixels), bare(pixels))
    assert torch.equal(model.W_O[1].flatten(0, 1).T, inner.out_proj.weight)
    assert torch.equal(model.W_Q[1], inner.in_proj_weight[:16].unflatten(0, (4, 4)).transpose(1, 2))


def test_hooks_on_the_output_projection_fire_as_rarely_as_upstream():
    bare, pixels, calls = make(), torch.randn(2, 3, 12, 12), []
    bare.encoder.layers[0].self_attention.out_proj.register_forward_hook(lambda *_: calls.append(1))
    model = quiet(bare)
    assert torch.equal(model(pixels), bare(pixels)) and not calls


def test_another_size_is_refused_as_upstream_refuses_it():
    model = quiet(make())
    with pytest.raises(BadImages, match="expected images of 12 x 12"):
        model.run(torch.randn(1, 3, 16, 16))
    with pytest.raises(BadData, match=r"takes images of .* only"):
        quiet(make(), image_size=16)


# the map of torch.nn.MultiheadAttention


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("width", [16, 12])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_of_other_tokens(dtype, width, batch_first):
    """Queries from one place, keys and values from another, of the same width or not: as a pooling head has them."""
    module = nn.MultiheadAttention(16, 4, kdim=width, vdim=width, batch_first=batch_first)
    randomise(module, 0)
    module = module.to(dtype)
    asking, asked = torch.randn(3, 2, 16, dtype=dtype), torch.randn(3, 7, width, dtype=dtype)

    def turned(x):
        return x if batch_first else x.transpose(0, 1)

    def theirs():
        keys = turned(asked)
        return turned(module(turned(asking), keys, keys, need_weights=False)[0])

    def ours():
        parts = attention(module)
        return parts.out(merge(mix(parts, parts.q(asking), *parts.kv(asked))))

    found = []
    for forward in (theirs, ours):
        out = forward()
        found.append([out, *torch.autograd.grad(out.sin().sum(), list(module.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# names


@pytest.fixture
def small(monkeypatch):
    """torchvision builds tiny models under the names of its own."""
    real = torchvision.models.get_model

    def get_model(name, *, weights, **more):
        assert weights is None and name.startswith("vit_")
        return VisionTransformer(**{**TINY, **more})

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    return real


def test_default_weights_come_with_classes_and_preprocessing(small, monkeypatch):
    published = torchvision.models.ViT_B_16_Weights
    bare = make(image_size=224, num_classes=1000, patch_size=56)
    asked = []

    def state(self, **settings):
        asked.append((self, settings))
        return bare.state_dict()

    monkeypatch.setattr(published, "get_state_dict", state)
    monkeypatch.setitem(TINY, "patch_size", 56)
    model = mechvis.load("torchvision:vit_b_16")
    settings = {"progress": False, "check_hash": True, "weights_only": True}
    assert asked == [(published.DEFAULT, settings)]  # no pickled code, and the file is the published one
    assert model.parts.class_names[:2] == ("tench", "goldfish") and len(model.parts.class_names) == 1000
    image = np.random.default_rng(0).integers(0, 256, (301, 260, 3), dtype=np.uint8)
    expected = published.DEFAULT.transforms()(Image.fromarray(image))
    assert torch.equal(model.preprocess([image])[0], expected)
    pixels = model.preprocess([image])
    assert torch.equal(model(pixels), bare(pixels))


def test_other_weights_bring_other_preprocessing(small, monkeypatch):
    published = torchvision.models.ViT_B_16_Weights
    bare = make(image_size=384, num_classes=1000, patch_size=96)
    monkeypatch.setattr(published, "get_state_dict", lambda self, **_: bare.state_dict())
    monkeypatch.setitem(TINY, "patch_size", 96)
    model = mechvis.load("torchvision:vit_b_16/IMAGENET1K_SWAG_E2E_V1")
    assert (model.preprocess.height, model.parts.image_size) == (384, (384, 384))


def test_a_file_is_as_large_as_its_weights(small, tmp_path, monkeypatch):
    for more in ({}, {"image_size": 20, "num_classes": 3}, {"representation_size": 6}):
        bare = VisionTransformer(**{**TINY, **more})
        randomise(bare, 0)
        save_file(bare.eval().state_dict(), tmp_path / "mine.safetensors")
        with pytest.warns(DefaultPreprocessing):
            model = mechvis.load(f"torchvision:vit_b_16/{tmp_path}/mine.safetensors")
        pixels = torch.randn(2, 3, bare.image_size, bare.image_size)
        assert torch.equal(model(pixels), bare(pixels))
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(BadData, match=r"does not hold a vision transformer.*conv_proj.weight"):
        mechvis.load(f"torchvision:vit_b_16/{tmp_path}/other.safetensors")
    with pytest.raises(BadData, match="there is no file"):
        mechvis.load("torchvision:vit_b_16/none.safetensors")
    state = bare.state_dict()
    del state["encoder.ln.bias"]
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(BadData, match=r"(?s)do not fit the model.*encoder.ln.bias"):
        mechvis.load(f"torchvision:vit_b_16/{tmp_path}/less.safetensors")


def test_names_that_name_nothing(monkeypatch):
    with pytest.raises(UnknownName, match=r"vision transformer of torchvision 'vit_b_61'. Nearest: vit_b_16"):
        mechvis.load("torchvision:vit_b_61")
    with pytest.raises(UnknownName, match="vision transformer of torchvision 'resnet50'"):
        mechvis.load("torchvision:resnet50")
    with pytest.raises(UnknownName, match=r"weights of vit_b_16 'V1'.*IMAGENET1K_V1.*<file>.safetensors"):
        mechvis.load("torchvision:vit_b_16/V1")
    with pytest.raises(UnknownName, match=r"weights of vit_b_16 'mine.pth'"):
        mechvis.load("torchvision:vit_b_16/mine.pth")

    def offline(self, **settings):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models.ViT_B_16_Weights, "get_state_dict", offline)
    with pytest.raises(BadData, match=r"cannot be fetched from https://.* \(no network\).*<file>.safetensors"):
        mechvis.load("torchvision:vit_b_16")


def test_default_preprocessing_is_the_published_one():
    found = maps.preprocess((224, 224))
    image = np.random.default_rng(0).integers(0, 256, (301, 260, 3), dtype=np.uint8)
    published = torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1.transforms()
    assert torch.equal(found([image])[0], published(Image.fromarray(image)))
    assert maps.preprocess((112, 112)).height == 112


def test_family_of_strangers():
    for stranger in (nn.Linear(2, 2), rand_vit(), torchvision.models.resnet18()):
        assert maps.family_of(stranger) is None and maps.two_towers(stranger) is None


@pytest.mark.slow
def test_real_size():
    torch.manual_seed(0)
    bare = torchvision.models.vit_b_16(weights=None)
    nn.init.normal_(bare.heads.head.weight, std=0.05)  # zero as torchvision makes it
    model = quiet(bare.eval())
    assert model.parity.plain < 1e-5 and model.parity.hooked < 1e-5
    pixels = torch.randn(2, 3, 224, 224)
    assert torch.equal(model(pixels), bare(pixels))
