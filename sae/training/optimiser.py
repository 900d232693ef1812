"""Adam for dictionaries: with decoder rows that stay on the sphere.

Plain form, in steps: (1) take the part of a unit row's gradient that points along the row off, since a step there would
be undone by (4); (2) scale all gradients down if their norm is above `clip`; (3) Adam; (4) make unit rows unit again.
`sae.training.fused` does the same in one pass over each row.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.training.settings import Training

if TYPE_CHECKING:
    from sae.dictionary import Dictionary
    from sae.held import Sizes


class Adam:
    """Moments of a dictionary's parameters, and the step.

    Args:
        dictionary: its parameters are changed in place; rows of `architecture.UNIT` stay unit if the decoder is.
        settings: betas, eps, clip.
    """

    def __init__(self, dictionary: "Dictionary", settings: Training):
        self.parameters = dict(dictionary.named_parameters())
        unit = dictionary.architecture.decoder == "unit"
        self.unit = [name for name in dictionary.architecture.UNIT if unit and name in self.parameters]
        self.settings, self.shards = settings, dictionary.shards
        self.mine = dictionary.mine
        self.first = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.second = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.count = 0

    @torch.no_grad()
    def step(self, lr: float, sizes: Mapping[str, "Sizes"] | None = None) -> Tensor:
        """One step along the gradients that the parameters hold; they are set to None.

        Args:
            lr: learning rate.
            sizes: norms of gradients that are known already; the plain form takes them itself.

        Returns:
            The norm of the gradient before it was clipped (on the device).
        """
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        for name in self.unit:
            if name in gradients:
                gradients[name] = tangent(gradients[name], self.parameters[name])
        norm = self.shards.norm(gradients, self.mine)
        clip = self.settings.clip
        factor = None if clip is None else (clip / norm.clamp_min(1e-30)).clamp(max=1.0)
        self.count += 1
        (b1, b2), eps = self.settings.betas, self.settings.eps
        for name, grad in gradients.items():
            grad = grad if factor is None else grad * factor
            first, second = self.first[name], self.second[name]
            first.lerp_(grad, 1 - b1)
            second.mul_(b2).addcmul_(grad, grad, value=1 - b2)
            scale = (second.sqrt() / (1 - b2**self.count) ** 0.5).add_(eps)
            self.parameters[name].addcdiv_(first, scale, value=-lr / (1 - b1**self.count))
            self.parameters[name].grad = None
        for name in self.unit:
            renormalise_(self.parameters[name])
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Moments, for a checkpoint."""
        return {
            **{f"first.{name}": t for name, t in self.first.items()},
            **{f"second.{name}": t for name, t in self.second.items()},
        }

    def load(self, tensors: Mapping[str, Tensor], count: int) -> None:
        """Moments from a checkpoint."""
        for name in self.parameters:
            self.first[name].copy_(tensors[f"first.{name}"])
            self.second[name].copy_(tensors[f"second.{name}"])
        self.count = count


def tangent(grad: Tensor, rows: Tensor) -> Tensor:
    """The part of a gradient that is at right angles to unit rows."""
    return grad - (grad * rows).sum(1, keepdim=True) * rows


def renormalise_(rows: Tensor) -> None:
    """Rows of norm one, in place; a row of zeros stays."""
    norms = rows.norm(dim=1, keepdim=True)
    rows.div_(torch.where(norms > 0, norms, 1.0))
