"""The MLP's first product for rows that an ablated head has just made.

Such a row is the clean stream plus a change of rank d_head: `row = clean + dz W_O` (`dz` is what the head's z changes
by). A norm is linear up to one factor per token (`1 / scale`), and so the first product of the MLP is too:

    pre(row) = b + scale(clean) / scale(row) (pre(clean) - b) + dz / scale(row) (W_O' diag(gain) W_in)

`b` is what the MLP makes of the norm's bias, and `W_O'` is W_O without its mean over d_model where the norm takes the
mean off. The matrix in brackets is made once per head and call, and has d_head rows instead of d_model: in a ViT-B/16
0.04 billion multiply-adds per row for 0.46. The user's own MLP makes it, so adapters take part.

It holds where the MLP's first product is one. That is tried on the first row of every call; where it fails the rows go
through norm and product as usual (the plain twin).

Where the short way saves nothing and a kernel can run, `expand_norm` makes the rows and norms them in one pass.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mechvis import block as plain
from mechvis.axes import Residual
from mechvis.kernels.dispatch import choose
from mechvis.kernels.expand_norm import expand_norm
from mechvis.models.parts import BlockParts
from mechvis.norms import gain, gain_and_bias, is_rms, statistics
from mechvis.wave.same import same

NARROW = 256
"""The short way is taken if d_model is larger than d_head by so much."""

Changes = Float[Tensor, "unit image token d_head"]
Rows = Float[Tensor, "unit image token d_model"]
Weights = Float[Tensor, "unit d_head d_model"]


@dataclass(frozen=True)
class HeadRows:
    """What is known of the rows before they go through the MLP."""

    block: BlockParts
    change: Changes
    """New z minus old z of each unit's head."""
    clean_inverse: Float[Tensor, "image token 1"]
    """One divided by what the norm divides the clean stream by."""
    halves: tuple[tuple[Tensor, Tensor, Tensor], ...]
    """For each half of the first product (a gated MLP has two): `pre(clean) - b` `[image token d_mlp]`, `b` `[d_mlp]`,
    and what the product makes of zero `[1 1 d_mlp]`."""
    write: Weights
    """What each head writes, as the first product sees it: W_O' diag(gain)."""

    def neurons(self, rows: Rows, units: slice) -> Float[Tensor, "row token d_mlp"]:
        """What the MLP's output product reads of the rows of some units."""
        pre = tuple(half.flatten(0, 1) for half in self.pre(rows, units))
        return plain.activations(self.block, pre if self.block.gated else pre[0])

    def pre(self, rows: Rows, units: slice, images: slice = slice(None)) -> tuple[Tensor, ...]:
        """What the first product makes of the rows of some units and images, per half
        `[unit image token d_mlp]`."""
        inverse = statistics(self.block.ln2, rows)[1].reciprocal()
        ratio, change = inverse / self.clean_inverse[images], self.change[units, images] * inverse
        pre, products = [], _halves(self.block, self.write[units])
        for (base, bias, nothing), product in zip(self.halves, products, strict=True):
            sums = torch.addcmul(bias, ratio.to(base.dtype), base[images])
            sums.flatten(1, 2).baddbmm_(change.flatten(1, 2).to(base.dtype), product - nothing)
            pre.append(sums)
        return tuple(pre)


def worthwhile(block: BlockParts, clean: Residual, d_head: int) -> bool:
    """Does the short way save anything?

    With fewer tokens the matrices cost more than they save. In narrow models the three passes over the hidden layer
    that take the place of the product do (d_model 128, d_head 32: 0.97 to 1.1 times the plain way; 768, 64: 0.1).
    """
    n_tokens, d_model = clean.shape[0] * clean.shape[1], clean.shape[2]
    return n_tokens >= 2 * d_head and d_model - d_head >= NARROW and hasattr(block.ln2, "eps") and block.linear_writes


def head_rows(block: BlockParts, clean: Residual, rows: Rows, change: Changes, out: Weights) -> HeadRows | None:
    """The rows of ablated heads of one block, or None where the short way is not the same.

    Args:
        block: the block.
        clean: the clean stream after its attention.
        rows: the rows' stream after its attention, `clean + change @ out` (times LayerScale).
        change: new z minus old z of each unit's head.
        out: W_O of each unit's head.
    """
    norm = block.ln2
    zero = clean.new_zeros(1, 1, clean.shape[-1])
    write = plain.scaled(block.scale1, out.to(clean.dtype, copy=True))
    write = write if is_rms(norm) else write - write.mean(-1, keepdim=True)
    made = (_halves(block, x) for x in (norm(clean), gain_and_bias(norm, zero), zero))
    halves = tuple((pre - bias, bias[0, 0], nothing) for pre, bias, nothing in zip(*made, strict=True))
    found = HeadRows(block, change, statistics(norm, clean)[1].reciprocal(), halves, gain(norm, write))
    one = slice(0, 1)
    expected = _halves(block, norm(rows[0, one]))
    tried = zip(found.pre(rows[one, one], one, one), expected, strict=True)
    return found if all(same(own[0], their) for own, their in tried) else None


def _halves(block: BlockParts, normalised: Residual) -> tuple[Tensor, ...]:
    pre = block.mlp_in(normalised)
    return tuple(pre) if block.gated else (pre,)


@dataclass(frozen=True)
class NormedRows:
    """Rows that were normed when they were made."""

    block: BlockParts
    normed: Rows

    def neurons(self, rows: Rows, units: slice) -> Float[Tensor, "row token d_mlp"]:
        """What the MLP's output product reads of the rows of some units."""
        return plain.neurons(self.block, self.normed[units].flatten(0, 1))


def expanded(block: BlockParts, clean: Residual, into: Rows, change: Changes, out: Weights) -> NormedRows | None:
    """Make the rows of ablated heads, and norm them, by one kernel; None where there is none for them.

    Args:
        block, clean, change, out: as for `head_rows`.
        into: where the rows go.
    """
    norm = block.ln2
    # A subclass, or a hook, may do something else.
    if (
        type(norm) is not nn.LayerNorm
        or norm._forward_hooks
        or norm._forward_pre_hooks
        or norm.elementwise_affine is False
    ):
        return None
    if choose("expand_norm", clean, change, out) == "naive":
        return None
    scale = None if block.scale1 is None else block.scale1(torch.ones_like(clean[:1, :1])).flatten()
    change = rearrange(change, "unit image token e -> image token unit e")
    _, normed = expand_norm(clean, change, out, scale, norm.weight, norm.bias, eps=norm.eps, out=into)
    return NormedRows(block, normed)
