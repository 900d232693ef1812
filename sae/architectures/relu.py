"""ReLU with an L1 loss: the first sparse autoencoder, in its two forms (SAELens, dictionary_learning (DL) [code]).

f = ReLU(W_enc (x - b_dec) + b_enc);  x̂ = f W_dec + b_dec.
Loss: ‖x - x̂‖² + λ Σ_i f_i where decoder rows have norm one, ‖x - x̂‖² + λ Σ_i f_i‖W_dec,i‖ where they are free; sums
over columns and latents, mean over rows. λ means something for one scaling of the input only, which travels with it.

Recipes that are in use, as class methods: `dictionary_learning` (fixed norm), `anthropic_april_2024` and `saelens`
(free norm). What they say about the optimiser stands in their docstrings, to be handed to `Training`. The defaults are
those of DL, but that directions start near data points and `b_dec` at their geometric median: fewer latents die.

How many latents are active is only known afterwards (`sae.density`). The loss of dead latents (`aux`, as in TopK, here
in units of the squared error) is no part of any published recipe; it is off unless asked for. Dead latents are not
drawn anew as DL offers: its `p_anneal` and `gated_anneal` assign to a copy, so nothing happens there.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from mechvis.errors import BadData, unknown
from sae.active import Encoder, Values
from sae.architecture import Architecture, Loss, Step
from sae.density import settled
from sae.initial import usual
from sae.losses import aux_share, dead_latents_loss, squared_error, variance

if TYPE_CHECKING:
    from sae.dictionary import Dictionary
    from sae.ends import Ends

BiasInit = Literal["median", "zero"]


@dataclass(frozen=True, kw_only=True)
class ReLU(Architecture):
    """All latents above zero, with an L1 penalty.

    Example:
        >>> ReLU(n_latents=512).l1, ReLU.anthropic_april_2024(512).decoder
        (0.1, 'free')
    """

    NAME: ClassVar[str] = "relu"

    l1: float = 0.1
    """λ; it rises during `Training.sparsity_warm_up`."""
    norm_init: float = 0.1
    """Norm of encoder rows in the beginning, and of decoder rows where they are free (DL, SAELens [code])."""
    b_dec_init: BiasInit = "median"
    """`b_dec` starts at the geometric median of the data, or at zero."""
    aux: float = 0.0
    """Coefficient of the loss of dead latents."""
    k_aux: int = 0
    """Dead latents that take part per row; 0: half of the width that is written."""

    @classmethod
    def dictionary_learning(cls, n_latents: int, **changes: Any) -> Self:
        """`StandardTrainer` of dictionary_learning [code]: fixed norm, λ = 0.1, mean of ‖x‖² is 1.

        Its optimiser: `Training(lr=1e-3, lr_warm_up=1000, clip=None, decay=0)`, λ rising over 2000 steps.
        """
        return cls(**{"n_latents": n_latents, "data_init": 0.0, "b_dec_init": "zero", **changes})

    @classmethod
    def anthropic_april_2024(cls, n_latents: int, **changes: Any) -> Self:
        """Anthropic, April 2024 [paper, DL code]: free norm, λ = 5, mean of ‖x‖ is √d, no b_dec in the encoder.

        Its optimiser: `Training(betas=(.9, .999), clip=1.0, sparsity_warm_up=.05, decay=.2)`.
        """
        settled_by_it = {"l1": 5.0, "decoder": "free", "normalise": "mean_norm", "centre": False}
        return cls(**{"n_latents": n_latents, "data_init": 0.0, "b_dec_init": "zero", **settled_by_it, **changes})

    @classmethod
    def saelens(cls, n_latents: int, **changes: Any) -> Self:
        """`StandardTrainingSAE` of SAELens [code]: free norm, λ = 1, W_enc = W_dec at norm 0.1, mean of ‖x‖ is √d.

        Its optimiser: `Training(lr=3e-4, batch=4096, betas=(.9, .999))`.
        """
        settled_by_it = {"l1": 1.0, "decoder": "free", "normalise": "mean_norm"}
        return cls(**{"n_latents": n_latents, "data_init": 0.0, "b_dec_init": "zero", **settled_by_it, **changes})

    def check(self) -> None:
        """Refuse what cannot be."""
        require_penalty("l1", self.l1)
        require_beginning(self)

    def parameters(self, ends: "Ends", x: Tensor, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Encoder and decoder rows in the same directions, at `norm_init`."""
        return beginning(self, ends, x, y, generator)

    def encode(self, d: "Dictionary", x: Tensor) -> Tensor:
        """ReLU."""
        return d.encoder(x, fast=False).pre.relu()

    def loss(self, d: "Dictionary", x: Tensor, y: Tensor, step: Step) -> Loss:
        """See the module."""
        encoder, support = settled(d.encoder(x, fast=step.fast, bf16=step.bf16), lambda pre: pre > 0)
        codes = encoder.at(support).map(torch.relu)
        y_hat = d.write(codes, x)
        error = squared_error(y, y_hat)
        sparsity = weighted(d, codes).sum() / len(x)
        aux = revived(d, encoder, y, y_hat, step)
        return Loss(
            total=error + self.l1 * step.sparsity * sparsity + self.aux * aux,
            parts={
                "error": error.detach(),
                "sparsity": d.shards.total(sparsity.detach()),
                "aux": aux.detach(),
            },
            y_hat=y_hat.detach(),
            codes=codes.detach(),
        )


# -- shared with gated, p_anneal and jumprelu ------------------------------------------------------------------------


def weighted(d: "Dictionary", codes: Values) -> Values:
    """Codes, times the norm of what they write where that is free: what a latent costs."""
    return codes if d.architecture.decoder == "unit" else codes.map(torch.mul, d.W_dec.norm(dim=1))


def revived(d: "Dictionary", encoder: Encoder, y: Tensor, y_hat: Tensor, step: Step) -> Tensor:
    """The loss of dead latents (`sae.losses`), in units of the squared error; zero where `aux` is."""
    a = d.architecture
    if not a.aux:
        return y.new_zeros(())
    share, _ = dead_latents_loss(d, encoder, y, y_hat, aux_share(a, d.ends), step)
    return share * variance(y, step)


def beginning(
    a: Architecture, ends: "Ends", x: Tensor, y: Tensor, generator: torch.Generator, norm: float | None = None
) -> dict[str, Tensor]:
    """`sae.initial.usual`, with `b_dec_init` and rows of norm `norm_init` (or `norm`).

    Args:
        a: the architecture: what it says of `b_dec_init`, `centre`, `decoder`.
        ends: what is read and written.
        x: rows that are read, normalised.
        y: as they have to be written.
        generator: on the CPU.
        norm: of encoder rows, and of decoder rows where they are free.
    """
    found = usual(a, ends, x, y, generator)
    norm = a.norm_init if norm is None else norm
    at_zero = a.b_dec_init == "zero"
    if at_zero:
        found["b_dec"] = torch.zeros_like(found["b_dec"])
    if not ends.transcodes:
        # Without b_dec in the encoder, its own bias takes the centre off.
        found["b_enc"] = found["b_enc"] if a.subtracts_bias(ends) else -(found["W_enc"] @ found["b_dec"])
        if a.decoder == "free":
            found["W_dec"] = found["W_dec"] * norm
    elif at_zero:
        found["b_enc"] = torch.zeros_like(found["b_enc"])
    found["W_enc"], found["b_enc"] = found["W_enc"] * norm, found["b_enc"] * norm
    return found


def require_penalty(name: str, value: float) -> None:
    """Refuse a penalty that is negative or not a number.

    Raises:
        BadData: it is.
    """
    if not 0 <= value < float("inf"):
        raise BadData(f"{name}={value}: a penalty is a number from 0.")


def require_beginning(a: Architecture) -> None:
    """Refuse values of `norm_init`, `b_dec_init`, `aux`, `k_aux` that cannot be.

    Raises:
        BadData, UnknownName.
    """
    if a.norm_init is not None and not a.norm_init > 0:
        raise BadData(f"norm_init={a.norm_init}: rows of the encoder need a norm above 0 to learn.")
    if a.b_dec_init not in ("median", "zero"):
        raise unknown("b_dec_init", a.b_dec_init, ("median", "zero"))
    if a.aux < 0 or a.k_aux < 0:
        raise BadData(f"aux={a.aux}, k_aux={a.k_aux}: neither is negative.")
