"""Queries, keys and values when every head reads a stream of its own.

A run in which edges are cut has one stream per head and input ("fork"). Two ways to project them:

* *products*: `ln1(fork) @ W[head] + b[head]`: for all heads together it costs what one ordinary projection does. It
  holds where the projection is one product per head, which is tried on the clean stream (adapters, norms on queries or
  keys may break it);
* *calls*: the user's own projection of each fork, of which one head is kept: holds everywhere, costs `head` times more.
  It is the plain twin.
"""

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from mechvis.axes import PerHead, Residual
from mechvis.models.parts import AttentionParts, BlockParts
from mechvis.wave.same import same

Forks = Float[Tensor, "fork row token d_model"]
Projected = Float[Tensor, "fork row token d_head"]

KINDS = ("q", "k", "v")


def project(attn: AttentionParts, kind: str, normalised: Residual) -> PerHead:
    """Queries, keys or values of all heads, by the user's own modules."""
    if kind == "q":
        return attn.q(normalised)
    return attn.kv(normalised)[KINDS.index(kind) - 1]


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """How the forks of one layer are projected."""

    block: BlockParts
    """The layer."""
    weights: dict[str, Tensor]
    """Per input that is a product: `[head d_model d_head]`; the others are called."""
    biases: dict[str, Tensor | None]
    """Per input: `[head d_head]` or None."""

    def of(self, kind: str, heads: Tensor, forks: Forks) -> Projected:
        """One head's queries, keys or values per fork.

        Args:
            kind: `q`, `k` or `v`.
            heads: which head each fork belongs to `[fork]`.
            forks: what these heads read, before the norm.
        """
        normalised = self.block.ln1(forks)
        if kind not in self.weights:
            n = len(forks)
            every = project(self.block.attn, kind, normalised.flatten(0, 1)).unflatten(0, (n, -1))
            return torch.stack([every[fork, :, :, head] for fork, head in enumerate(heads.tolist())])
        out = einsum(normalised, self.weights[kind][heads], "fork row token d, fork d e -> fork row token e")
        bias = self.biases[kind]
        return out if bias is None else out + rearrange(bias[heads], "fork e -> fork 1 1 e")


@torch.no_grad()
def layer_inputs(block: BlockParts, stream: Residual, products: bool = True) -> LayerInputs:
    """How to project the forks of a layer.

    Args:
        block: the layer.
        stream: what it reads in the clean run (a row or two are enough): products are tried on it.
        products: False: the plain twin.
    """
    if not products:
        return LayerInputs(block, {}, {})
    normalised = block.ln1(stream)
    found_weights, found_biases = {}, {}
    for kind, weight, bias in zip(KINDS, block.attn.in_weights(), block.attn.in_biases(), strict=True):
        own = einsum(normalised, weight, "row token d, head d e -> row token head e")
        own = own if bias is None else own + bias
        if same(own, project(block.attn, kind, normalised)):
            found_weights[kind], found_biases[kind] = weight, bias
    return LayerInputs(block, found_weights, found_biases)
