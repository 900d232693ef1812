"""The untrained models: ordinary Hugging Face ViTs of 48,000 parameters, and how they are stored."""

import json
from pathlib import Path

import torch
from torch import nn

from mechvis.testing.processor import processor_config
from mechvis.testing.trained import drawing
from mechvis.testing.trained.shape import D_MLP, D_MODEL, HEADS, LAYERS
from mechvis.testing.trained.task import PlantedTask


def new_model(task: PlantedTask, *, seed: int) -> nn.Module:
    """A model with random weights: `ViTForImageClassification`, or `Dinov2WithRegistersForImageClassification` where
    the task needs a register token (LayerScale fixed at 1, the classifier's weights on the patches fixed at 0).

    Example:
        >>> from mechvis.testing.trained.tasks import task_of
        >>> sum(p.numel() for p in new_model(task_of("colour-if-shape"), seed=0).parameters()) < 50_000
        True
    """
    import transformers

    names = dict(enumerate(task.classes))
    common = {
        "hidden_size": D_MODEL,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.1,
        "image_size": drawing.SIZE,
        "patch_size": drawing.PATCH,
        "layer_norm_eps": 1e-6,
        "id2label": names,
        "label2id": {name: number for number, name in names.items()},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not task.registers:
            config = transformers.ViTConfig(**common, intermediate_size=D_MLP)
            return transformers.ViTForImageClassification(config).eval()
        config = transformers.Dinov2WithRegistersConfig(
            **common, mlp_ratio=D_MLP // D_MODEL, num_register_tokens=task.registers, layerscale_value=1.0
        )
        model = transformers.Dinov2WithRegistersForImageClassification(config).eval()
        with torch.no_grad():
            # Registers start at zero: then one could not be told from the next, nor from CLS without its position.
            model.dinov2_with_registers.embeddings.register_tokens.normal_(std=config.initializer_range)
            model.classifier.weight[:, D_MODEL:] = 0
    for name, parameter in model.named_parameters():
        if "layer_scale" in name or name.endswith("mask_token"):
            parameter.requires_grad_(False)
    model.classifier.weight.register_hook(_cls_only)
    return model


def _cls_only(gradient: torch.Tensor) -> torch.Tensor:
    """The classifier's gradient without its half on the patches, which therefore stays zero."""
    gradient = gradient.clone()
    gradient[:, D_MODEL:] = 0
    return gradient


def save_model(model: nn.Module, folder: Path) -> Path:
    """Write an ordinary Hugging Face folder: config, float32 safetensors, image preprocessing.

    Args:
        model: from :func:`new_model`.
        folder: made if need be; files of the same names are replaced.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.float().save_pretrained(folder, safe_serialization=True)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(processor_config(drawing.SIZE), indent=2) + "\n", encoding="utf-8"
    )
    # transformers writes weights readable by their owner only; a package is read by others
    (folder / "model.safetensors").chmod(0o644)
    return folder
