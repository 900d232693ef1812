"""Gated: which latents are active, and how strong they are, from two biases (2404.16014; DL, SAELens [code]).

π = W_enc (x - b_dec);  gate g = π + b_gate;  magnitude m = ReLU(e^r ⊙ π + b_mag);  f = 1[g > 0] ⊙ m;
x̂ = f W_dec + b_dec.  Loss: ‖x - x̂‖² + λ‖ReLU(g)‖₁ + ‖x - (ReLU(g) sg(W_dec) + sg(b_dec))‖².
The step at zero has no gradient, so the gate learns from the last two terms. sg holds the decoder fixed in the last
one: it must not become a second decoder of the gate's shrunken values. SAELens leaves sg out, and multiplies the
penalty with ‖W_dec,i‖; here the norm comes in where the decoder is free, and sg stays.

A skip connection is held fixed in the last term too. Defaults are DL's, but for the start (`data_init`, `b_dec_init`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from sae.active import Encoder, encoder
from sae.architecture import Architecture, Loss, Step
from sae.architectures.relu import BiasInit, beginning, require_beginning, require_penalty, revived, weighted
from sae.density import settled
from sae.losses import squared_error

if TYPE_CHECKING:
    from sae.dictionary import Dictionary
    from sae.ends import Ends


@dataclass(frozen=True, kw_only=True)
class Gated(Architecture):
    """A gate and a magnitude for every latent.

    Example:
        >>> Gated(n_latents=512).l1
        0.1
    """

    NAME: ClassVar[str] = "gated"

    l1: float = 0.1
    """λ of the gates; it rises during `Training.sparsity_warm_up`."""
    norm_init: float = 1.0
    """Norm of encoder rows in the beginning, and of decoder rows where they are free (DL [code])."""
    b_dec_init: BiasInit = "median"
    """`b_dec` starts at the geometric median of the data, or at zero."""
    aux: float = 0.0
    """Coefficient of the loss of dead latents (on gates); no published recipe has it."""
    k_aux: int = 0
    """Dead latents that take part per row; 0: half of the width that is written."""

    @classmethod
    def dictionary_learning(cls, n_latents: int, **changes: Any) -> Self:
        """`GatedSAETrainer` of dictionary_learning [code]: random directions, biases and r at zero.

        Its optimiser: `Training(lr=5e-5, betas=(0., .999), lr_warm_up=1000, clip=None, decay=0)`, λ over 2000 steps.
        """
        return cls(**{"n_latents": n_latents, "data_init": 0.0, "b_dec_init": "zero", **changes})

    def check(self) -> None:
        """Refuse what cannot be."""
        require_penalty("l1", self.l1)
        require_beginning(self)

    def parameters(self, ends: "Ends", x: Tensor, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """As ReLU, with both biases where its one would be, and r at zero: gates and magnitudes agree."""
        found = beginning(self, ends, x, y, generator)
        bias = found.pop("b_enc")
        return {**found, "b_gate": bias, "b_mag": bias.clone(), "r_mag": torch.zeros_like(bias)}

    def encode(self, d: "Dictionary", x: Tensor) -> Tensor:
        """Magnitudes where gates are open. The gates get no gradient: they are the rule of selection."""
        gate = self.gates(d, x, fast=False).pre
        return torch.where(gate > 0, magnitude(gate, d.r_mag, d.b_gate, d.b_mag), 0.0)

    def gates(self, d: "Dictionary", x: Tensor, *, fast: bool, bf16: bool = False) -> Encoder:
        """Rows times encoder plus `b_gate`."""
        shift = d.shards.shared(d.b_dec) if self.subtracts_bias(d.ends) else None
        return encoder(x, shift, d.W_enc, d.b_gate, fast=fast, bf16=bf16)

    def loss(self, d: "Dictionary", x: Tensor, y: Tensor, step: Step) -> Loss:
        """See the module."""
        gates, support = settled(self.gates(d, x, fast=step.fast, bf16=step.bf16), lambda pre: pre > 0)
        gate = gates.at(support)
        codes, opened = gate.map(magnitude, d.r_mag, d.b_gate, d.b_mag), gate.map(torch.relu)
        y_hat = d.write(codes, x)
        by_gates = d.shards.sum(opened.decode(d.W_dec.detach())) + d.b_dec.detach()
        by_gates = by_gates + x @ d.W_skip.detach().T if self.skip else by_gates
        error, gate_error = squared_error(y, y_hat), squared_error(y, by_gates)
        sparsity = weighted(d, opened).sum() / len(x)
        aux = revived(d, gates, y, y_hat, step)
        return Loss(
            total=error + gate_error + self.l1 * step.sparsity * sparsity + self.aux * aux,
            parts={
                "error": error.detach(),
                "gate_error": gate_error.detach(),
                "sparsity": d.shards.total(sparsity.detach()),
                "aux": aux.detach(),
            },
            y_hat=y_hat.detach(),
            codes=codes.detach(),
        )


def magnitude(gate: Tensor, r_mag: Tensor, b_gate: Tensor, b_mag: Tensor) -> Tensor:
    """ReLU(e^r π + b_mag), with π the gate without its bias."""
    return (r_mag.exp() * (gate - b_gate) + b_mag).relu()
