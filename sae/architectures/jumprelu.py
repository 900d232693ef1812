"""JumpReLU: a threshold of its own for every latent, learned through a straight-through estimator (2407.14435).

z = W_enc x + b_enc;  f = z H(z - θ), θ > 0;  x̂ = f W_dec + b_dec.  Loss: ‖x - x̂‖² + λ · penalty, where the penalty is

=========== ================================================ ==========================================================
`penalty`   per batch                                        known as
=========== ================================================ ==========================================================
l0          mean of L0, with L0 = Σ_i H(z_i - θ_i)            DeepMind, Gemma Scope (E‖x‖² = 1)
target      (mean of L0 / `l0` - 1)²                          dictionary_learning (DL) [code]
quadratic   mean of (2 / `l0`) (L0 - `l0`)²                   Gemma Scope 2, SAELens "quadratic" [code]
tanh        mean of Σ_i tanh(`tanh_scale` f_i‖W_dec,i‖)        Anthropic, January 2025 (E‖x‖ = √d)
=========== ================================================ ==========================================================

The step has no slope, so one is put in its place, K = 1 where |z - θ| < ε/2 (`bandwidth` ε) and 0 elsewhere:

    ∂f/∂z = H(z - θ)        ∂f/∂θ = -(θ/ε) K        ∂H/∂θ = -(1/ε) K        ∂H/∂z = 0

With `to_input` z gets the same with the other sign, (θ/ε) K more in ∂f/∂z and (1/ε) K in ∂H/∂z, since the step depends
on z - θ alone (Anthropic; SAELens `ste_to_input` [code]). What others got wrong: ε divides once (overcomplete divides
twice: 1/ε too much [run]); L0's step is taken at z, not at the gated f, which would lose the lower half of the window
(DL [code]); θ is made positive outside the graph (a clamp inside pins θ = 0 for ever). Entries inside the window belong
to the support, also where they are not active: their value is 0, θ's gradient is not.

`pre_act` adds λ_P Σ_i ReLU(θ_i - z_i)‖W_dec,i‖ over dead latents (SAELens), or over all (Anthropic); the latter touches
nearly every entry, so the loss takes its plain form. `aux` is TopK's loss of dead latents; no published recipe has it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.errors import BadData, unknown
from sae.active import Values
from sae.architecture import Architecture, Loss, Step
from sae.architectures.relu import BiasInit, beginning, require_beginning, require_penalty, revived, weighted
from sae.density import settled
from sae.jump import above, jump
from sae.losses import squared_error

if TYPE_CHECKING:
    from sae.dictionary import Dictionary
    from sae.ends import Ends

PENALTIES = ("l0", "target", "quadratic", "tanh")


@dataclass(frozen=True, kw_only=True)
class JumpReLU(Architecture):
    """A learned threshold per latent.

    Example:
        >>> JumpReLU(n_latents=512).penalty, JumpReLU.anthropic_january_2025(512, sparsity=20.0).penalty
        ('target', 'tanh')
    """

    NAME: ClassVar[str] = "jumprelu"

    penalty: Literal["l0", "target", "quadratic", "tanh"] = "target"
    """Which penalty; the table above."""
    sparsity: float = 1.0
    """λ; it rises during `Training.sparsity_warm_up`."""
    l0: float = 20.0
    """Active latents per row that 'target' and 'quadratic' aim at (DL [code])."""
    threshold_init: float = 0.001
    """θ in the beginning (DeepMind, DL; E‖x‖² = 1)."""
    bandwidth: float = 0.001
    """ε, the width of the window (DeepMind, DL)."""
    log_threshold: bool = False
    """Train log θ (DeepMind), which moves a small θ very slowly; False: θ itself, made at least 0 before every batch
    (SAELens, DL)."""
    to_input: bool = False
    """Does the estimator reach z as well?"""
    tanh_scale: float = 4.0
    """c of the tanh penalty."""
    pre_act: float = 0.0
    """λ_P; Anthropic: 3e-6. It has no warm-up."""
    pre_act_of: Literal["dead", "all"] = "dead"
    """Latents that λ_P is about."""
    norm_init: float | None = 1.0
    """Norm of encoder rows in the beginning, and of decoder rows where they are free; None: √(d/3n), the norm of rows
    drawn from U(-1/√n, 1/√n)."""
    b_dec_init: BiasInit = "median"
    """`b_dec` starts at the geometric median of the data, or at zero."""
    aux: float = 0.0
    """Coefficient of the loss of dead latents."""
    k_aux: int = 0
    """Dead latents that take part per row; 0: half of the width that is written."""

    @classmethod
    def deepmind(cls, n_latents: int, *, sparsity: float, **changes: Any) -> Self:
        """DeepMind 2024 [paper]: L0 penalty, unit decoder, log θ, ε = θ₀ = .001, mean of ‖x‖² is 1; λ is yours.

        Its optimiser: `Training(lr=7e-5, betas=(0., .999), batch=4096, lr_warm_up=1000)`, λ rising over 10 000 steps.
        """
        known = {"n_latents": n_latents, "sparsity": sparsity, "penalty": "l0", "log_threshold": True}
        return cls(**{**known, "data_init": 0.0, "b_dec_init": "zero", **changes})

    @classmethod
    def dictionary_learning(cls, n_latents: int, *, l0: float = 20.0, **changes: Any) -> Self:
        """`JumpReluTrainer` of dictionary_learning [code]: aims at an L0, λ = 1, θ itself; its step is at f, ours at z.

        Its optimiser: `Training(lr=7e-5, betas=(0., .999), lr_warm_up=1000, decay=0)`, λ rising over 2000 steps.
        """
        return cls(**{"n_latents": n_latents, "l0": l0, "data_init": 0.0, "b_dec_init": "zero", **changes})

    @classmethod
    def gemma_scope_2(cls, n_latents: int, *, l0: float, sparsity: float = 1.0, **changes: Any) -> Self:
        """Gemma Scope 2's penalty, which aims at an L0 for every row (SAELens "quadratic" [code])."""
        known = {"n_latents": n_latents, "l0": l0, "sparsity": sparsity, "penalty": "quadratic"}
        return cls(**{**known, "data_init": 0.0, "b_dec_init": "zero", **changes})

    @classmethod
    def saelens(cls, n_latents: int, **changes: Any) -> Self:
        """`JumpReLUTrainingSAE` of SAELens [code]: θ₀ = .01, ε = .05, λ = 1, θ itself, free decoder from norm 0.1.

        Its optimiser: `Training(lr=3e-4, batch=4096)`.
        """
        known = {"n_latents": n_latents, "penalty": "l0", "threshold_init": 0.01, "bandwidth": 0.05}
        scales = {"decoder": "free", "normalise": "mean_norm", "norm_init": 0.1, "centre": True}
        return cls(**{**known, **scales, "data_init": 0.0, "b_dec_init": "zero", **changes})

    @classmethod
    def anthropic_january_2025(cls, n_latents: int, *, sparsity: float, **changes: Any) -> Self:
        """Anthropic, January 2025 [paper]: tanh penalty, pre-activation loss, wide window that reaches z; λ is yours.

        Its optimiser: `Training(sparsity_warm_up=1.0, decay=.2)`.
        """
        known = {"n_latents": n_latents, "sparsity": sparsity, "penalty": "tanh", "threshold_init": 0.1}
        steps = {"bandwidth": 2.0, "to_input": True, "pre_act": 3e-6, "pre_act_of": "all", "norm_init": None}
        scales = {"decoder": "free", "normalise": "mean_norm", "data_init": 0.0, "b_dec_init": "zero"}
        return cls(**{**known, **steps, **scales, **changes})

    def check(self) -> None:
        """Refuse what cannot be."""
        if self.penalty not in PENALTIES:
            raise unknown("penalty", self.penalty, PENALTIES)
        if self.pre_act_of not in ("dead", "all"):
            raise unknown("pre_act_of", self.pre_act_of, ("dead", "all"))
        for name in ("sparsity", "pre_act"):
            require_penalty(name, getattr(self, name))
        require_beginning(self)
        if not 0 < self.l0 <= self.n_latents and self.penalty in ("target", "quadratic"):
            raise BadData(f"l0={self.l0} of {self.n_latents} latents: what is aimed at is between 0 and their number.")
        if not (self.threshold_init > 0 and self.bandwidth > 0 and self.tanh_scale > 0):
            raise BadData(
                f"threshold_init={self.threshold_init}, bandwidth={self.bandwidth}, tanh_scale={self.tanh_scale}: all "
                "three are above 0."
            )

    def subtracts_bias(self, ends: "Ends") -> bool:
        """No (DeepMind, DL), unless `centre` says so (SAELens)."""
        return super().subtracts_bias(ends) if self.centre else False

    def parameters(self, ends: "Ends", x: Tensor, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """As ReLU, with thresholds."""
        norm = (ends.d_out / (3 * self.n_latents)) ** 0.5 if self.norm_init is None else self.norm_init
        found = beginning(self, ends, x, y, generator, norm)
        theta = torch.full_like(found["b_enc"], self.threshold_init)
        return {**found, **({"log_threshold": theta.log()} if self.log_threshold else {"threshold": theta})}

    def thresholds(self, d: "Dictionary") -> Float[Tensor, " latent"]:
        """θ."""
        return d.log_threshold.exp() if self.log_threshold else d.threshold

    def encode(self, d: "Dictionary", x: Tensor) -> Tensor:
        """What is above its threshold, with the estimator's gradient for θ."""
        return jump(d.encoder(x, fast=False).pre, self.thresholds(d), self.bandwidth, self.to_input)

    def before(self, d: "Dictionary", step: Step) -> None:
        """θ is at least 0: changed in place, never clamped where gradients flow."""
        if not self.log_threshold:
            d.threshold.data.clamp_(min=0.0)

    def loss(self, d: "Dictionary", x: Tensor, y: Tensor, step: Step) -> Loss:
        """See the module."""
        theta = self.thresholds(d)
        low, asleep = (theta - self.bandwidth / 2).detach(), self._asleep(d, step)

        def counts(pre: Tensor) -> Bool[Tensor, "row latent"]:
            near = pre > low
            return near if asleep is None else near | (asleep & (pre < theta.detach()))

        encoder, support = settled(d.encoder(x, fast=step.fast, bf16=step.bf16), counts)
        pre = encoder.at(support)
        codes = pre.map(lambda z, t: jump(z, t, self.bandwidth, self.to_input), theta)
        y_hat = d.write(codes, x)
        error = squared_error(y, y_hat)
        penalty = self._penalty(d, pre, codes, theta, step)
        parts = {"error": error.detach(), "sparsity": penalty.detach()}
        total = error + self.sparsity * step.sparsity * penalty
        if asleep is not None:
            missing = weighted(d, pre.map(lambda z, t, of: (t - z).relu() * of, theta, asleep.to(x))).sum() / len(x)
            parts["pre_act"] = d.shards.total(missing.detach())
            total = total + self.pre_act * missing
        if self.aux:
            aux = revived(d, encoder, y, y_hat, step)
            parts["aux"] = aux.detach()
            total = total + self.aux * aux
        return Loss(total=total, parts=parts, y_hat=y_hat.detach(), codes=codes.detach())

    def _asleep(self, d: "Dictionary", step: Step) -> Bool[Tensor, " latent"] | None:
        """Latents that `pre_act` is about."""
        if not self.pre_act:
            return None
        return torch.ones_like(d.b_enc, dtype=torch.bool) if self.pre_act_of == "all" else step.dead

    def _penalty(self, d: "Dictionary", pre: Values, codes: Values, theta: Tensor, step: Step) -> Float[Tensor, ""]:
        if self.penalty == "tanh":
            mine = weighted(d, codes).map(lambda f: torch.tanh(self.tanh_scale * f)).sum() / pre.n_rows
            return among_all(mine, d.shards.total(mine.detach()))
        mine = pre.map(lambda z, t: above(z, t, self.bandwidth, self.to_input), theta).row_sums()
        active = among_all(mine, d.shards.total(mine.detach()))
        if self.penalty == "l0":
            return active.mean()
        if self.penalty == "quadratic":
            return (2 / self.l0 * (active - self.l0).square()).mean()
        mean = active.mean()
        return (among_all(mean, step.team.mean(mean.detach())) / self.l0 - 1).square()

    def folded(self, d: "Dictionary") -> dict[str, Tensor]:
        """θ is multiplied with the norm of the row, as `b_enc` is."""
        found = super().folded(d)
        if self.log_threshold and self.decoder == "free":
            norms = d.W_dec.detach().norm(dim=1)
            found["log_threshold"] = found["log_threshold"] + torch.where(norms > 0, norms, 1.0).log()
        return found


def among_all(mine: Tensor, all_of_us: Tensor) -> Tensor:
    """The value of all processes, with the gradient of one's own part."""
    return mine + (all_of_us - mine).detach()
