"""Attention followed backwards through the blocks: one function, and the ways to weigh a pattern before it.

`rolled` multiplies a row (how much the output takes from each token, see `patterns`) by one matrix per block, last
block first: `row <- row W_l`. Methods differ in the matrices alone:

===============  ==========================================================  ============  ========================
method           W_l                                                         looks at      source
===============  ==========================================================  ============  ========================
`RawAttention`   `mean_h A` of one block                                     nothing more  methods.md 10 [C]
`AttentionRollout`  `rownorm((1 - w) fuse_h A + w I)`, w = 1/2               nothing more  methods.md 10 [C]
`GradientRollout`   `rownorm(relu(mean_h dA * A) + I)`                       the target    methods.md 10 [C]
`TransitionMaps`    `mean_h A`; last attention `relu(mean_h dA * A)`         the target    methods2.md 18.8 [K]
`TokenTM`        `I + mean_h A * change of the token's length and direction` values        methods2.md 18.8 [K]
===============  ==========================================================  ============  ========================

`dA` is the gradient of the explained score. Attention says where a head looks, not what it does with what it sees:
on a model wired so that loud heads write where nobody reads, rollout is wrong on almost every image. Without a
gradient there is no class in it either: every target gets the same map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.methods.patterns import Pattern, Weights, pattern_sites, split
from mechvis.attribution.question import Question
from mechvis.errors import OutOfRange, RefusedMethod, unknown

Fusion = Literal["mean", "max", "min"]

_ATTENTION = Claims(class_specific=False, signed=False, reads="attention")
_GRADIENT = Claims(class_specific=True, signed=False)


def rolled(row: Float[Tensor, "image token"], weights: Sequence[Weights]) -> Float[Tensor, "image token"]:
    """A row followed back through the blocks: `row W_L ... W_1`.

    Args:
        row: how much the output takes from each token after the last block.
        weights: one matrix per block, first block first.

    Example:
        >>> half = torch.tensor([[[0.5, 0.5], [0.0, 1.0]]])
        >>> rolled(torch.tensor([[1.0, 0.0]]), [half, half]).tolist()
        [[0.25, 0.75]]
    """
    for weight in reversed(weights):
        row = einsum(row, weight, "image query, image query key -> image key")
    return row


def fused(pattern: Pattern, how: Fusion = "mean") -> Weights:
    """One pattern for all heads: their mean, maximum or minimum."""
    if how not in get_args(Fusion):
        raise unknown("fusion of heads", how, get_args(Fusion))
    return pattern.mean(1) if how == "mean" else pattern.amax(1) if how == "max" else pattern.amin(1)


def without_lowest(weights: Weights, share: float) -> Weights:
    """The smallest entries of each image set to zero, so many of them in share; what goes into CLS (key 0) stays."""
    if not 0 <= share < 1:
        raise OutOfRange(f"discard={share}: give a share from 0 up to, not including, 1.")
    flat = weights.flatten(1)
    n = int(flat.shape[1] * share)
    if not n:
        return weights
    lowest = flat.argsort(dim=1, stable=True)[:, :n]
    lowest_is_key_0 = lowest % weights.shape[2] == 0
    kept = flat.scatter(1, lowest, torch.where(lowest_is_key_0, flat.gather(1, lowest), 0.0))
    return kept.view_as(weights)


def with_residual(weights: Weights, share: float = 0.5) -> Weights:
    """`rownorm((1 - share) W + share I)`: the stream passes by the attention. A matrix that is not square (pooling,
    whose queries are no tokens) is row-normalised only."""
    if not 0 <= share < 1:
        raise OutOfRange(f"residual={share}: give a share from 0 up to, not including, 1.")
    if weights.shape[1] == weights.shape[2]:
        weights = (1 - share) * weights + share * torch.eye(weights.shape[1]).to(weights)
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def plus_identity(weights: Weights) -> Weights:
    """`W + I`; a matrix that is not square stays as it is."""
    return weights + torch.eye(weights.shape[1]).to(weights) if weights.shape[1] == weights.shape[2] else weights


def gradient_times_pattern(ask: Question) -> tuple[list[Pattern], list[Pattern]]:
    """Patterns, and gradient of the score times pattern, of every attention up to the output."""
    sites = pattern_sites(ask)
    _, patterns, gradients = ask.gradients(sites)
    return [patterns[site] for site in sites], [patterns[site] * gradients[site] for site in sites]


def as_maps(ask: Question, row: Float[Tensor, "image token"]) -> Maps:
    """The row of all tokens as a map of patches, with the prefix beside it."""
    return Maps(values=row[:, ask.n_prefix :], prefix=row[:, : ask.n_prefix])


@dataclass(frozen=True, kw_only=True)
class RawAttention(Method):
    """The pattern of one attention as it is, mean over heads, at the rows that the output reads.

    Example:
        >>> mechvis.attribute(model, images, RawAttention(layer=2))           # doctest: +SKIP
    """

    NAME = "raw_attention"
    CLAIMS = _ATTENTION
    SOURCE = "methods.md 10 [C]"
    layer: int | None = None
    """Block; negative: from the end; None: the last attention before the output (a pooling's own, where there is
    one)."""
    heads: Fusion = "mean"
    """How heads are fused."""

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch."""
        sites = pattern_sites(ask)
        chosen = sites[-1] if self.layer is None else f"blocks.{ask.layer(self.layer)}.attn.hook_pattern"
        _, patterns = ask.captured([chosen] if chosen == sites[-1] else [chosen, sites[-1]])
        row, weights = split(ask, [patterns[site] for site in patterns], lambda pattern: fused(pattern, self.heads))
        if self.layer is None and ask.parts.pooling is not None:
            return as_maps(ask, row)
        return as_maps(ask, rolled(row, weights[:1]))


@dataclass(frozen=True, kw_only=True)
class AttentionRollout(Method):
    """Product of attention patterns, each mixed with the identity (Abnar and Zuidema 2020).

    Example:
        >>> mechvis.attribute(model, images, AttentionRollout(heads="max", discard=0.9))        # doctest: +SKIP
    """

    NAME = "rollout"
    CLAIMS = _ATTENTION
    SOURCE = "methods.md 10 [C]; Abnar and Zuidema 2020"
    heads: Fusion = "mean"
    """How heads are fused."""
    discard: float = 0.0
    """Share of the lowest entries of each fused pattern that is set to zero."""
    residual: float = 0.5
    """Share of the identity."""

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch."""
        _, patterns = ask.captured(pattern_sites(ask))

        def weighting(pattern: Pattern) -> Weights:
            return with_residual(without_lowest(fused(pattern, self.heads), self.discard), self.residual)

        return as_maps(ask, rolled(*split(ask, list(patterns.values()), weighting)))


@dataclass(frozen=True, kw_only=True)
class GradientRollout(Method):
    """Rollout of patterns weighted by the gradient of the score: heads that raise it count.

    Gradients of a well-trained model are small beside the identity, so that the map is close to that of one step; the
    order of patches is what it says.

    Example:
        >>> mechvis.attribute(model, images, GradientRollout(), contrast="runner_up")          # doctest: +SKIP
    """

    NAME = "gradient_rollout"
    CLAIMS = _GRADIENT
    SOURCE = "methods.md 10 [C]"
    discard: float = 0.0
    """Share of the lowest entries of each weighted pattern that is set to zero."""

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch."""
        _, weighted = gradient_times_pattern(ask)

        def weighting(product: Pattern) -> Weights:
            kept = plus_identity(without_lowest(product.mean(1).relu(), self.discard))
            return kept if kept.shape[1] != kept.shape[2] else kept / kept.sum(-1, keepdim=True)

        return as_maps(ask, rolled(*split(ask, weighted, weighting)))


@dataclass(frozen=True, kw_only=True)
class TransitionMaps(Method):
    """A state that starts at the output's row of the last pattern, weighted by the gradient, and passes back through
    the mean patterns of all other blocks, without an identity.

    Example:
        >>> mechvis.attribute(model, images, TransitionMaps(), target="true")                  # doctest: +SKIP
    """

    NAME = "transition_maps"
    CLAIMS = _GRADIENT
    SOURCE = "methods2.md 18.8 [K]; Yuan et al. 2021 integrate the last block's gradient, here it is taken once"

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch."""
        patterns, weighted = gradient_times_pattern(ask)
        mixed = [pattern.mean(1) for pattern in patterns[:-1]] + [weighted[-1].mean(1).relu()]
        return as_maps(ask, rolled(*split(ask, mixed, lambda weights: weights)))


@dataclass(frozen=True, kw_only=True)
class TokenTM(Method):
    """Rollout in which an entry counts by what the attention makes of its token: how much longer, and how much turned.

    The token `x_j` (the stream before the block, which is what the identity carries) becomes
    `z_j = sum_h W_O^h v_j^h`. Its column is weighted by `|z_j| / |x_j| * exp(cos(z_j, x_j)) / mean_k exp(cos(z_k,
    x_k))`. We weigh the mean pattern by the write of all heads together; the pooling of SigLIP, which carries nothing
    on, keeps its plain pattern.

    Example:
        >>> mechvis.attribute(model, images, TokenTM())                                        # doctest: +SKIP
    """

    NAME = "token_tm"
    CLAIMS = _ATTENTION
    SOURCE = "methods2.md 18.8 [K]; Wu et al. 2024"

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch.

        Raises:
            RefusedMethod: the block's write is not linear in the values (a norm after attention).
        """
        linear_writes(ask, self.NAME)
        sites = pattern_sites(ask)
        more = [f"blocks.{i}.{name}" for i in range(ask.n_layers) for name in ("attn.hook_v", "hook_resid_pre")]
        _, cache = ask.captured([*sites, *more])
        weights = []
        for layer in range(ask.n_layers):
            values, stream = cache[f"blocks.{layer}.attn.hook_v"], cache[f"blocks.{layer}.hook_resid_pre"]
            write = einsum(values, ask.model.blocks[layer].attn.W_O.detach(), "i t h e, h e d -> i t d")
            change = transformation(write, stream)
            weights.append(plus_identity(cache[sites[layer]].mean(1) * change[:, None, :]))
        pooled = [] if ask.parts.pooling is None else [cache[sites[-1]].mean(1)]
        return as_maps(ask, rolled(*split(ask, [*weights, *pooled], lambda given: given)))


def transformation(
    write: Float[Tensor, "image token d_model"], stream: Float[Tensor, "image token d_model"]
) -> Float[Tensor, "image token"]:
    """How much a token is lengthened and turned: `|z| / |x| * exp(cos) / mean exp(cos)`."""
    length = write.norm(dim=-1) / stream.norm(dim=-1).clamp(min=torch.finfo(stream.dtype).tiny)
    turned = F.cosine_similarity(write, stream, dim=-1).exp()
    return length * turned / turned.mean(-1, keepdim=True)


def linear_writes(ask: Question, name: str) -> None:
    """Refuse a model whose attention does not write the sum of what its heads take from single tokens.

    Raises:
        RefusedMethod: says which part is in the way.
    """
    for block in ask.parts.blocks:
        if not block.linear_writes or block.attn.after is not None:
            raise RefusedMethod(
                f"{name} needs what attention takes from each token; in {ask.parts.family} a norm stands between the "
                "mixed values and the stream, so that the write is no sum over tokens. Use a gradient method."
            )
