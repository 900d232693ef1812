"""The models of suite B: ordinary Hugging Face ViTs of 43,000 parameters, and how they are stored."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mechvis.files import write_json
from mechvis.testing.evidence import drawing
from mechvis.testing.evidence.task import Variant
from mechvis.testing.processor import processor_config

D_MODEL, HEADS, LAYERS, D_MLP = 48, 4, 2, 96


def new_model(variant: Variant, *, seed: int) -> nn.Module:
    """A `ViTForImageClassification` (48 dims, 2 layers x 4 heads, 65 tokens) with random weights."""
    import transformers

    names = dict(enumerate(variant.CLASSES))
    config = transformers.ViTConfig(
        hidden_size=D_MODEL,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=D_MLP,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
        image_size=drawing.SIZE,
        patch_size=drawing.PATCH,
        layer_norm_eps=1e-6,
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.ViTForImageClassification(config).eval()


def save_model(model: nn.Module, folder: Path, certificate: dict[str, Any]) -> Path:
    """Write an ordinary Hugging Face folder (config, float32 safetensors, preprocessing) and the certificate."""
    folder.mkdir(parents=True, exist_ok=True)
    model.float().save_pretrained(folder, safe_serialization=True)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(processor_config(drawing.SIZE), indent=2) + "\n", encoding="utf-8"
    )
    # transformers writes weights readable by their owner only; a package is read by others
    (folder / "model.safetensors").chmod(0o644)
    write_json(folder / "certificate.json", certificate)
    return folder
