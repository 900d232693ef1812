"""Archetypal: atoms are mixtures of data points, so that two runs find the same ones (RA-SAE, 2502.12892).

D = e^m (W C + Λ). C are candidates: centroids of the data, which nobody trains. Rows of W are mixtures (not negative,
sum 1), so W C stays in the convex hull of the data; Λ lets an atom leave it by at most `delta`; e^m is one number.

1. `before` a batch: W <- ReLU(W), rows over their sum; rows of Λ scaled to norm `delta` where they are longer
   (overcomplete 0.3 [code]). Then D, with gradients to W, Λ and m.
2. Codes: TopK or BatchTopK of a free linear encoder. Atoms have different norms, so latents compete with z_i‖D_i‖: the
   same latents win before and after atoms are made unit (the published code ranks z_i).
3. Loss: ‖y - f D‖² over the variance, plus AuxK (the published training has none: `aux=0`).

Start: atom i is candidate i (in turn, where there are fewer candidates than latents: the published start, an identity,
leaves such atoms at zero for good), Λ = 0, m = 0; the encoder is the atom over its squared norm. No bias is written, so
that atoms are directions from the origin; `bias=True` trains one, and candidates are then taken around it.

`delta` is in units of normalised rows. The published 1.0 goes with rows that are much longer than 1, so rows are scaled
to mean norm √d here (`normalise='mean_norm'`). Cost: 8 n n_c d per step on top.

Saved, `W_dec` holds D with unit rows, so the file is usable as any other; C, W, Λ, m and the norms of D are kept beside
it: D = e^m (W C + Λ) / row_norm.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from mechvis.errors import BadData, unknown
from mechvis.kernels.support import Support
from mechvis.kernels.topk import topk
from sae.architecture import Architecture, Loss, Step
from sae.initial import directions, geometric_median
from sae.losses import aux_share, dead_latents_loss, fvu
from sae.normaliser import Kind
from sae.select import batch_support

if TYPE_CHECKING:
    from sae.dictionary import Dictionary
    from sae.ends import Ends


@dataclass(frozen=True, kw_only=True)
class Archetypal(Architecture):
    """Atoms from mixtures of data points.

    Example:
        >>> Archetypal(n_latents=512, k=8, candidates=1000).delta
        1.0
    """

    NAME: ClassVar[str] = "archetypal"
    UNIT: ClassVar[tuple[str, ...]] = ()
    FIXED: ClassVar[tuple[str, ...]] = ("candidates", "W_dec", "row_norm")

    normalise: Kind = "mean_norm"
    """How activations are scaled; `delta` is in these units."""
    decoder: Literal["unit", "free"] = "free"
    """Norms of atoms follow from the mixtures: 'free' only."""
    k: int = 32
    """Active latents per row (on average, for `select='batch_topk'`)."""
    select: Literal["topk", "batch_topk"] = "topk"
    """The k largest of each row, or the k·B largest of a batch, with a threshold when it is used."""
    candidates: int = 0
    """Centroids (k-means of the first rows); 0: as many as latents. The paper takes up to 32,000."""
    delta: float = 1.0
    """How far an atom may be from the mixture of data points, before the factor e^m."""
    bias: bool = False
    """Write a bias as well."""
    row_limit: float | None = 8.0
    """For `batch_topk`: a row has at most this many times k; None: no limit."""
    threshold_decay: float = 0.999
    """For `batch_topk`: of the average that becomes the threshold."""
    aux: float = 1 / 32
    """Coefficient of the loss of dead latents."""
    k_aux: int = 0
    """Dead latents that take part per row; 0: half of the width that is written."""

    def check(self) -> None:
        """Refuse what cannot be."""
        if not 1 <= self.k <= self.n_latents:
            raise BadData(f"k={self.k} of {self.n_latents} latents: k is between 1 and their number.")
        if self.select not in ("topk", "batch_topk"):
            raise unknown("selection", self.select, ("topk", "batch_topk"))
        if self.decoder != "free":
            raise BadData("decoder='unit': atoms are mixtures of data points, which sets their norms; use 'free'.")
        if self.candidates < 0 or self.delta < 0 or self.aux < 0 or self.k_aux < 0:
            raise BadData(
                f"candidates={self.candidates}, delta={self.delta}, aux={self.aux}, k_aux={self.k_aux}: not below 0."
            )
        if not 0 <= self.threshold_decay < 1 or (self.row_limit is not None and self.row_limit < 1):
            raise BadData(f"threshold_decay={self.threshold_decay}, row_limit={self.row_limit} cannot be.")

    def parameters(self, ends: "Ends", x: Tensor, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Candidates from k-means, one atom on each.

        Raises:
            BadData: fewer rows than candidates.
        """
        n, n_c = self.n_latents, self.candidates or self.n_latents
        if len(y) < n_c:
            raise BadData(f"{n_c} candidates need at least as many rows, and {len(y)} were given: raise init_rows.")
        centre = geometric_median(y) if self.bias else torch.zeros_like(y[0])
        C = centroids(y - centre, n_c, int(torch.randint(2**31 - 1, (), generator=generator)))
        mix = torch.zeros(n, n_c).to(y)
        mix[torch.arange(n), torch.arange(n) % n_c] = 1.0
        atoms = mix @ C
        squares = atoms.square().sum(1, keepdim=True)
        if ends.transcodes:
            W_enc = directions(x - x.mean(0), n, self.data_init, generator)
            b_enc = -(W_enc @ x.mean(0))
        else:
            W_enc = atoms / torch.where(squares > 0, squares, 1.0)
            b_enc = x.new_zeros(n)
        found = {
            "W_enc": W_enc,
            "b_enc": b_enc,
            "mix": mix,
            "relax": y.new_zeros(n, ends.d_out),
            "log_scale": y.new_zeros(()),
            "b_dec": centre,
            "candidates": C,
            "W_dec": atoms,
            "row_norm": y.new_ones(n),
        }
        if self.skip:
            found["W_skip"] = x.new_zeros(ends.d_out, ends.d_in)
        return found

    def state(self, ends: "Ends") -> dict[str, Tensor]:
        """The threshold of `batch_topk`; below zero: not known yet."""
        return {"threshold": torch.tensor(-1.0, dtype=torch.float64)} if self.select == "batch_topk" else {}

    def before(self, d: "Dictionary", step: Step) -> None:
        """Mixtures are mixtures, Λ is short; and what the dictionary shows to others follows."""
        project_(d.mix, d.relax, self.delta)
        d.W_dec.copy_(atoms(d))

    def encode(self, d: "Dictionary", x: Tensor) -> Tensor:
        """The k largest of each row, or what is above the threshold.

        Raises:
            BadData: `batch_topk` that was never trained.
        """
        pre = d.encoder(x, fast=False).pre
        score = pre.detach() * d.W_dec.detach().norm(dim=1)
        if self.select == "batch_topk":
            if d.threshold < 0:
                raise BadData("this dictionary has no threshold yet: it is learned while it is trained.")
            return torch.where(score > d.threshold.to(pre.dtype), pre.relu(), 0.0)
        _, latents = topk(score, self.k)
        return torch.where(Support.from_rows(latents, self.n_latents).mask(), pre.relu(), 0.0)

    def loss(self, d: "Dictionary", x: Tensor, y: Tensor, step: Step) -> Loss:
        """See the module."""
        D = atoms(d)
        bias = d.b_dec if self.bias else d.b_dec.detach()
        encoder = d.encoder(x, fast=step.fast, bf16=step.bf16)
        k = min(self.n_latents, max(self.k, self.k * step.k_factor))
        score = encoder.pre.detach() * D.detach().norm(dim=1).to(encoder.pre.dtype)
        if self.select == "batch_topk":
            support, least = batch_support(score, k, row_limit=self.row_limit, team=step.team)
        else:
            support, least = Support.from_rows(topk(score, round(k))[1], self.n_latents), None
        codes = encoder.at(support).map(torch.relu)
        y_hat = codes.decode(D) + bias
        if self.skip:
            y_hat = y_hat + x @ d.W_skip.T
        error = fvu(y, y_hat, step)
        aux, _ = dead_latents_loss(d, encoder, y, y_hat, aux_share(self, d.ends), step, weight=D)
        return Loss(
            total=error + self.aux * aux,
            parts={"error": error.detach(), "aux": aux.detach(), "relax": d.relax.detach().norm(dim=1).mean()},
            y_hat=y_hat.detach(),
            codes=codes.detach(),
            seen={} if least is None else {"least": least},
        )

    def after(self, d: "Dictionary", loss: Loss, step: Step) -> None:
        """Average the threshold, as `batch_topk` does."""
        if "least" not in loss.seen:
            return
        from sae.architectures.batch_topk import BatchTopK

        BatchTopK.after(self, d, loss, step)

    def folded(self, d: "Dictionary") -> dict[str, Tensor]:
        """Unit atoms in `W_dec`; the encoder takes over their norms, `row_norm` remembers them. Twice changes
        nothing."""
        found = {name: tensor.detach().clone() for name, tensor in d.state_dict().items()}
        with torch.no_grad():
            if is_unit(d.W_dec) and torch.equal(d.W_dec, atoms(d)):
                return found
            project_(found["mix"], found["relax"], self.delta)
            whole = atoms(SimpleNamespace(**{**found, "row_norm": torch.ones_like(found["row_norm"])}))
            norms = whole.norm(dim=1)
            norms = torch.where(norms > 0, norms, 1.0)
            found["W_enc"] *= (norms / found["row_norm"])[:, None]
            found["b_enc"] *= norms / found["row_norm"]
            found["W_dec"] = whole / norms[:, None]
            found["row_norm"] = norms
        return found


def atoms(d: "Dictionary") -> Tensor:
    """e^m (W C + Λ), over the norms that the encoder has taken over."""
    return torch.exp(d.log_scale) * (d.mix @ d.candidates + d.relax) / d.row_norm[:, None]


def is_unit(rows: Tensor) -> bool:
    """Are all rows unit already? Then they are left alone, so that folding what is folded changes no bit."""
    return bool(((rows.norm(dim=1) - 1).abs() < 1e-5).all())


@torch.no_grad()
def project_(mix: Tensor, relax: Tensor, delta: float) -> None:
    """Rows of `mix` not negative with sum one, rows of `relax` no longer than `delta`; in place."""
    mix.relu_()
    mix.div_(mix.sum(1, keepdim=True).clamp_min(1e-8))
    norms = relax.norm(dim=1, keepdim=True)
    relax.mul_(torch.where(norms > delta, delta / norms, 1.0))


def centroids(rows: Tensor, n: int, seed: int) -> Tensor:
    """Centroids of rows, by k-means in small batches (scikit-learn).

    Args:
        rows: data.
        n: how many.
        seed: of the start.
    """
    from sklearn.cluster import MiniBatchKMeans

    if n == len(rows):
        return rows.clone()
    means = MiniBatchKMeans(n, random_state=seed, n_init=1, batch_size=max(1024, min(len(rows), 4 * n)))
    found = means.fit(rows.double().cpu().numpy()).cluster_centers_
    return torch.as_tensor(found).to(rows)
