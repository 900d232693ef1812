"""The published sizes with random weights: they load, a head can be taken out, and no weight is held twice.

`mechvis.load` itself compares outputs with the bare model; here the comparison has to come out bitwise equal. Some
towers have fewer layers than published, for time and memory; every width, token count and head count is the real one.
"""

import gc

import pytest
import torch
import transformers
from torch import nn
from transformers.initialization import no_init_weights

import mechvis
from mechvis import edits
from mechvis.clip import HookedCLIP
from mechvis.errors import DefaultPreprocessing
from mechvis.testing import assert_close
from mechvis.testing.tiny import randomise

pytestmark = pytest.mark.slow

BASE = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072}
SMALL = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12}
DINOV2 = {"patch_size": 14, "image_size": 518}
BEIT = {"use_relative_position_bias": True, "use_mean_pooling": True, "layer_scale_init_value": 0.1}
CLIP_TEXT = {"hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 12, "intermediate_size": 2048}
LARGE_TEXT = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 4, "intermediate_size": 3072}
LARGE_VISION = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_hidden_layers": 6,
    "intermediate_size": 4096,
    "image_size": 224,
    "patch_size": 14,
}
SIGLIP2_TEXT = {"vocab_size": 64000, "num_hidden_layers": 6}
SO400M = {"hidden_size": 1152, "num_attention_heads": 16, "num_hidden_layers": 3, "intermediate_size": 4304}


def two(kind, text, vision, **more):
    """A config of two towers."""
    return lambda: getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision, **more)


def one(kind, **settings):
    """A config of one tower."""
    return lambda: getattr(transformers, f"{kind}Config")(**settings)


MODELS = {
    # name: (class, config, image size asked for or None, tokens)
    "ViT-B/16": ("ViTForImageClassification", one("ViT", num_labels=1000), None, 197),
    "ViT-B/16 at 384": ("ViTForImageClassification", one("ViT", **{**BASE, "num_hidden_layers": 4}), 384, 577),
    "DeiT-B distilled": ("DeiTForImageClassificationWithTeacher", one("DeiT", num_labels=1000), None, 198),
    "MAE-B": ("ViTMAEForPreTraining", one("ViTMAE"), None, 197),
    "BEiT-B/16": ("BeitForImageClassification", one("Beit", num_labels=1000, **BEIT), None, 197),
    "CLIP ViT-B/32": ("CLIPModel", two("CLIP", CLIP_TEXT, {"patch_size": 32}), None, 50),
    "CLIP ViT-L/14": ("CLIPModel", two("CLIP", LARGE_TEXT, LARGE_VISION, projection_dim=768), None, 257),
    "SigLIP-B/16": ("SiglipModel", two("Siglip", {}, {}), None, 196),
    "SigLIP 2 B/16 at 256": (
        "SiglipModel",
        two("Siglip", SIGLIP2_TEXT, {"image_size": 256, "num_hidden_layers": 6}),
        None,
        256,
    ),
    "SigLIP So400m/14": ("SiglipVisionModel", one("SiglipVision", patch_size=14, **SO400M), None, 256),
    "DINOv2-B at 224": ("Dinov2Model", one("Dinov2", **DINOV2), 224, 257),
    "DINOv2-B at 280": (
        "Dinov2ForImageClassification",
        one("Dinov2", num_labels=1000, num_hidden_layers=4, **DINOV2),
        280,
        401,
    ),
    "DINOv2-S with registers": ("Dinov2WithRegistersModel", one("Dinov2WithRegisters", **SMALL, **DINOV2), 224, 261),
    "DINOv3 S/16": (
        "DINOv3ViTModel",
        one("DINOv3ViT", **SMALL, intermediate_size=1536, num_register_tokens=4),
        None,
        201,
    ),
    "DINOv3 S+/16": (
        "DINOv3ViTModel",
        one(
            "DINOv3ViT",
            **SMALL,
            intermediate_size=1536,
            num_register_tokens=4,
            use_gated_mlp=True,
            hidden_act="silu",
        ),
        None,
        201,
    ),
}


def build(kind, config):
    """The model with random weights, all of its biases and scales away from zero and one."""
    with no_init_weights():  # initialising takes longer than everything else here
        model = getattr(transformers, kind)(config)
    randomise(model, 0)
    return model.eval()


def tensor_bytes():
    """Bytes of memory that living tensors hold, each memory counted once."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            memory = thing.untyped_storage()
            found[memory.data_ptr()] = memory.nbytes()
    return sum(found.values())


@pytest.mark.parametrize("name", MODELS)
def test_published_size(name):
    kind, config, size, n_tokens = MODELS[name]
    bare = build(kind, config())
    before = tensor_bytes()
    with pytest.warns(DefaultPreprocessing):
        model = mechvis.load(bare, image_size=size)
    assert tensor_bytes() - before < 2**20, "something of the size of a weight was kept"
    towers = (model.vision, model.text) if isinstance(model, HookedCLIP) else (model,)
    for tower in towers:
        assert tower.parity.plain == 0 and tower.parity.hooked < 1e-5
        assert not list(nn.Module.named_parameters(tower)) and not list(nn.Module.named_buffers(tower))
        assert {p.data_ptr() for p in tower.parameters()} == {p.data_ptr() for p in bare.parameters()}
    assert towers[0].parts.n_tokens == n_tokens
    for tower in towers:
        x = tower.parts.example_batch(bare, torch.Generator().manual_seed(1))[:1]
        edit = edits.zero(f"blocks.{tower.cfg.n_layers - 1}.attn.hook_z", heads=[3])
        edited = tower.run(x, edits=[edit]).output
        weight = tower.parts.blocks[-1].attn.out_weight()
        with torch.no_grad():
            kept = weight[3].clone()
            weight[3] = 0
            expected = tower.parts.reference(x)
            weight[3] = kept
        assert_close(edited, expected, 1e-6)
        assert not torch.allclose(edited, tower.run(x).output, rtol=1e-3)
