"""Universal dictionary: one code that any of several models can be read with (USAE; YorkUCVIL/UniversalSAE [code]).

1. A source model s is drawn anew in every step, the same in every run: by (`source_seed`, step).
2. f = the k largest of ReLU(W_enc^s (a^s - b_dec^s) + b_enc^s): its encoder alone is used, and learns.
3. All models are written from f: L = Σ_l ‖a^l - f W_dec^l - b_dec^l‖₁; all decoders learn.

So a latent that only helps its own model is no use: codes are of concepts that the models share. `encode` reads the
first model; `codes_of` any. Vectors of the models lie side by side (`sae.ends`), with any widths; the published form
standardises each column of each model, we scale each model as a whole. Rows of all models have to be about the same
place of the same image: with other patch sizes, bring them to one grid first.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, RefusedMethod, ShapeMismatch, unknown
from mechvis.kernels.support import Support
from mechvis.kernels.topk import topk
from sae.active import Encoder, encoder
from sae.architecture import Architecture, Loss, Step
from sae.architectures.crosscoder import errors_by_site
from sae.architectures.topk import ranked
from sae.initial import directions, geometric_median
from sae.normaliser import Kind, scaled

if TYPE_CHECKING:
    from sae.dictionary import Dictionary
    from sae.ends import Ends


@dataclass(frozen=True, kw_only=True)
class Universal(Architecture):
    """An encoder per model, one code, all models written from it.

    Example:
        >>> Universal(n_latents=512).k
        32
    """

    NAME: ClassVar[str] = "universal"

    normalise: Kind = "mean_norm"
    """How activations are scaled, each model by itself."""
    k: int = 32
    """Active latents per row."""
    source_seed: int = 0
    """Which models are drawn."""

    def check(self) -> None:
        """Refuse what cannot be."""
        if not 1 <= self.k <= self.n_latents:
            raise BadData(f"k={self.k} of {self.n_latents} latents: k is between 1 and their number.")
        if self.source_seed < 0 or self.skip:
            raise BadData(f"source_seed={self.source_seed}, skip={self.skip}: a number from 0, and no skip connection.")

    def parameters(self, ends: "Ends", x: Tensor, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Directions of each model from the same data points and random ones.

        Raises:
            BadData: what is written is not what is read.
        """
        if ends.transcodes:
            raise BadData("a universal dictionary writes what it reads: leave writes= out.")
        centre = geometric_median(x)
        rows = directions(x - centre, self.n_latents, self.data_init, generator)
        widths = list(ends.reads.values())
        parts = [torch.nn.functional.normalize(part, dim=1) for part in rows.split(widths, dim=1)]
        found = {f"W_enc_{s}": part for s, part in enumerate(parts)}
        found |= {f"b_enc_{s}": x.new_zeros(self.n_latents) for s in range(len(widths))}
        # Rows of norm one over all models; codes that one encoder finds are right for all of them.
        return {**found, "W_dec": torch.cat(parts, dim=1) / len(widths) ** 0.5, "b_dec": centre}

    def subtracts_bias(self, ends: "Ends") -> bool:
        """Yes: each encoder takes off its model's part."""
        return True

    def source(self, step: int, n: int) -> int:
        """The model that is read in a step.

        Args:
            step: its number.
            n: models.
        """
        return int(np.random.default_rng((self.source_seed, step)).integers(n))

    def encode(self, d: "Dictionary", x: Tensor) -> Tensor:
        """Codes from the first model's rows."""
        return self._codes(d, self.encoder_of(d, x, 0, fast=False).pre)

    def encoder_of(self, d: "Dictionary", x: Tensor, s: int, *, fast: bool, bf16: bool = False) -> Encoder:
        """Rows of model s, out of rows of all, times its encoder."""
        widths = list(d.ends.reads.values())
        part, shift = (t.split(widths, dim=-1)[s] for t in (x, d.b_dec))
        return encoder(part, shift, getattr(d, f"W_enc_{s}"), getattr(d, f"b_enc_{s}"), fast=fast, bf16=bf16)

    def _codes(self, d: "Dictionary", pre: Tensor) -> Tensor:
        _, latents = topk(ranked(d, pre.detach()), self.k)
        return torch.where(Support.from_rows(latents, self.n_latents).mask(), pre.relu(), 0.0)

    def loss(self, d: "Dictionary", x: Tensor, y: Tensor, step: Step) -> Loss:
        """See the module.

        Raises:
            RefusedMethod: its latents are spread over processes, which is not built for it.
        """
        if d.shards.size > 1:
            raise RefusedMethod("a universal dictionary cannot be spread over processes by latents; share the batch.")
        s = self.source(step.number, len(d.ends.reads))
        e = self.encoder_of(d, x, s, fast=step.fast, bf16=step.bf16)
        k = min(self.n_latents, max(self.k, round(self.k * step.k_factor)))
        _, latents = topk(ranked(d, e.pre.detach()), k)
        codes = e.at(Support.from_rows(latents, self.n_latents)).map(torch.relu)
        y_hat = d.write(codes, x)
        error = (y - y_hat).abs().sum(1).mean()
        return Loss(
            total=error,
            parts={"error": error.detach(), **errors_by_site(d.ends, y, y_hat)},
            y_hat=y_hat.detach(),
            codes=codes.detach(),
        )

    def folded(self, d: "Dictionary") -> dict[str, Tensor]:
        """Decoder rows of norm one over all models; all encoders take their norms over."""
        found = {name: tensor.detach().clone() for name, tensor in d.state_dict().items()}
        if self.decoder == "unit":
            return found
        norms = found["W_dec"].norm(dim=1)
        norms = torch.where(norms > 0, norms, 1.0)
        found["W_dec"] /= norms[:, None]
        for s in range(len(d.ends.reads)):
            found[f"W_enc_{s}"] *= norms[:, None]
            found[f"b_enc_{s}"] *= norms
        return found


def codes_of(d: "Dictionary", model: str, rows: Float[Tensor, "row d"]) -> Float[Tensor, "row latent"]:
    """Codes of a universal dictionary from one model's rows; the other models are not needed.

    Args:
        d: a universal dictionary.
        model: name of the site that the rows are of.
        rows: as the model has them.

    Raises:
        BadData: another architecture.
        UnknownName: no such site.
        ShapeMismatch: another width.

    Example:
        >>> codes_of(universal, "dino/blocks.11.hook_resid_post", rows).shape        # doctest: +SKIP
        torch.Size([65, 512])
    """
    if not isinstance(d.architecture, Universal):
        raise BadData(f"codes_of reads a universal dictionary; this is {d.architecture.NAME}. Use d.encode(rows).")
    names = list(d.ends.reads)
    if model not in names:
        raise unknown("site", model, names)
    s, width = names.index(model), d.ends.reads[model]
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ShapeMismatch(f"{model} has rows of width {width}, got {list(rows.shape)}.")
    widths = list(d.ends.reads.values())
    factor = d.scale_in.split(widths)[s]
    x = scaled(rows.to(d.scale_in), [width], d.architecture.normalise, factor).x
    shift = d.b_dec.split(widths)[s]
    pre = encoder(x, shift, getattr(d, f"W_enc_{s}"), getattr(d, f"b_enc_{s}"), fast=False).pre
    return d.architecture._codes(d, pre)
