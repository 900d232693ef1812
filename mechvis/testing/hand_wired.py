"""A Hugging Face ViT whose weights are set by hand, so that *which head matters* is a theorem.

Head `(0, 0)` copies the brightness of one planted patch into a channel that the classifier reads. Heads `(0, 1)` to
`(0, 3)` do the same with three other patches, five times as loudly, into a channel nobody reads. So a method that ranks
by activation size is exactly wrong, and one that ranks by effect is exactly right.

Two details keep LayerNorm from mixing them up: every write goes to a pair of channels with opposite signs (so means
stay zero), and a large constant pair in every token pins the scale (else the distractors would leak about a third of
the planted effect through it).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mechvis.errors import BadData

GRID, PATCH = 3, 4
_PIN, _BRIGHT, _READ, _WASTE, _MARK = 0, 2, 4, 6, 8  # first channel of each pair; four marks follow


def hand_wired_vit(
    *,
    planted: int = 4,
    distractors: Sequence[int] = (0, 2, 7),
    loudness: float = 5.0,
    pin: float = 128.0,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """A `ViTForImageClassification` (16 dims, 2 layers x 4 heads, 3 x 3 patches, 2 classes) with a known circuit.

    Logit 0 is 0.75 times the brightness of patch `planted` (minus that for logit 1), up to a leak of about one part in
    a thousand. Layer 1 and both MLPs write nothing.

    Args:
        planted: patch that head (0, 0) copies.
        distractors: patches that heads (0, 1), (0, 2), (0, 3) copy to nowhere.
        loudness: how much larger the distractors' writes are.
        pin: size of the constant pair that pins the LayerNorm scale; smaller leaks more.
        dtype: type of the weights.

    Example:
        >>> model = hand_wired_vit()
        >>> pixels, brightness = hand_wired_images(4)
        >>> bool((model(pixels).logits[:, 0] - 0.75 * brightness[:, 4]).abs().max() < 0.01)
        True
    """
    from transformers import ViTConfig, ViTForImageClassification

    places = [planted, *distractors]
    if len(set(places)) != 4 or not all(0 <= place < GRID * GRID for place in places):
        raise BadData(
            f"planted and the distractors are four different patches of 0 to {GRID * GRID - 1}, got {places}."
        )
    config = ViTConfig(
        hidden_size=16,
        num_attention_heads=4,
        num_hidden_layers=2,
        intermediate_size=4,
        num_labels=2,
        image_size=GRID * PATCH,
        patch_size=PATCH,
    )
    with torch.random.fork_rng(devices=[]):
        model = ViTForImageClassification(config)
    base = model.vit
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                parameter.fill_(1.0 if isinstance(module, nn.LayerNorm) and name == "weight" else 0.0)
        embeddings = base.embeddings
        _pair(embeddings.patch_embeddings.projection.bias, _PIN, pin)
        _pair(embeddings.cls_token[0, 0], _PIN, pin)
        filters = embeddings.patch_embeddings.projection.weight  # [d_model channel height width]
        filters[_BRIGHT], filters[_BRIGHT + 1] = 1 / filters[0].numel(), -1 / filters[0].numel()
        sigma = pin / 8**0.5  # LayerNorm divides by this
        attention = base.layers[0].attention
        for head, place in enumerate(places):
            _pair(embeddings.position_embeddings[0, 1 + place], _MARK + 2 * head, 1.0)
            q, k, v, o = (slice(4 * head, 4 * head + 4),) * 4
            # Every token asks the same question (the pin is everywhere); only the marked patch answers: score 60.
            attention.q_proj.weight[q][0, _PIN] = 1.0
            attention.k_proj.weight[k][0, _MARK + 2 * head] = 60 * sigma * sigma / pin / attention.scaling
            attention.v_proj.weight[v][0, _BRIGHT] = sigma * (1.0 if head == 0 else loudness)
            _pair(attention.o_proj.weight[:, o][:, 0], _READ if head == 0 else _WASTE, 0.75)
        model.classifier.weight[0, _READ], model.classifier.weight[1, _READ] = sigma, -sigma
    return model.to(dtype).eval()


def hand_wired_images(n: int = 64, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Images of nine uniformly bright patches.

    Args:
        n: how many.
        seed: numpy seed.
        dtype: of both tensors.

    Returns:
        Pixels `[image 3 12 12]` and the brightness of each patch `[image patch]`, uniform in [0, 1].
    """
    brightness = torch.from_numpy(np.random.default_rng(seed).random((n, GRID * GRID)))
    pixels = brightness.unflatten(1, (1, GRID, GRID)).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    return pixels.expand(n, 3, -1, -1).contiguous().to(dtype), brightness.to(dtype)


def _pair(vector: Any, channel: int, value: float) -> None:
    vector[channel], vector[channel + 1] = value, -value
