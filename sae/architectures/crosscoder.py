"""Crosscoder with an L1 loss: one code for several layers or models (Anthropic, October 2024; ckkissane [code]).

f = ReLU(Σ_l W_enc^l a^l + b_enc),  â^l = f W_dec^l + b_dec^l for every site l (sites of one model, or of several).
Loss: Σ_l ‖a^l - â^l‖² + λ Σ_i f_i Σ_l ‖W_dec,i^l‖. A site that a latent does not need costs it a norm, so the norms say
where it lives. They say too much: a latent that both models have can be driven to zero in one of them (complete
shrinkage), or be split into one latent per model (decoupling); `sae.diffing` looks again.

Vectors of the sites lie side by side (`sae.ends`), with any widths. Each site is scaled by a factor of its own.
Where we differ: `b_dec` starts at the geometric median, not at zero, and `b_enc` so that the encoder sees centred rows;
encoder rows start as `data_init` (.4) of a data point, not as the decoder's random rows alone.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData
from sae.architecture import Architecture, Loss, Step
from sae.density import settled
from sae.initial import directions, geometric_median, usual
from sae.losses import squared_error
from sae.normaliser import Kind

if TYPE_CHECKING:
    from sae.dictionary import Dictionary
    from sae.ends import Ends


@dataclass(frozen=True, kw_only=True)
class Crosscoder(Architecture):
    """ReLU codes for several sites, with a penalty on the sum of the sites' decoder norms.

    Example:
        >>> Crosscoder(n_latents=512).l1, Crosscoder(n_latents=512).decoder
        (2.0, 'free')
    """

    NAME: ClassVar[str] = "crosscoder"

    normalise: Kind = "mean_norm"
    """Each site to a mean norm of √d: `l1` is for that."""
    decoder: Literal["unit", "free"] = "free"
    """Free, with codes weighted by norms; 'unit' keeps the norm over all sites at one."""
    data_init: float = 0.4
    """Share of a data point in the initial directions (saev [code] for crosscoders)."""
    l1: float = 2.0
    """λ; it rises during `Training.sparsity_warm_up`."""
    norm_init: float = 0.08
    """Norm of a latent's decoder at each site in the beginning, where it is free."""

    def check(self) -> None:
        """Refuse what cannot be."""
        if self.l1 < 0 or not self.norm_init > 0:
            raise BadData(f"l1={self.l1}, norm_init={self.norm_init}: a penalty from 0, and a norm above 0.")

    def parameters(self, ends: "Ends", x: Tensor, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Directions between data points and random ones, of the same norm at every site."""
        norm = len(ends.writes) ** -0.5 if self.decoder == "unit" else self.norm_init
        return side_by_side(self, ends, x, y, generator, norm=norm)

    def subtracts_bias(self, ends: "Ends") -> bool:
        """No: the encoder has a bias of its own."""
        return False

    def encode(self, d: "Dictionary", x: Tensor) -> Tensor:
        """ReLU."""
        return d.encoder(x, fast=False).pre.relu()

    def loss(self, d: "Dictionary", x: Tensor, y: Tensor, step: Step) -> Loss:
        """See the module."""
        encoder, support = settled(d.encoder(x, fast=step.fast, bf16=step.bf16), lambda pre: pre > 0)
        codes = encoder.at(support).map(torch.relu)
        y_hat = d.write(codes, x)
        error = squared_error(y, y_hat)
        norms = site_norms(d.W_dec, d.ends).sum(1)
        sparsity = codes.map(torch.mul, norms).sum() / len(x)
        return Loss(
            total=error + self.l1 * step.sparsity * sparsity,
            parts={
                "error": error.detach(),
                "sparsity": d.shards.total(sparsity.detach()),
                **errors_by_site(d.ends, y, y_hat),
            },
            y_hat=y_hat.detach(),
            codes=codes.detach(),
        )


def site_norms(weight: Float[Tensor, "latent d_out"], ends: "Ends") -> Float[Tensor, "latent site"]:
    """Norm of what each latent writes at each site.

    Args:
        weight: decoder, sites side by side.
        ends: their widths.
    """
    return torch.stack([part.norm(dim=1) for part in weight.split(list(ends.writes.values()), dim=1)], dim=1)


def errors_by_site(ends: "Ends", y: Tensor, y_hat: Tensor) -> dict[str, Tensor]:
    """Mean squared error at each site, for the log."""
    with torch.no_grad():
        difference = (y - y_hat).square().split(list(ends.writes.values()), dim=1)
        return {f"error/{name}": part.sum(1).mean() for name, part in zip(ends.writes, difference, strict=True)}


def side_by_side(
    architecture: Architecture, ends: "Ends", x: Tensor, y: Tensor, generator: torch.Generator, *, norm: float
) -> dict[str, Tensor]:
    """Starting values of a crosscoder: rows of the same norm at every site, encoder and decoder alike.

    Args:
        architecture: its settings.
        ends: what is read and written.
        x: rows that are read, normalised.
        y: as they have to be written, normalised.
        generator: on the CPU.
        norm: of a latent's decoder at each site.
    """
    found = usual(architecture, ends, x, y, generator)
    centre = x.mean(0) if ends.transcodes else geometric_median(x)
    if not ends.transcodes:
        rows = directions(x - centre, architecture.n_latents, architecture.data_init, generator)
        parts = [torch.nn.functional.normalize(part, dim=1) for part in rows.split(list(ends.reads.values()), dim=1)]
        found["W_enc"] = torch.cat(parts, dim=1) * norm
        found["W_dec"] = found["W_enc"].clone()
    found["b_enc"] = -(found["W_enc"] @ centre)
    return found
