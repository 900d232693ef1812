"""Train the backbone: a small ViT whose CLS token carries shape, background and colour at once.

A shortcut can be learned by a classifier only if the features offer both cues. So the backbone sees fresh scenes whose
shape and background are *independent*, and linear heads on the CLS token (after the final layernorm) name all three
factors. All linear heads are dropped afterwards. Two stages:

1. `LEARN`: all factors, the shape with the largest weight, for it is the hardest; two dense losses on the patch tokens
   (how much of the patch is object; which shape the object has) make it appear several times sooner.
2. `BALANCE`: after stage 1 a classifier fitted on scenes in which shape and background mostly agree has no reason to
   look at the background (it keeps about 95 % on conflicting scenes). A short second stage asks for a wide background
   margin (its logits are divided by a temperature) and no more than a moderate shape margin (label smoothing), and a
   mild group lasso on the value and output matrices of every head lets the heads that matter little shrink.

Four wide heads per layer (32 of 128 dimensions each) rather than many narrow ones: with few heads, reading the
background into the CLS token falls to few heads that can be found and removed.
"""

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from mechvis.data.scenes import BACKGROUNDS, COLOURS, IMAGE_SIZE, SHAPES, render, sample_factors
from mechvis.models.training.loop import StepLoss

PATCH = 8


def backbone_config() -> ViTConfig:
    """The architecture of `scenes-vit`: 64 x 64 pixels, patch 8, 4 layers of 4 heads of 32, MLP 256."""
    return ViTConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.04,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        layer_norm_eps=1e-6,
    )


class MultiTask(nn.Module):
    """A ViT and the linear heads it is trained with."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.shape = nn.Linear(config.hidden_size, len(SHAPES))
        self.background = nn.Linear(config.hidden_size, len(BACKGROUNDS))
        self.colour = nn.Linear(config.hidden_size, len(COLOURS))
        self.patch_object = nn.Linear(config.hidden_size, 1)
        self.patch_shape = nn.Linear(config.hidden_size, len(SHAPES))

    def forward(self, pixels: Float[Tensor, "image channel height width"]) -> dict[str, Tensor]:
        """Logits of every head, by name."""
        tokens = self.vit(pixel_values=pixels).last_hidden_state
        cls, patches = tokens[:, 0], tokens[:, 1:]
        return {
            "shape": self.shape(cls),
            "background": self.background(cls),
            "colour": self.colour(cls),
            "patch_object": self.patch_object(patches)[..., 0],
            "patch_shape": self.patch_shape(patches),
        }


def to_pixels(images: UInt8[np.ndarray, "image height width channel"]) -> Float[Tensor, "image channel height width"]:
    """Bytes to the numbers the models read: mean 0.5 and deviation 0.5 per channel, as in the stored preprocessing."""
    return rearrange(torch.from_numpy(images), "n h w c -> n c h w").to(torch.float32) / 127.5 - 1.0


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """How much each task counts in one stage."""

    shape: float
    """Weight of naming the shape from CLS."""
    background: float
    """Weight of naming the background from CLS."""
    colour: float
    """Weight of naming the colour from CLS."""
    patch_object: float
    """Weight of the object's share of each patch."""
    patch_shape: float
    """Weight of naming the shape from the patches it touches."""
    shape_smoothing: float = 0.0
    """Label smoothing of the shape: bounds the margin it is given."""
    background_temperature: float = 1.0
    """The background's logits are divided by this: above 1, the margin must grow."""
    group_lasso: float = 0.0
    """Weight of the summed norms of every head's value and output matrices."""


LEARN = LossWeights(shape=1.0, background=0.5, colour=0.5, patch_object=0.5, patch_shape=0.5)
BALANCE = LossWeights(
    shape=0.3,
    background=2.0,
    colour=0.3,
    patch_object=0.3,
    patch_shape=0.2,
    shape_smoothing=0.1,
    background_temperature=4.0,
    group_lasso=0.01,
)


def multi_task_loss(weights: LossWeights, *, seed: int, batch: int, device: str | torch.device) -> StepLoss:
    """The loss of step ``k`` on images ``k * batch ..`` of data set `seed`: nats, weighted sum over the tasks."""

    def loss(module: nn.Module, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        factors = sample_factors(batch, seed=seed, start=step * batch, training=True)
        images, masks = render(factors)
        logits = {name: value.float() for name, value in module(to_pixels(images).to(device)).items()}
        masks = torch.from_numpy(masks).to(device, torch.float32)
        share = reduce(masks, "image (row p) (column q) -> image (row column)", "mean", p=PATCH, q=PATCH)
        shape, background, colour = (
            torch.from_numpy(getattr(factors, name)).to(device) for name in ("shape", "background", "colour")
        )
        on_patches = F.cross_entropy(
            rearrange(logits["patch_shape"], "image patch shape -> (image patch) shape"),
            repeat(shape, "image -> (image patch)", patch=share.shape[1]),
            reduction="none",
        )
        touched = (share.flatten() > 0.05).float()
        total = (
            weights.shape * F.cross_entropy(logits["shape"], shape, label_smoothing=weights.shape_smoothing)
            + weights.background * F.cross_entropy(logits["background"] / weights.background_temperature, background)
            + weights.colour * F.cross_entropy(logits["colour"], colour)
            + weights.patch_object * F.binary_cross_entropy_with_logits(logits["patch_object"], share)
            + weights.patch_shape * (on_patches * touched).sum() / touched.sum()
        )
        if weights.group_lasso:
            total = total + weights.group_lasso * _head_norms(module.vit)
        right = (logits["shape"].argmax(-1) == shape).float().mean()
        return total, {"loss": total.detach(), "shape_accuracy": right}

    return loss


def _head_norms(vit: ViTModel) -> Tensor:
    heads = vit.config.num_attention_heads
    norms = []
    for layer in vit.layers:
        write = rearrange(layer.attention.o_proj.weight, "model (head d) -> head (model d)", head=heads)
        read = rearrange(layer.attention.v_proj.weight, "(head d) model -> head (d model)", head=heads)
        norms += [(matrix.pow(2).sum(1) + 1e-8).sqrt().sum() for matrix in (write, read)]
    return torch.stack(norms).sum()
