"""Measure the bundled models on held-out scenes: what the cards say, and what the tests check again.

The head table uses a plain forward hook that zeroes a head's columns before the output projection: slow and
independent of the sweep engine, so that either can be checked against the other.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import ViTForImageClassification, ViTModel

from mechvis.data.scenes import BACKGROUNDS, COLOURS, SHAPES, render, sample_factors
from mechvis.models.training.classifier import cls_features, fit_logistic

Heads = Sequence[tuple[int, int]]
"""(layer, head) pairs."""


def probe_accuracy(vit: ViTModel, *, fit: int, test: int, seed: int) -> dict[str, float]:
    """Accuracy on `test` uncorrelated scenes of linear probes fitted on CLS features of `fit` others.

    Args:
        vit: The backbone.
        fit: Scenes of data set `seed`.
        test: Scenes of data set ``seed + 1``.
        seed: Data set number.

    Returns:
        Fractions for "shape", "background" and "colour".
    """
    known, unseen = sample_factors(fit, seed=seed), sample_factors(test, seed=seed + 1)
    x, x_unseen = cls_features(vit, render(known)[0]), cls_features(vit, render(unseen)[0])
    accuracy = {}
    for name, values in (("shape", SHAPES), ("background", BACKGROUNDS), ("colour", COLOURS)):
        weight, bias = fit_logistic(x, torch.from_numpy(getattr(known, name)), classes=len(values), ridge=1e-4)
        accuracy[name] = float(((x_unseen @ weight.T + bias).argmax(1).numpy() == getattr(unseen, name)).mean())
    return accuracy


@contextmanager
def heads_zeroed(vit: ViTModel, heads: Heads) -> Iterator[None]:
    """Zero the given heads' outputs (z, all tokens) while the context is open."""
    width = vit.config.hidden_size // vit.config.num_attention_heads
    handles = []
    try:
        for layer in sorted({layer for layer, _ in heads}):
            off = [head for at, head in heads if at == layer]

            def zero(_module: object, args: tuple[Tensor, ...], off: list[int] = off) -> tuple[Tensor, ...]:
                z = args[0].clone()
                for head in off:
                    z[..., head * width : (head + 1) * width] = 0
                return (z, *args[1:])

            handles.append(vit.layers[layer].attention.o_proj.register_forward_pre_hook(zero))
        yield
    finally:
        for handle in handles:
            handle.remove()


class GroupScenes:
    """Scenes of one group, as they are, without their object, and without their background (given masks)."""

    def __init__(self, group: str, *, n: int, seed: int) -> None:
        factors = sample_factors(n, seed=seed, group=group)
        images, masks = render(factors)
        fill = images.reshape(n, -1, 3).mean(1)[:, None, None]
        self.labels = torch.from_numpy(factors.shape)
        self.both = images
        self.no_object = np.where(masks[..., None], fill, images).astype(np.uint8)
        self.no_background = np.where(masks[..., None], images, fill).astype(np.uint8)


def group_probabilities(
    model: ViTForImageClassification, scenes: GroupScenes, heads: Heads = ()
) -> dict[str, Float[Tensor, "image class"]]:
    """Class probabilities of the three renderings with `heads` zeroed."""
    with heads_zeroed(model.vit, heads), torch.no_grad():
        return {
            name: model.classifier(cls_features(model.vit, getattr(scenes, name))).softmax(-1)
            for name in ("both", "no_object", "no_background")
        }


def jensen_shannon(p: Float[Tensor, "image class"], q: Float[Tensor, "image class"]) -> Float[Tensor, "image"]:
    """Jensen-Shannon divergence in nats."""
    middle = (p + q) / 2

    def relative_entropy(first: Tensor) -> Tensor:
        return (first * (first.clamp_min(1e-30).log() - middle.clamp_min(1e-30).log())).sum(-1)

    return (relative_entropy(p) + relative_entropy(q)) / 2


def shortcut_figures(
    model: ViTForImageClassification, groups: dict[str, GroupScenes], heads: Heads = ()
) -> dict[str, float]:
    """Accuracy per group, object-only accuracy and background influence ratio with `heads` zeroed.

    Args:
        model: The classifier.
        groups: By name: scenes of equal number.
        heads: Zeroed (layer, head) pairs.

    Returns:
        Fractions: one accuracy per group, "object_only" (background removed), "bir" (ratio of sums of Jensen-Shannon
        divergences), and in nats the means "big" (background removed), "fig" (object removed), "damage" (change of the
        object-only prediction by the zeroing; 0 without heads).
    """
    figures: dict[str, float] = {}
    background, foreground, damage, right = [], [], [], []
    for name, scenes in groups.items():
        q = group_probabilities(model, scenes, heads)
        figures[name] = float((q["both"].argmax(1) == scenes.labels).float().mean())
        right.append((q["no_background"].argmax(1) == scenes.labels).float())
        background.append(jensen_shannon(q["both"], q["no_background"]))
        foreground.append(jensen_shannon(q["both"], q["no_object"]))
        if heads:
            damage.append(jensen_shannon(_object_only(model, scenes), q["no_background"]))
    big, fig = torch.cat(background), torch.cat(foreground)
    figures["object_only"] = float(torch.cat(right).mean())
    figures["bir"] = float(big.sum() / (big.sum() + fig.sum()))
    figures["big"], figures["fig"] = float(big.mean()), float(fig.mean())
    figures["damage"] = float(torch.cat(damage).mean()) if damage else 0.0
    return figures


@torch.no_grad()
def _object_only(model: ViTForImageClassification, scenes: GroupScenes) -> Float[Tensor, "image class"]:
    return model.classifier(cls_features(model.vit, scenes.no_background)).softmax(-1)
