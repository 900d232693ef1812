"""Terms that several losses share. Sums run over columns, means over rows (and over the processes of a team)."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.kernels.support import Support
from mechvis.kernels.topk import topk
from sae.active import Encoder, Values
from sae.architecture import Step

if TYPE_CHECKING:
    from sae.dictionary import Dictionary


def squared_error(y: Float[Tensor, "row d"], y_hat: Float[Tensor, "row d"]) -> Float[Tensor, ""]:
    """Mean over rows of ‖y - ŷ‖²."""
    return (y - y_hat).square().sum(1).mean()


def variance(y: Float[Tensor, "row d"], step: Step) -> Float[Tensor, ""]:
    """Mean over the rows of the whole batch of ‖y - mean‖²; no gradient."""
    with torch.no_grad():
        mean = step.team.mean(y.mean(0))
        return step.team.mean((y - mean).square().sum(1).mean())


def fvu(y: Float[Tensor, "row d"], y_hat: Float[Tensor, "row d"], step: Step) -> Float[Tensor, ""]:
    """Squared error over the batch's variance: the share of variance that is not explained, as a loss."""
    return squared_error(y, y_hat) / variance(y, step).clamp_min(torch.finfo(y.dtype).tiny)


def dead_latents_loss(
    d: "Dictionary",
    encoder: Encoder,
    y: Float[Tensor, "row d_out"],
    y_hat: Float[Tensor, "row d_out"],
    k: int,
    step: Step,
) -> tuple[Float[Tensor, ""], Values | None]:
    """AuxK: the k largest dead latents of each row try to write what the others left over (2406.04093, appendix A.2).

    ‖e - ê‖² / ‖e - ē‖² with e the error, held fixed, and ê what the dead latents write, without a bias. It is zero where
    nothing is dead, and where it is not finite. All dead latents may take part, the k largest of each row do.

    Args:
        d: the dictionary.
        encoder: this batch, encoded.
        y: what has to be written.
        y_hat: what was written.
        k: how many latents per row.
        step: which latents are dead; `n_dead` limits k, so that no step has to count.

    Returns:
        The loss (without its coefficient), and the codes of the dead latents (None if there is none).
    """
    k = min(k, step.n_dead, d.n_latents)
    if step.dead is None or k < 1:
        return y.new_zeros(()), None
    values, latents = topk(encoder.pre.detach(), k, among=step.dead)
    # The host may know of more dead latents than there are by now: those places hold -inf, and are left at zero.
    real = torch.isfinite(values).reshape(-1)
    codes = encoder.at(Support.from_rows(latents, d.n_latents)).map(torch.relu)
    if encoder.fast:
        codes = Values(numbers=torch.where(real, codes.numbers, 0.0), support=codes.support, mask=None)
    else:
        codes = Values(numbers=torch.where(step.dead, codes.numbers, 0.0), support=codes.support, mask=codes.mask)
    error = (y - y_hat).detach()
    mean = step.team.mean(error.mean(0))
    scale = step.team.mean((error - mean).square().sum(1).mean())
    loss = squared_error(error, codes.decode(d.W_dec)) / scale
    return torch.nan_to_num(loss, nan=0.0, posinf=0.0, neginf=0.0), codes
