"""A repaired head on a wrapped model: runs, edits and sweeps see its logits; the user's module is not changed."""

import hashlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mechvis.errors import ShapeMismatch, UnsupportedModel
from mechvis.hooked import HookedViT
from mechvis.models.parts import TowerParts
from probes.repair.linear_head import LinearHead


class AttachedHead:
    """A linear head as a function of the pooled token."""

    def __init__(self, head: LinearHead):
        self.weight, self.bias = torch.from_numpy(head.weight), torch.from_numpy(head.bias)

    def __call__(self, pooled: Tensor) -> Tensor:
        return pooled @ self.weight.to(pooled).T + self.bias.to(pooled)

    @property
    def fingerprint(self) -> str:
        """Hash of weight and bias."""
        return hashlib.sha256(self.weight.numpy().tobytes() + self.bias.numpy().tobytes()).hexdigest()[:16]


def with_head(model: Any, head: LinearHead) -> HookedViT:
    """The model with another linear head.

    Args:
        model: a wrapped classifier without a projection before its head.
        head: e.g. `repair.head("DISC")`.

    Raises:
        UnsupportedModel: the model projects before its head.
        ShapeMismatch: a head of another width.

    Example:
        >>> repaired = with_head(model, disc(train, test, vectors, head=head_of(model)).head())      # doctest: +SKIP
        >>> mechvis.sweep(repaired, images, units="heads")                                           # doctest: +SKIP
    """
    if model.parts.project is not None:
        raise UnsupportedModel(
            f"{model.parts.family} projects before its head; a repaired head reads the pooled token."
        )
    width = model.graph["hook_pooled"].sizes[-1]
    if head.weight.shape[1] != width:
        raise ShapeMismatch(f"the head reads {head.weight.shape[1]} dimensions, this model pools to {width}.")
    names = model.parts.class_names

    def attached(parts: TowerParts) -> TowerParts:
        new = AttachedHead(head)

        def reference(inputs: Tensor) -> Tensor:
            return new(model.run(inputs, capture=["hook_pooled"]).cache["hook_pooled"])

        kept = names if len(names) == len(head.bias) else ()
        return replace(parts, head=new, class_names=kept, reference=reference)

    made = HookedViT(model.bare, attached(model.parts), preprocess=model.preprocess, name=f"{model.title}, repaired")
    own = model.family
    made.__dict__["family"] = None if own is None else lambda module: attached(own(module))
    made.__dict__["parity"] = model.parity
    return made
