"""Terms that several losses share. Sums run over columns, means over rows (and over the processes of a team)."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae.active import Encoder, Values
from sae.architecture import Architecture, Loss, Step
from sae.ends import Ends
from sae.select import row_support

if TYPE_CHECKING:
    from sae.dictionary import Dictionary

BLOCK = 2**17
"""Numbers that are gone over at a time on a CPU."""


def squared_error(y: Float[Tensor, "row d"], y_hat: Float[Tensor, "row d"]) -> Float[Tensor, ""]:
    """Mean over rows of ‖y - ŷ‖²."""
    return _SquaredError.apply(y, y_hat)


def variance(y: Float[Tensor, "row d"], step: Step) -> Float[Tensor, ""]:
    """Mean over the rows of the whole batch of ‖y - mean‖²; no gradient."""
    seen, found = step.known.get("variance", (None, None))
    if seen is not y:
        with torch.no_grad():
            mean = step.team.mean(y.mean(0))
            found = step.team.mean(squares(y, mean) / len(y))
        step.known["variance"] = y, found
    return found


def fvu(y: Float[Tensor, "row d"], y_hat: Float[Tensor, "row d"], step: Step) -> Float[Tensor, ""]:
    """Squared error over the batch's variance: the share of variance that is not explained, as a loss."""
    error = squared_error(y, y_hat)
    # Holding both keeps their places in memory from being given to others while the step lasts.
    step.known["error"] = y, y_hat.detach(), error.detach()
    return error / variance(y, step).clamp_min(torch.finfo(y.dtype).tiny)


@torch.no_grad()
def error_of(y: Float[Tensor, "row d"], y_hat: Float[Tensor, "row d"], step: Step) -> Float[Tensor, ""]:
    """Sum over rows of ‖y - ŷ‖² in float64, for the log; looked up where the loss has taken it already."""
    seen, there, found = step.known.get("error", (None, None, None))
    if seen is y and there.data_ptr() == y_hat.data_ptr() and there.shape == y_hat.shape:
        return found.double() * len(y)
    return squares(y, y_hat).double()


def squares(a: Float[Tensor, "row d"], b: Float[Tensor, "row d"] | Float[Tensor, " d"]) -> Float[Tensor, ""]:
    """Σ‖a - b‖² without a matrix of the differences: in blocks of rows that fit the cache (all at once on a GPU)."""
    size = max(1, BLOCK // max(1, a.shape[1])) if a.device.type == "cpu" else max(1, len(a))
    found = []
    for first in range(0, len(a), size):
        some = slice(first, first + size)
        off = (a[some] - (b if b.ndim == 1 else b[some])).reshape(-1)
        found.append(torch.dot(off, off))
    return torch.stack(found).sum() if found else a.new_zeros(())


class _SquaredError(torch.autograd.Function):
    """One pass each way."""

    @staticmethod
    def forward(ctx, y, y_hat):
        error = y - y_hat
        ctx.save_for_backward(error)
        flat = error.reshape(-1)
        return torch.dot(flat, flat) / max(1, len(error))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (error,) = ctx.saved_tensors
        scale = grad * (2 / max(1, len(error)))
        to_y, to_y_hat = ctx.needs_input_grad
        return (error * scale if to_y else None), (error * -scale if to_y_hat else None)


def aux_share(architecture: Architecture, ends: Ends) -> int:
    """Dead latents that take part in AuxK, per row: `k_aux`, or half the width that is written; none without `aux`."""
    return (architecture.k_aux or max(1, ends.d_out // 2)) if architecture.aux else 0


def kept_loss(
    d: "Dictionary",
    encoder: Encoder,
    codes: Values,
    x: Float[Tensor, "row d_in"],
    y: Float[Tensor, "row d_out"],
    step: Step,
    **seen: Tensor,
) -> Loss:
    """The loss of what keeps its largest latents: the share of variance that is not explained, and AuxK.

    Args:
        d: the dictionary.
        encoder: this batch, encoded.
        codes: what was kept.
        x: what is read.
        y: what has to be written.
        step: the moment.
        seen: for `after`.
    """
    a = d.architecture
    y_hat = d.write(codes, x)
    error = fvu(y, y_hat, step)
    aux, _ = dead_latents_loss(d, encoder, y, y_hat, aux_share(a, d.ends), step)
    return Loss(
        total=error + a.aux * aux,
        parts={"error": error.detach(), "aux": aux.detach()},
        y_hat=y_hat.detach(),
        codes=codes.detach(),
        seen=seen,
    )


def dead_latents_loss(
    d: "Dictionary",
    encoder: Encoder,
    y: Float[Tensor, "row d_out"],
    y_hat: Float[Tensor, "row d_out"],
    k: int,
    step: Step,
    weight: Float[Tensor, "latent d_out"] | None = None,
) -> tuple[Float[Tensor, ""], Values | None]:
    """AuxK: the k largest dead latents of each row try to write what the others left over (2406.04093, appendix A.2).

    ‖e - ê‖² / ‖e - ē‖² with e the error, held fixed, and ê what the dead latents write, without a bias. It is zero
    where nothing is dead, and where the error does not vary. All dead latents may take part, the k largest of each row
    do.

    Args:
        d: the dictionary.
        encoder: this batch, encoded.
        y: what has to be written.
        y_hat: what was written.
        k: how many latents per row.
        step: which latents are dead; `n_dead` limits k, so that no step has to count.
        weight: decoder, where it is not simply `W_dec`.

    Returns:
        The loss (without its coefficient), and the codes of the dead latents (None if there is none).
    """
    k = min(k, step.n_dead, d.n_latents)
    if step.dead is None or k < 1:
        return y.new_zeros(()), None
    support, values = row_support(d, encoder, k, among=step.dead)
    # The host may know of more dead latents than there are by now: those places hold -inf, and are left at zero.
    real = torch.isfinite(values)
    codes = encoder.at(support).map(torch.relu)
    if encoder.fast:
        codes = Values(numbers=torch.where(real, codes.numbers, 0.0), support=codes.support, mask=None)
    else:
        codes = Values(numbers=torch.where(step.dead, codes.numbers, 0.0), support=codes.support, mask=codes.mask)
    error = (y - y_hat).detach()
    scale = step.team.mean(squares(error, step.team.mean(error.mean(0))) / len(error))
    # Divided by zero, the loss could be set to zero afterwards, but its gradient would stay NaN.
    varies = scale > torch.finfo(scale.dtype).tiny
    loss = squared_error(error, d.shards.sum(codes.decode(d.W_dec if weight is None else weight))) / torch.where(
        varies, scale, 1.0
    )
    return torch.where(varies & torch.isfinite(loss), loss, 0.0), codes
