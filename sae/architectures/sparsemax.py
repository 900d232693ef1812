"""Sparsemax attention: every row decides itself how many latents it needs (Wang et al., CVPR 2026; Sparsemax-SAE
[code]).

Concepts C [n d] and two maps A_k, A_v; no biases, no k, no sparsity term.

1. x̄ = x/‖x‖, K = C A_k, V = C A_v, s = x̄ Kᵀ / temperature.
2. p = sparsemax(s) = (s - τ)₊, the nearest point of the simplex: τ makes the p of a row sum to 1.
3. Codes: `codes='scores'`, the released code: s where p > 0. `codes='weights'`: p itself, which is what attention over
   concepts means. (Our source describes the released form only and says that its codes are not p; that the paper's are
   p is our reading of "sparsemax attention", so both are offered under names that say what they do.)
4. x̂ = ‖x‖ · codes V, so what `encode` gives is ‖x‖ times the codes of 3, and decoding is linear.
5. Loss: 10 · mean over rows and columns of (x̂ - x)²/‖x‖₂; rows of a CLS token count `cls_weight` times.

τ is exact, from the largest scores alone (`sae.simplex`). p and s have gradients on the support alone, so the backward
pass is that of TopK with a variable k.

The spread of the scores sets how many latents are active (14 at σ = .3, 2400 at σ = .001 [run]); it is in the log as
`score_spread`. Where the positive scores of a row sum to less than 1, τ < 0: every latent is active, and scores may be
negative.

Latents that fired on more than `max_frequency` of all rows are not to be taken. Here the frequency is state: it is
saved, it counts in training only, and masked scores are -inf. (Sparsemax-SAE keeps it as a plain attribute, which is
not saved, counts in evaluation too, and multiplies scores by 0, which still takes part in sparsemax [code].)
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from mechvis.errors import BadData, unknown
from sae.active import Values, encoder
from sae.architecture import Architecture, Loss, Step
from sae.architectures.archetypal import is_unit
from sae.normaliser import Kind
from sae.simplex import sparsemax_support
from sae.sparse import rows_of

if TYPE_CHECKING:
    from sae.dictionary import Dictionary
    from sae.ends import Ends


@dataclass(frozen=True, kw_only=True)
class Sparsemax(Architecture):
    """Attention over concepts, with as many as a row needs.

    Example:
        >>> Sparsemax(n_latents=512).codes
        'scores'
    """

    NAME: ClassVar[str] = "sparsemax"
    UNIT: ClassVar[tuple[str, ...]] = ()
    FIXED: ClassVar[tuple[str, ...]] = ("W_enc", "W_dec", "b_dec", "row_norm")

    normalise: Kind = "token_norm"
    """How activations are scaled; a transcoder needs 'mean_square'."""
    decoder: Literal["unit", "free"] = "free"
    """Norms of what latents write follow from concepts and map: 'free' only."""
    codes: Literal["scores", "weights"] = "scores"
    """What is written with: scores on the support (released code), or the sparsemax weights."""
    temperature: float = 1.0
    """Scores are divided by it: lower means fewer latents."""
    max_frequency: float | None = 0.1
    """Latents that fire on a larger share of rows are not taken; None: all are."""
    cls_weight: float = 1.0
    """How much rows of the first type of token (CLS) count, where types are known."""

    def check(self) -> None:
        """Refuse what cannot be."""
        if self.codes not in ("scores", "weights"):
            raise unknown("codes", self.codes, ("scores", "weights"))
        if self.decoder != "free" or self.skip:
            raise BadData(
                f"decoder={self.decoder!r}, skip={self.skip}: attention over concepts has free rows and nothing beside."
            )
        if not self.temperature > 0 or self.cls_weight < 0:
            raise BadData(f"temperature={self.temperature} is above 0, cls_weight={self.cls_weight} not below.")
        if self.max_frequency is not None and not 0 < self.max_frequency <= 1:
            raise BadData(f"max_frequency={self.max_frequency} is a share of rows above 0, or None.")

    def parameters(self, ends: "Ends", x: Tensor, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Kaiming-uniform, as released: entries uniform within ±√(6 / fan-in)."""

        def drawn(rows: int, columns: int, fan_in: int) -> Tensor:
            number = torch.rand(rows, columns, generator=generator, dtype=torch.float64)
            return ((2 * number - 1) * (6 / fan_in) ** 0.5).to(x)

        d_in, d_out = ends.d_in, ends.d_out
        found = {
            "concepts": drawn(self.n_latents, d_in, d_in),
            "to_key": drawn(d_in, d_in, d_in),
            "to_value": drawn(d_in, d_out, d_in),
        }
        return {
            **found,
            "W_enc": found["concepts"] @ found["to_key"],
            "W_dec": found["concepts"] @ found["to_value"],
            "b_dec": y.new_zeros(d_out),
            "row_norm": y.new_ones(self.n_latents),
        }

    def state(self, ends: "Ends") -> dict[str, Tensor]:
        """How often latents fired, over how many batches."""
        return {
            "frequency": torch.zeros(self.n_latents, dtype=torch.float64),
            "seen_batches": torch.zeros((), dtype=torch.float64),
        }

    def before(self, d: "Dictionary", step: Step) -> None:
        """What the dictionary shows to others follows its parameters."""
        keys, values = keys_values(d)
        d.W_enc.copy_(keys)
        d.W_dec.copy_(values)

    def subtracts_bias(self, ends: "Ends") -> bool:
        """There is none."""
        return False

    def encode(self, d: "Dictionary", x: Tensor) -> Tensor:
        """Codes: scores or weights times the norm of the row."""
        found, _, _ = self._attend(d, x, d.W_enc, fast=False, bf16=False)
        return found.numbers * d.row_norm

    def loss(self, d: "Dictionary", x: Tensor, y: Tensor, step: Step) -> Loss:
        """See the module."""
        keys, values = keys_values(d)
        codes, scores, tau = self._attend(d, x, keys, fast=step.fast, bf16=step.bf16)
        codes = codes.map(lambda v, norm: v * norm, d.row_norm)
        y_hat = codes.decode(values)
        length = _lengths(y)
        errors = (y_hat - y).square() / length
        if step.types is not None and self.cls_weight != 1:
            errors = errors * torch.where(step.types == 0, self.cls_weight, 1.0).to(errors)[:, None]
        total = 10 * errors.mean()
        return Loss(
            total=total,
            parts={
                "error": total.detach(),
                "score_spread": scores.detach().float().std(),
                "tau": tau.detach().mean(),
            },
            y_hat=y_hat.detach(),
            codes=codes.detach(),
        )

    def after(self, d: "Dictionary", loss: Loss, step: Step) -> None:
        """Average how often latents fire, over all batches so far."""
        share = step.team.mean(loss.codes.positive().to(d.frequency) / loss.codes.n_rows)
        d.seen_batches += 1
        d.frequency += (share - d.frequency) / d.seen_batches

    def folded(self, d: "Dictionary") -> dict[str, Tensor]:
        """Unit rows in `W_dec`; `row_norm` takes over their norms, since the keys decide who is active."""
        found = {name: tensor.detach().clone() for name, tensor in d.state_dict().items()}
        with torch.no_grad():
            keys, values = keys_values(d)
            if is_unit(d.W_dec) and torch.equal(d.W_dec, values) and torch.equal(d.W_enc, keys):
                return found
            keys, values = keys_values(SimpleNamespace(**{**found, "row_norm": torch.ones_like(found["row_norm"])}))
            norms = values.norm(dim=1)
            norms = torch.where(norms > 0, norms, 1.0)
            found |= {"W_enc": keys, "W_dec": values / norms[:, None], "row_norm": norms}
        return found

    def _attend(
        self, d: "Dictionary", x: Tensor, keys: Tensor, *, fast: bool, bf16: bool
    ) -> tuple[Values, Tensor, Tensor]:
        """Codes, all scores, and τ of every row."""
        length = _lengths(x)
        e = encoder(x / (length * self.temperature), None, keys, None, fast=fast, bf16=bf16)
        scores = e.pre.detach().to(x.dtype)
        if self.max_frequency is not None:
            scores = scores.masked_fill(d.frequency > self.max_frequency, -torch.inf)
        support, tau = sparsemax_support(scores)
        found = e.at(support)
        if self.codes == "weights":
            # p = s - τ with τ = (Σ s - 1) / κ: all of the support take part in its gradient.
            tau = (found.row_sums() - 1) / support.counts.clamp_min(1).to(x.dtype)
            found = _minus(found, tau)
        return _times(found, length[:, 0]), e.pre, tau


def keys_values(d: "Dictionary") -> tuple[Tensor, Tensor]:
    """K = C A_k and V = C A_v over the norms that codes have taken over."""
    return d.concepts @ d.to_key, d.concepts @ d.to_value / d.row_norm[:, None]


def _lengths(x: Tensor) -> Tensor:
    """Norms of rows `[row 1]`; a row of zeros counts as one of length one."""
    length = x.norm(dim=1, keepdim=True)
    return torch.where(length > 0, length, 1.0)


def _minus(values: Values, per_row: Tensor) -> Values:
    """Every entry less a number of its row."""
    if values.mask is None:
        numbers = values.numbers - _AtRows.apply(per_row, values.support)
    else:
        numbers = torch.where(values.mask, values.numbers - per_row[:, None], 0.0)
    return Values(numbers=numbers, support=values.support, mask=values.mask)


def _times(values: Values, per_row: Tensor) -> Values:
    """Every entry times a number of its row."""
    factor = per_row[:, None] if values.mask is not None else _AtRows.apply(per_row, values.support)
    return Values(numbers=values.numbers * factor, support=values.support, mask=values.mask)


class _AtRows(torch.autograd.Function):
    """A number per row, at the entries; its gradient is a sum in a fixed order."""

    @staticmethod
    def forward(ctx, numbers, support):
        ctx.support = support
        return numbers[support.rows]

    @staticmethod
    def backward(ctx, grad):
        return rows_of(grad.contiguous(), ctx.support), None
