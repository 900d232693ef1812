"""Which form a loss takes where nobody knows beforehand how many latents are active (ReLU, Gated, JumpReLU).

TopK knows its entries' number; here it follows from the numbers themselves, so a device that works behind the host is
waited for once per step. Early in training half of all latents are active, and lists of entries cost more than the
matrix would. The rule: lists where at most `CPU_LIMIT` (elsewhere `LIMIT`) of all latents are active, the matrix where
more are. It depends on nothing but the batch, and both are the same loss, so a run can be repeated bit by bit.

The product with the encoder is not computed twice: the matrix gets the history that it did not have (`_WithHistory`).
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from mechvis.kernels.support import Support
from sae.active import Encoder, encoder

CPU_LIMIT = 0.3
"""Largest share of active latents for lists on a CPU, where both cost the same at 30 to 50 % (512 rows, 2048 latents,
64 and 768 columns, one thread [run])."""
LIMIT = 0.1
"""The same elsewhere. Not measured: a GPU multiplies matrices so much faster than it gathers rows that it is lower."""


def settled(
    e: Encoder,
    active: Callable[[Float[Tensor, "row latent"]], Bool[Tensor, "row latent"]],
    limit: float | None = None,
) -> tuple[Encoder, Support]:
    """The places that are active, and the encoder in the form that is worth it for so many.

    Args:
        e: a batch, encoded.
        active: says from pre-activations which places belong to the support.
        limit: largest share of active places for the fast form; None: the rule.

    Returns:
        The encoder, fast or plain, and the places.
    """
    with torch.no_grad():
        mask = active(e.pre.detach())
        support = Support.from_mask(mask)
        if limit is None:
            limit = CPU_LIMIT if mask.device.type == "cpu" else LIMIT
        if not e.fast or len(support) <= limit * mask.numel():
            return e, support
    if not e.exact:
        plain = encoder(e.x, e.shift, e.weight, e.bias, fast=False)
        with torch.no_grad():
            return plain, Support.from_mask(active(plain.pre.detach()))
    pre = _WithHistory.apply(e.x, e.shift, e.weight, e.bias, e.pre)
    return Encoder(x=e.x, shift=e.shift, weight=e.weight, bias=e.bias, pre=pre, fast=False, exact=True), support


class _WithHistory(torch.autograd.Function):
    """A product that was computed without history, with the gradients that it would have had."""

    @staticmethod
    def forward(ctx, x, shift, weight, bias, pre):
        ctx.save_for_backward(x if shift is None else x - shift, weight)
        return pre.clone() if pre.requires_grad else pre.view_as(pre)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        centred, weight = ctx.saved_tensors
        wants_x, wants_shift, wants_weight, wants_bias = ctx.needs_input_grad[:4]
        sums = grad.sum(0) if wants_shift or wants_bias else None
        return (
            grad @ weight if wants_x else None,
            -(sums @ weight) if wants_shift else None,
            grad.T @ centred if wants_weight else None,
            sums if wants_bias else None,
            None,
        )
