"""The two sparse operations that training is made of, with gradients only where codes are not zero.

Of 12 B n d products that a dense step takes (B rows, n latents, d columns), 2 B n d are needed: the encoder has to look
at every latent to know which are active. The rest is about the active ones: 8 B k d.

* `encode_at`: pre-activations at the active places. Their values come from the encoder's product, which nobody
  differentiates; the gradient of W_enc is a sum over the entries of each latent.
* `decode_at`: what the active latents write. The gradient of a value is one inner product, that of W_dec such a sum.
* `gather`: a number per latent (threshold, bias), at the entries.

The sums run over entries in one fixed order (`Support.by_latent`), without atomics, so a run can be repeated bit by
bit. The bias that is taken off before encoding gets its gradient from the column sums: Σ_b ∂/∂pre is multiplied with
W_enc once, instead of every row (openai/sparse_autoencoder [code]).
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from mechvis.kernels.sparse_decode import sparse_decode
from mechvis.kernels.sparse_grad import column_sums, entry_products, segment_sum
from mechvis.kernels.support import Support
from sae import held


def encode_at(
    x: Float[Tensor, "row d"],
    shift: Float[Tensor, " d"] | None,
    weight: Float[Tensor, "latent d"],
    bias: Float[Tensor, " latent"] | None,
    support: Support,
    values: Float[Tensor, " entry"] | None = None,
    centred: Float[Tensor, "row d"] | None = None,
) -> Float[Tensor, " entry"]:
    """`((x - shift) @ weight.T + bias)` at the entries of a support.

    Args:
        x: rows.
        shift: taken off every row before; None for nothing.
        weight: of the encoder.
        bias: added to every latent; None for nothing.
        support: the entries.
        values: the numbers themselves, where they are known already; None: they are computed here.
        centred: `x - shift`, where it is known already.
    """
    return _EncodeAt.apply(x, shift, weight, bias, support, values, centred, _holder(weight))


def decode_at(
    values: Float[Tensor, " entry"], support: Support, weight: Float[Tensor, "latent d"]
) -> Float[Tensor, "row d"]:
    """`dense(values) @ weight`."""
    return _DecodeAt.apply(values, support, weight, _holder(weight))


def gather(numbers: Float[Tensor, " latent"], support: Support) -> Float[Tensor, " entry"]:
    """A number per latent, at the entries."""
    return _Gather.apply(numbers, support)


def rows_of(values: Float[Tensor, " entry"], support: Support) -> Float[Tensor, " row"]:
    """Sum of the entries of each row."""
    return _RowSums.apply(values, support)


def _holder(weight: Tensor) -> Callable[..., None] | None:
    """Takes the weight's gradient, where gradients are held back (`sae.held`)."""
    holding = held.current()
    name = None if holding is None else holding.name_of(weight)
    return None if name is None else partial(holding.add, name)


def _to_weight(
    holder: Callable[..., None] | None, values: Tensor, x: Tensor, support: Support, products: Tensor | None = None
) -> Tensor | None:
    if holder is None:
        return segment_sum(values, x, support)
    return holder(held.Share(values=values, x=x, support=support, products=products))


class _EncodeAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, shift, weight, bias, support, values, centred, holder):
        if centred is None:
            centred = x if shift is None else x - shift
        if values is None:
            values = entry_products(centred, weight, support)
            values = values if bias is None else values + bias[support.latents]
        ctx.support, ctx.holder = support, holder
        ctx.save_for_backward(centred, weight)
        return values.clone() if values.requires_grad else values

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        centred, weight = ctx.saved_tensors
        wants_x, wants_shift, wants_weight, wants_bias = ctx.needs_input_grad[:4]
        grad = grad.contiguous()
        to_weight = _to_weight(ctx.holder, grad, centred, ctx.support) if wants_weight else None
        sums = column_sums(grad, ctx.support) if wants_shift or wants_bias else None
        to_shift = -(sums @ weight) if wants_shift else None
        to_x = sparse_decode(grad, ctx.support, weight) if wants_x else None
        return to_x, to_shift, to_weight, sums if wants_bias else None, None, None, None, None


class _DecodeAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, support, weight, holder):
        ctx.support, ctx.holder = support, holder
        ctx.save_for_backward(values, weight)
        return sparse_decode(values, support, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        values, weight = ctx.saved_tensors
        grad = grad.contiguous()
        to_values = entry_products(grad, weight, ctx.support) if ctx.needs_input_grad[0] else None
        to_weight = _to_weight(ctx.holder, values, grad, ctx.support, to_values) if ctx.needs_input_grad[2] else None
        return to_values, None, to_weight, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, numbers, support):
        ctx.support = support
        return numbers[support.latents]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return column_sums(grad.contiguous(), ctx.support), None


class _RowSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, support):
        ctx.support = support
        # A segment sum with one column: rows ascend, so this is a difference of places, in a fixed order.
        return torch.segment_reduce(values, "sum", offsets=support.offsets, initial=0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad[ctx.support.rows], None
