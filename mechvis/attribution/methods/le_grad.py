"""LeGrad: how much each block's attention, taken alone, could raise the score.

For each block from `start` on:

1. its output is read as if it were the last: mean over all tokens, final norm, projection, head: the score `s_l`;
2. `G_l = ds_l / dA_l`, the gradient with respect to that block's own pattern;
3. its map is `mean over heads and queries of relu(G_l)`, at the columns of patches.

The maps of blocks are added up. A model that pools by attention is read through its own pooling, and the gradient is
that of the pooling's pattern over the block's tokens.

SigLIP's correction: cells at which the map of an empty prompt exceeds 0.8 of its own maximum are set to zero (`empty`,
the embedding of an empty text).

Source: methods2.md 18.4 [C]. Here the maps stay in their unit (score per attention); the release scales each to
[0, 1], which hides how much there is.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from mechvis import block as plain
from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.question import Question
from mechvis.errors import OutOfRange, ShapeMismatch, unknown

Pool = Literal["mean", "model"]
CUT = 0.8
"""Share of an empty prompt's maximum above which a cell is set to zero."""


@dataclass(frozen=True, kw_only=True)
class LeGrad(Method):
    """LeGrad.

    Example:
        >>> mechvis.attribute(clip, images, LeGrad(start=-3), target="a star")                 # doctest: +SKIP
    """

    NAME = "legrad"
    CLAIMS = Claims(class_specific=True, signed=False)
    SOURCE = "methods2.md 18.4 [C]; Bousselham et al. 2024"
    start: int = -2
    """First block that is looked at; negative: from the end."""
    pool: Pool = "mean"
    """How a block's tokens are read: their mean over all tokens as in the release, or as the model reads its last
    block (a model that pools by attention is always read so)."""
    times_attention: bool = False
    """Multiply the gradient by the pattern."""
    empty: Any = None
    """Embedding `[d_embed]` of an empty prompt, for SigLIP's correction; None: no correction."""

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch.

        Raises:
            OutOfRange: start is not a block.
            ShapeMismatch: the empty prompt is no embedding of this model.
        """
        if not -ask.n_layers <= self.start < ask.n_layers:
            raise OutOfRange(f"start={self.start}: this model has {ask.n_layers} blocks.")
        if self.pool not in get_args(Pool):
            raise unknown("pooling of LeGrad", self.pool, get_args(Pool))
        layers = range(self.start % ask.n_layers, ask.n_layers)
        sites = [f"blocks.{layer}.{name}" for layer in layers for name in ("attn.hook_pattern", "hook_resid_post")]
        run = ask.model.run(ask.pixels, capture=sites, grad=True)
        ask.cost.forwards += len(ask.pixels)
        found, blank = [], []
        with torch.enable_grad():
            for layer in layers:
                stream, own = (run.cache[f"blocks.{layer}.{n}"] for n in ("hook_resid_post", "attn.hook_pattern"))
                read, pattern = self._read(ask, stream)
                pattern = own if pattern is None else pattern
                found.append(self._map(ask, ask.target.read(_logits(ask, read)), pattern))
                if self.empty is not None:
                    blank.append(self._map(ask, _similarity(ask, read, self.empty), pattern))
        total = torch.stack(found).sum(0)
        if blank:
            nothing = torch.stack(blank).sum(0)
            total = total.masked_fill(nothing > CUT * nothing.amax(1, keepdim=True), 0)
        return Maps(values=total)

    def _map(self, ask: Question, score: Float[Tensor, " image"], pattern: Tensor) -> Float[Tensor, "image patch"]:
        (gradient,) = torch.autograd.grad(score.sum(), pattern, retain_graph=True)
        ask.cost.backwards += len(ask.pixels)
        with torch.no_grad():
            gradient = gradient * pattern if self.times_attention else gradient
            seen = reduce(gradient.relu(), "image head query key -> image key", "mean")
        return seen[:, seen.shape[1] - ask.n_patches :].detach()

    def _read(self, ask: Question, stream: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the head reads of a block's tokens, and the pooling's pattern over them, if the model has a pooling."""
        parts = replace(ask.parts, head=None)
        if parts.pooling is not None:
            return _pooled(parts, stream)
        if self.pool == "mean":
            stream = stream.mean(1, keepdim=True).expand_as(stream)
        return plain.read_out(parts, stream, lambda x: ask.model._pick(x, x)), None


def _pooled(parts: Any, stream: Tensor) -> tuple[Tensor, Tensor]:
    """Attention pooling with its pattern in the open."""
    pooling, attn = parts.pooling, parts.pooling.attn
    x = parts.ln_final(stream) if parts.norm in ("tokens", "read") else stream
    q, (k, v) = attn.q(pooling.latents(len(x))), attn.kv(x)
    pattern = plain.pattern_of(attn, plain.scores_of(attn, q, k))
    x = attn.out(plain.merge(plain.finish(attn, plain.mix_explicit(pattern, v))))
    x = x if pooling.mlp is None else plain.mlp(pooling.mlp, x) + x
    x = parts.pool(x)
    x = parts.ln_final(x) if parts.norm == "pooled" else x
    return (x if parts.project is None else parts.project(x)), pattern


def _logits(ask: Question, read: Tensor) -> Tensor:
    return read if ask.parts.head is None else ask.parts.head(read)


def _similarity(ask: Question, read: Tensor, empty: Any) -> Float[Tensor, " image"]:
    given = torch.as_tensor(empty)
    if given.ndim != 1 or len(given) != read.shape[1]:
        raise ShapeMismatch(
            f"empty= is the embedding [{read.shape[1]}] of an empty prompt, clip.encode_text([''])[0]; got "
            f"{list(given.shape)}."
        )
    return F.normalize(read, dim=1) @ F.normalize(given.to(read), dim=0)
