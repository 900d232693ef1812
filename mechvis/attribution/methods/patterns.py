"""Which attention patterns lead to the output, and which of their rows it reads.

Methods that follow attention backwards need two things of a model: the patterns in order (`pattern_sites`), and where
to start (`first_row`): how much each token counts in what the read-out takes.

* a model that reads CLS starts at CLS; one that reads CLS and a distillation token, at both;
* a model that takes a mean starts at all tokens of that mean;
* a model that pools by attention (SigLIP) starts at the pattern of the pooling, whose queries are no tokens.

Which tokens count is asked of the model's own pooling, by one token at a time, and not of its name. Registers are
sources like any other token; only the map leaves them out.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mechvis.attribution.question import Question

POOLING = "pool.attn.hook_pattern"
"""Site of the pooling's pattern."""

Pattern = Float[Tensor, "image head query key"]
Weights = Float[Tensor, "image query key"]


def pattern_sites(ask: Question) -> list[str]:
    """Sites of all patterns, first block first; the pooling's is the last, where there is one."""
    sites = [f"blocks.{layer}.attn.hook_pattern" for layer in range(ask.n_layers)]
    return sites if ask.parts.pooling is None else [*sites, POOLING]


def read_weights(ask: Question) -> Float[Tensor, " slot"]:
    """How much each token counts in the read-out (adding up to one); of a model that pools by attention: each latent.

    Measured: the pooling's answer to one token of ones among zeros, relative to that to zeros.
    """
    parts = ask.parts
    if parts.pooling is not None:
        slots, width, places = parts.pooling.n_latents, parts.pooling.d_out, None
    else:
        places = parts.reads
        slots, width = parts.n_tokens if places is None else len(places), parts.d_model
    one = torch.eye(slots, device=ask.pixels.device, dtype=ask.pixels.dtype)[:, :, None].expand(-1, -1, width)
    with torch.no_grad():
        moved = (parts.pool(one) - parts.pool(torch.zeros_like(one))).abs().flatten(1).sum(1)
    weights = moved / moved.sum()
    if places is None:
        return weights
    return weights.new_zeros(parts.n_tokens).index_add(0, torch.tensor(places, device=weights.device), weights)


def first_row(ask: Question, pooled: Weights | None) -> Float[Tensor, "image token"]:
    """Where following attention backwards starts: how much the output takes from each token after the last block.

    Args:
        ask: the question.
        pooled: the pooling's pattern `[image latent key]` after the method's own weighting, for a model that has one.
    """
    weights = read_weights(ask)
    if pooled is None:
        return weights.expand(len(ask.pixels), -1)
    row = einsum(weights, pooled, "latent, image latent key -> image key")
    return row if ask.parts.pooling.keys == "token" else F.pad(row, (ask.n_prefix, 0))


def split(
    ask: Question, patterns: list[Tensor], weighting: Callable[[Tensor], Weights]
) -> tuple[Float[Tensor, "image token"], list[Weights]]:
    """First row and weights of the blocks, each pattern weighted in the same way."""
    found = [weighting(pattern) for pattern in patterns]
    if ask.parts.pooling is None:
        return first_row(ask, None), found
    return first_row(ask, found[-1]), found[:-1]
