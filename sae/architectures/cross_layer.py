"""Cross-layer transcoder: latents read one layer, write to it and all later ones (Anthropic 2025; clt-training [code]).

f^s = act(W_enc^s x^s + b_enc^s) for every layer s;  ŷ^t = Σ_{s ≤ t} f^s W_dec^{s→t} + b_dec^t [+ x^t W_skip^t].
Loss: Σ_t ‖y^t - ŷ^t‖² + λ Σ_{s,i} tanh(c ‖W_dec,i^s‖ f_i^s), the norm over all targets of the latent; for dead latents
also λ_P Σ ReLU(θ - z)‖W_dec,i^s‖. `activation`:

* jumprelu: a threshold per latent, learned through a window (`sae.jump`), as published.
* relu: no threshold.
* batch_topk: the k·B·L largest of a batch over all layers (`batchlayertopk` of clt-training), without a penalty; dead
  latents write what is left over (`aux`). Used alone, what is above the average of the least that was kept.

What is read and written are as many sites, in the order of the layers; widths may differ. Codes lie side by side,
`[row layer·latent]`: `n_latents` is the number per layer. Parameters per source s: `W_enc_s [latent d_s]`, and
`W_dec_s` with the columns of targets s, s+1, ... side by side, so that a row's norm is that of all that its latent
writes; with `tied` one decoder `[latent d]` for all targets (n d L numbers in place of n d L(L+1)/2). `b_enc` and
`threshold` have the latents of all layers. `W_skip` has numbers in the blocks of a layer with itself, zeros elsewhere.

A warning: a cross-layer transcoder may explain layer t by what layer s < t computed on another way, and be right about
the numbers and wrong about the mechanism. `sae.shares.layer_shares` says how much is written from which layer.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, RefusedMethod, unknown
from mechvis.kernels.support import Support
from mechvis.kernels.topk import topk
from sae.active import Encoder, Values, encoder
from sae.architecture import Architecture, Loss, Step
from sae.density import settled
from sae.initial import directions, geometric_median
from sae.jump import jump
from sae.losses import squared_error, variance
from sae.normaliser import Kind
from sae.select import batch_support

if TYPE_CHECKING:
    from sae.dictionary import Dictionary
    from sae.ends import Ends

ACTIVATIONS = ("jumprelu", "relu", "batch_topk")
MOST_LAYERS = 256
START = 1e-3
"""Norm of what a latent writes to its own layer in the beginning, where decoders are free."""


@dataclass(frozen=True, kw_only=True)
class CrossLayerTranscoder(Architecture):
    """Latents per layer that write to their own and all later layers.

    Example:
        >>> from sae.ends import Ends
        >>> a = CrossLayerTranscoder(n_latents=64, activation="batch_topk", k=4)
        >>> a.width(Ends(reads={"in0": 8, "in1": 8}, writes={"out0": 8, "out1": 8}))
        128
    """

    NAME: ClassVar[str] = "cross_layer_transcoder"
    # One decoder per layer: those that a dictionary does not have are passed over.
    UNIT: ClassVar[tuple[str, ...]] = tuple(f"W_dec_{s}" for s in range(MOST_LAYERS))

    normalise: Kind = "mean_norm"
    """Each site to a mean norm of √d: the defaults are for that."""
    decoder: Literal["unit", "free"] = "free"
    """Free as published; 'unit' keeps the norm over all targets at one."""
    activation: Literal["jumprelu", "relu", "batch_topk"] = "jumprelu"
    """How pre-activations become codes."""
    sparsity: float = 1.0
    """λ of the tanh penalty ('jumprelu', 'relu'); it rises during `Training.sparsity_warm_up`."""
    tanh_scale: float = 4.0
    """c of the tanh penalty."""
    threshold_init: float = 0.1
    """θ in the beginning ('jumprelu')."""
    bandwidth: float = 2.0
    """Width of the window that θ learns in ('jumprelu')."""
    pre_act: float = 3e-6
    """λ_P, for dead latents ('jumprelu')."""
    k: int = 32
    """Active latents per row and layer, on average ('batch_topk')."""
    row_limit: float | None = 8.0
    """A row has at most this many times k per layer ('batch_topk'); None: no limit."""
    aux: float = 1 / 32
    """Coefficient of the loss of dead latents, in shares of the variance ('batch_topk')."""
    k_aux: int = 0
    """Dead latents per row and layer that take part; 0: half of a layer's width."""
    threshold_decay: float = 0.999
    """Of the average that becomes the threshold ('batch_topk')."""
    tied: bool = False
    """One decoder per source, for all its targets."""
    zero_cross: bool = True
    """Decoders to later layers start at zero (not with `tied`)."""

    def check(self) -> None:
        """Refuse what cannot be."""
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS)
        if not 1 <= self.k <= self.n_latents and self.activation == "batch_topk":
            raise BadData(f"k={self.k} of {self.n_latents} latents per layer: k is between 1 and their number.")
        for name in ("sparsity", "pre_act", "aux", "k_aux"):
            if getattr(self, name) < 0:
                raise BadData(f"{name}={getattr(self, name)}: not below 0.")
        for name in ("tanh_scale", "threshold_init", "bandwidth"):
            if not getattr(self, name) > 0:
                raise BadData(f"{name}={getattr(self, name)}: above 0.")
        if not 0 <= self.threshold_decay < 1 or (self.row_limit is not None and self.row_limit < 1):
            raise BadData(f"threshold_decay={self.threshold_decay}, row_limit={self.row_limit} cannot be.")

    def width(self, ends: "Ends") -> int:
        """Latents of all layers."""
        return self.n_latents * len(ends.reads)

    def subtracts_bias(self, ends: "Ends") -> bool:
        """No."""
        return False

    # -- how it starts -----------------------------------------------------------------------------------------------

    def parameters(self, ends: "Ends", x: Tensor, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Encoders from data points; decoders of a layer to itself (almost) nothing, to others nothing.

        Raises:
            BadData: not as many inputs as outputs, inputs that are outputs, `tied` with different widths.
        """
        reads, writes = list(ends.reads.values()), list(ends.writes.values())
        if len(reads) != len(writes) or not ends.transcodes or len(reads) > MOST_LAYERS:
            raise BadData(
                f"a cross-layer transcoder reads one site and writes another in every layer, at most {MOST_LAYERS} of "
                f"them; got {len(reads)} read and {len(writes)} written. Give reads=('blocks.0.ln2.hook_normalized', "
                "...), writes=('blocks.0.hook_mlp_out', ...)."
            )
        if self.tied and len(set(writes)) > 1:
            raise BadData(f"tied=True writes the same vector to all layers, whose widths differ: {writes}.")
        found = {"b_dec": geometric_median(y)}
        biases = []
        for s, part in enumerate(x.split(reads, dim=1)):
            centre = part.mean(0)
            rows = directions(part - centre, self.n_latents, self.data_init, generator)
            biases.append(-(rows @ centre))
            drawn = torch.randn(self.n_latents, writes[s], generator=generator, dtype=torch.float64).to(x)
            own = torch.nn.functional.normalize(drawn, dim=1) * (1.0 if self.decoder == "unit" else START)
            others = torch.zeros(self.n_latents, 0 if self.tied else sum(writes[s + 1 :]), dtype=torch.float64)
            if not self.zero_cross:
                others.normal_(generator=generator)
                others *= START / max(1, others.shape[1]) ** 0.5
            weight = torch.cat([own, others.to(x)], dim=1)
            found[f"W_enc_{s}"] = rows
            found[f"W_dec_{s}"] = torch.nn.functional.normalize(weight, dim=1) if self.decoder == "unit" else weight
        found["b_enc"] = torch.cat(biases)
        if self.activation == "jumprelu":
            found["threshold"] = torch.full_like(found["b_enc"], self.threshold_init)
        if self.skip:
            found["W_skip"] = x.new_zeros(ends.d_out, ends.d_in)
        return found

    def state(self, ends: "Ends") -> dict[str, Tensor]:
        """With 'batch_topk' the threshold; below zero: not known yet."""
        return {"batch_threshold": torch.tensor(-1.0, dtype=torch.float64)} if self.activation == "batch_topk" else {}

    def before(self, d: "Dictionary", step: Step) -> None:
        """Thresholds are not negative; outside the graph, where it does not stop them from growing again."""
        if self.activation == "jumprelu":
            d.threshold.clamp_(min=0)

    # -- how it is used ----------------------------------------------------------------------------------------------

    def encode(self, d: "Dictionary", x: Tensor) -> Tensor:
        """Codes of all layers, side by side.

        Raises:
            BadData: 'batch_topk' that was never trained, so that there is no threshold.
        """
        pre = torch.cat([e.pre for e in self.encoders(d, x, fast=False)], dim=1)
        if self.activation == "relu":
            return pre.relu()
        if self.activation == "jumprelu":
            return torch.where(pre > d.threshold, pre, 0.0)
        if d.batch_threshold < 0:
            raise BadData("this transcoder has no threshold yet: it is learned while it is trained.")
        scores = pre.detach() * torch.cat(self.costs(d)).detach()
        return torch.where(scores > d.batch_threshold.to(pre.dtype), pre.relu(), 0.0)

    def decode(self, d: "Dictionary", codes: Tensor) -> Tensor:
        """What codes of all layers write, without a skip connection."""
        parts = codes.split(self.n_latents, dim=1)
        return self._gathered(d, [part @ getattr(d, f"W_dec_{s}") for s, part in enumerate(parts)])

    def rows(self, d: "Dictionary") -> Float[Tensor, "code d_out"]:
        """What one unit of each code writes, with zeros for earlier layers; a large matrix."""
        widths = list(d.ends.writes.values())
        found = []
        for s in range(len(widths)):
            weight = getattr(d, f"W_dec_{s}")
            later = weight.repeat(1, len(widths) - s) if self.tied else weight
            found.append(torch.cat([weight.new_zeros(len(weight), sum(widths[:s])), later], dim=1))
        return torch.cat(found)

    def written_by(self, d: "Dictionary", codes: Float[Tensor, "row code"]) -> list[list[Tensor]]:
        """What each layer's latents write to each layer: `[target][source]`, normalised, sources up to the target."""
        parts = [part @ getattr(d, f"W_dec_{s}") for s, part in enumerate(codes.split(self.n_latents, dim=1))]
        return self._by_target(d, parts)

    def encoders(self, d: "Dictionary", x: Tensor, *, fast: bool, bf16: bool = False) -> list[Encoder]:
        """Each layer's rows times its encoder."""
        parts = x.split(list(d.ends.reads.values()), dim=1)
        biases = d.b_enc.split(self.n_latents)
        return [
            encoder(part, None, getattr(d, f"W_enc_{s}"), bias, fast=fast, bf16=bf16)
            for s, (part, bias) in enumerate(zip(parts, biases, strict=True))
        ]

    def costs(self, d: "Dictionary") -> list[Float[Tensor, " latent"]]:
        """Norm of all that each latent writes, by layer."""
        n = len(d.ends.reads)
        return [getattr(d, f"W_dec_{s}").norm(dim=1) * ((n - s) ** 0.5 if self.tied else 1.0) for s in range(n)]

    def _by_target(self, d: "Dictionary", parts: list[Tensor]) -> list[list[Tensor]]:
        widths = list(d.ends.writes.values())
        if self.tied:
            return [parts[: t + 1] for t in range(len(widths))]
        pieces = [part.split(widths[s:], dim=1) for s, part in enumerate(parts)]
        return [[pieces[s][t - s] for s in range(t + 1)] for t in range(len(widths))]

    def _gathered(self, d: "Dictionary", parts: list[Tensor]) -> Tensor:
        return torch.cat([torch.stack(some).sum(0) for some in self._by_target(d, parts)], dim=1) + d.b_dec

    # -- how it learns -----------------------------------------------------------------------------------------------

    def loss(self, d: "Dictionary", x: Tensor, y: Tensor, step: Step) -> Loss:
        """See the module.

        Raises:
            RefusedMethod: its latents are spread over processes, which is not built for it.
        """
        if d.shards.size > 1:
            raise RefusedMethod("a cross-layer transcoder cannot be spread over processes by latents; share the batch.")
        encoders = self.encoders(d, x, fast=step.fast, bf16=step.bf16)
        seen = {}
        if self.activation == "batch_topk":
            codes, seen["least"] = self._largest(d, encoders, step)
            missing = x.new_zeros(())
        else:
            codes, missing = self._above(d, encoders, step)
        y_hat = self._gathered(d, [part.decode(getattr(d, f"W_dec_{s}")) for s, part in enumerate(codes)])
        y_hat = y_hat + self._skipped(d, x) if self.skip else y_hat
        error = squared_error(y, y_hat)
        parts = {"error": error.detach()}
        if self.activation == "batch_topk":
            aux = self._dead(d, encoders, y, y_hat, step) if self.aux else x.new_zeros(())
            parts["aux"] = aux.detach()
            total = error + self.aux * variance(y, step) * aux
        else:
            penalty = sum(
                part.map(lambda f, cost: torch.tanh(self.tanh_scale * cost * f), cost).sum()
                for part, cost in zip(codes, self.costs(d), strict=True)
            ) / len(x)
            parts |= {"sparsity": penalty.detach(), "pre_act": missing.detach()}
            total = error + self.sparsity * step.sparsity * penalty + self.pre_act * missing
        return Loss(total=total, parts=parts, y_hat=y_hat.detach(), codes=_together(codes), seen=seen)

    def _above(self, d: "Dictionary", encoders: list[Encoder], step: Step) -> tuple[list[Values], Tensor]:
        """Codes with 'relu' or 'jumprelu', and what dead latents miss to their thresholds."""
        codes, missing = [], encoders[0].x.new_zeros(())
        if self.activation == "relu":
            for e in encoders:
                fits, support = settled(e, lambda pre: pre > 0)
                codes.append(fits.at(support).map(torch.relu))
            return codes, missing
        dead = torch.zeros_like(d.b_enc, dtype=torch.bool) if step.dead is None or not self.pre_act else step.dead
        n = self.n_latents
        for e, theta, asleep, cost in zip(encoders, d.threshold.split(n), dead.split(n), self.costs(d), strict=True):
            low, middle = (theta - self.bandwidth / 2).detach(), theta.detach()
            fits, support = settled(
                e, lambda pre, low=low, asleep=asleep, middle=middle: (pre > low) | (asleep & (pre < middle))
            )
            pre = fits.at(support)
            codes.append(pre.map(lambda z, t: jump(z, t, self.bandwidth, True), theta))
            short = pre.map(lambda z, t, of, c: (t - z).relu() * of * c, theta, asleep.to(e.x), cost)
            missing = missing + short.sum() / len(e.x)
        return codes, missing

    def _largest(self, d: "Dictionary", encoders: list[Encoder], step: Step) -> tuple[list[Values], Tensor]:
        """The k·B·L largest of all layers together."""
        n, layers = self.n_latents, len(encoders)
        costs = [cost.detach() for cost in self.costs(d)]
        scores = torch.cat([e.pre.detach() * cost for e, cost in zip(encoders, costs, strict=True)], dim=1)
        k = min(n, max(self.k, self.k * step.k_factor)) * layers
        support, least = batch_support(scores, k, row_limit=self.row_limit, team=step.team)
        layer = support.latents // n
        codes = []
        for s, e in enumerate(encoders):
            here = layer == s
            places = support.rows[here] * n + support.latents[here] - s * n
            codes.append(e.at(Support.from_flat(places, support.n_rows, n)).map(torch.relu))
        return codes, least

    def _dead(self, d: "Dictionary", encoders: list[Encoder], y: Tensor, y_hat: Tensor, step: Step) -> Tensor:
        """AuxK: the largest dead latents of every layer write what is left over, as a share of its variance."""
        widths = list(d.ends.writes.values())
        if step.dead is None or step.n_dead < 1:
            return y.new_zeros(())
        written = []
        for s, (e, dead) in enumerate(zip(encoders, step.dead.split(self.n_latents), strict=True)):
            k = min(self.k_aux or max(1, widths[s] // 2), step.n_dead, self.n_latents)
            values, latents = topk(e.pre.detach(), k, among=dead)
            codes = e.at(Support.from_rows(latents, self.n_latents)).map(torch.relu)
            # Where fewer are dead than k, the rest of the places hold -inf, and are left at zero.
            real = torch.isfinite(values).reshape(-1) if e.fast else dead
            codes = Values(numbers=torch.where(real, codes.numbers, 0.0), support=codes.support, mask=codes.mask)
            written.append(codes.decode(getattr(d, f"W_dec_{s}")))
        error = (y - y_hat).detach()
        loss = squared_error(error, self._gathered(d, written) - d.b_dec) / variance(error, step)
        return torch.nan_to_num(loss, nan=0.0, posinf=0.0, neginf=0.0)

    def _skipped(self, d: "Dictionary", x: Tensor) -> Tensor:
        """Each layer's rows times its own block of W_skip: the others have no gradient, and stay zero."""
        reads, writes = list(d.ends.reads.values()), list(d.ends.writes.values())
        blocks = [rows.split(reads, dim=1)[t] for t, rows in enumerate(d.W_skip.split(writes, dim=0))]
        return torch.cat([part @ block.T for part, block in zip(x.split(reads, dim=1), blocks, strict=True)], dim=1)

    def after(self, d: "Dictionary", loss: Loss, step: Step) -> None:
        """Average the threshold: a plain mean at first, so that no start value has to be forgotten."""
        if self.activation != "batch_topk":
            return
        decay = min(self.threshold_decay, (1 + step.number) / (10 + step.number))
        least = loss.seen["least"].to(d.batch_threshold)
        known = torch.where(d.batch_threshold < 0, least, d.batch_threshold)
        averaged = decay * known + (1 - decay) * least
        d.batch_threshold.copy_(torch.where(torch.isfinite(least), averaged, d.batch_threshold))

    def folded(self, d: "Dictionary") -> dict[str, Tensor]:
        """Decoder rows of norm one; encoders, biases and thresholds take their norms over."""
        found = {name: tensor.detach().clone() for name, tensor in d.state_dict().items()}
        if self.decoder == "unit":
            return found
        for s in range(len(d.ends.reads)):
            norms = found[f"W_dec_{s}"].norm(dim=1)
            norms = torch.where(norms > 0, norms, 1.0)
            found[f"W_dec_{s}"] /= norms[:, None]
            found[f"W_enc_{s}"] *= norms[:, None]
            for name in ("b_enc", "threshold"):
                if name in found:
                    rearrange(found[name], "(layer latent) -> layer latent", latent=self.n_latents)[s] *= norms
        return found


def _together(codes: list[Values]) -> Values:
    """Codes of all layers side by side, as entries; detached."""
    n, layers = codes[0].support.n_latents, len(codes)
    places = torch.cat(
        [part.support.rows * (n * layers) + s * n + part.support.latents for s, part in enumerate(codes)]
    )
    numbers = torch.cat([part.detach().entries() for part in codes])[places.argsort()]
    return Values(numbers=numbers, support=Support.from_flat(places, codes[0].n_rows, n * layers), mask=None)
