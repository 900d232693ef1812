"""IBA: put noise on every token's activation until the class is only just still recognised; what must stay is a map.

1. Before block `layer`, each token's activation h (with mean mu and spread s) becomes
   `lam h + (1 - lam) eps`, `eps ~ N(mu, s^2)`, `lam = sigmoid(alpha)` per token and channel.
2. alpha is fitted by Adam to `cross-entropy + beta * mean(KL)`: recognise the class, let little through. KL is the
   information that a value still carries about h at most:
   `-1/2 [1 + ln (1 - lam)^2 - (lam (h - mu) / s)^2 - (1 - lam)^2]`.
3. Map: bits per token, `sum_channels KL / ln 2`.

Bits are upper bounds, and **beta sets their scale**: compare maps of two layers or models at equal total bits
(`total_bits`, found by bisection over log beta), never at equal beta. The mean over values makes beta depend on how
many tokens and channels there are. Bits on CLS and registers have no place in the map and are reported beside it
(`prefix`).

mu and s come from `reference` images, per token and channel, or, without them, from the image's own patches, shared
over patches. That is a second choice: noise then also moves patches to other positions, so that where a patch is costs
bits like what it shows; and prefix tokens, of which an image has one each, stay as they are and carry what they like,
so that the layer should be early. `loss="similarity"` is the form for CLIP (M2IB): mu = 0, s = `spread`, and minus the
score in the place of the cross-entropy. (A zero-shot head multiplies the cosine by its scale: at a scale of 100, beta =
10 here is the .1 of M2IB.)

Source: Schulz et al. 2020, Wang et al. 2023 (M2IB); methods2.md 18.3 [C], [P] on F11. Where we differ: no smoothing of
lam over the grid, no CNN; noise belongs to the image (a seed and an id).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.attribution.adam import adam
from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.question import Question
from mechvis.attribution.tail import stream_at, tail
from mechvis.errors import BadData, NotFinite, OutOfRange, unknown

Stream = Float[Tensor, "image token d_model"]
Loss = Callable[[Float[Tensor, "row token d_model"], Int[Tensor, " row"]], Float[Tensor, " row"]]
"""The cost of each noised stream: `(rows, which image each row is of)`."""
Kind = Literal["class", "similarity"]

_FLOOR = 0.01
"""Smallest spread: a constant channel would otherwise carry infinite information."""


def bits_of(alpha: Stream, stream: Stream, mean: Stream, spread: Stream) -> Stream:
    """Information of each value, in bits, as an upper bound.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> round(float(bits_of(0 * one, one, 0 * one, one)), 4)      # lam = 1/2, one standard deviation off
        0.6393
    """
    lam = torch.sigmoid(alpha)
    # 2 ln(1 - lam) by way of alpha: 1 - lam itself is rounded to 0 where alpha is large.
    log = -2 * torch.nn.functional.softplus(alpha)
    return -0.5 * (1 + log - (lam * (stream - mean) / spread).square() - (1 - lam).square()) / math.log(2)


def bottleneck(
    loss: Loss,
    stream: Stream,
    mean: Stream,
    spread: Stream,
    generators: list[torch.Generator],
    *,
    beta: float = 10.0,
    steps: int = 10,
    samples: int = 10,
    rate: float = 1.0,
    start: float = 5.0,
    open_tokens: int = 0,
) -> Float[Tensor, "image token"]:
    """Bits per token of a fitted bottleneck.

    Args:
        loss: what noised streams cost.
        stream: clean activations.
        mean, spread: of the noise, per token and channel (broadcast); spreads are floored at .01.
        generators: one per image.
        beta: weight of the mean information (nats) against the loss.
        steps: of Adam.
        samples: draws of noise per image and step.
        rate: of Adam.
        start: alpha at first; 5 lets 99.3 % through.
        open_tokens: so many first tokens are left as they are.

    Raises:
        OutOfRange: beta, steps, samples or rate that are not positive.
        NotFinite: the loss is NaN or Inf.
    """
    if not (beta > 0 and steps >= 1 and samples >= 1 and rate > 0):
        raise OutOfRange(f"beta={beta}, steps={steps}, samples={samples}, rate={rate}: all must be positive.")
    n_images, n_tokens, d_model = stream.shape
    mean, spread = mean.expand_as(stream), spread.clamp(min=_FLOOR).expand_as(stream)
    rows = repeat(torch.arange(n_images, device=stream.device), "image -> (image sample)", sample=samples)
    closed = (torch.arange(n_tokens, device=stream.device) >= open_tokens).to(stream)[:, None]
    alpha = torch.full_like(stream, start, requires_grad=True)
    moments = (torch.zeros_like(stream), torch.zeros_like(stream))
    for step in range(1, steps + 1):
        noise = torch.stack(
            [torch.randn(samples, n_tokens, d_model, generator=generator) for generator in generators]
        ).to(stream)
        with torch.enable_grad():
            lam = torch.sigmoid(alpha) * closed + (1 - closed)
            noised = torch.lerp(mean[:, None] + spread[:, None] * noise, stream[:, None], lam[:, None])
            costs = loss(rearrange(noised, "image sample token d -> (image sample) token d"), rows)
            if not bool(torch.isfinite(costs).all()):
                raise NotFinite(f"the loss is NaN or Inf in step {step} of the bottleneck.")
            let = (bits_of(alpha, stream, mean, spread) * closed).mean((1, 2)) * math.log(2)
            total = (rearrange(costs, "(image sample) -> image sample", sample=samples).mean(1) + beta * let).sum()
            (gradient,) = torch.autograd.grad(total, alpha)
        with torch.no_grad():
            alpha = adam(alpha, gradient, moments, step, rate).requires_grad_(True)
    with torch.no_grad():
        return (bits_of(alpha, stream, mean, spread) * closed).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Iba(Method):
    """Bits per token that a noised layer must let through for the class to be recognised.

    Example:
        >>> found = mechvis.attribute(model, images, Iba(layer=1))             # doctest: +SKIP
        >>> found.table["prefix"]                        # bits on CLS          # doctest: +SKIP
    """

    NAME = "iba"
    CLAIMS = Claims(class_specific=True, signed=False, random=True, reads="gradient")
    SOURCE = "Schulz et al. 2020; methods2.md 18.3"
    layer: int | None = None
    """The stream before this block is noised; negative: from the end; None: the middle block."""
    beta: float = 10.0
    """Weight of the mean information."""
    steps: int = 10
    """Of Adam."""
    samples: int = 10
    """Draws of noise per image and step."""
    rate: float = 1.0
    """Of Adam."""
    loss: Kind = "class"
    """`class`: cross-entropy of the explained class; `similarity`: minus the score (for CLIP), with mu = 0."""
    spread: float = 1.0
    """Standard deviation of the noise for `similarity`."""
    reference: Any = None
    """Pixels `[image channel height width]` for mean and spread of each token and channel; None: from the image's own
    patches."""
    total_bits: float | None = None
    """Choose beta for each image so that patches and prefix together carry so many bits."""

    def __post_init__(self):
        if isinstance(self.reference, int):
            raise BadData(f"a saved result says only that the reference had {self.reference} images: pass its pixels.")
        if self.loss not in get_args(Kind):
            raise unknown("loss", self.loss, get_args(Kind))
        if not self.spread > 0 or (self.total_bits is not None and not self.total_bits > 0):
            raise OutOfRange(f"spread={self.spread}, total_bits={self.total_bits}: both must be positive.")

    def settings(self) -> dict[str, Any]:
        """As JSON; a reference becomes the number of its images."""
        plain = super(Iba, replace(self, reference=None)).settings()
        return plain if self.reference is None else plain | {"reference": len(self.reference)}

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch."""
        layer = ask.n_layers // 2 if self.layer is None else ask.layer(self.layer)
        bits, beta = bits_at(self, ask, layer)
        return Maps(
            values=bits[:, ask.n_prefix :],
            prefix=bits[:, : ask.n_prefix],
            extra={"bits": bits.sum(1), "beta": beta},
        )


def bits_at(method: Iba, ask: Question, layer: int) -> tuple[Float[Tensor, "image token"], Float[Tensor, " image"]]:
    """Bits of every token, prefix included, before block `layer`, and the beta of each image."""
    stream = stream_at(ask, layer)
    mean, spread, left = _noise(method, ask, layer, stream)
    size = tuple(ask.pixels.shape[2:])

    def fitted(beta: Float[Tensor, " image"]) -> Tensor:
        def loss(noised: Tensor, rows: Tensor) -> Tensor:
            ask.cost.forwards += len(noised)
            ask.cost.backwards += len(noised)
            logits = tail(ask.model, noised, layer, size)
            # A weight on the loss in the place of one on the information: the minimum is the same.
            return _cost(method, ask, logits, rows) * (method.beta / beta[rows])

        draws = [ask.generator(i, f"iba noise {layer}") for i in range(len(ask.pixels))]
        return bottleneck(
            loss,
            stream,
            mean,
            spread,
            draws,
            beta=method.beta,
            steps=method.steps,
            samples=method.samples,
            rate=method.rate,
            open_tokens=left,
        )

    beta = torch.full((len(stream),), float(method.beta), device=stream.device)
    if method.total_bits is None:
        return fitted(beta), beta
    return _equal_bits(fitted, beta, method.total_bits)


def _equal_bits(
    fitted: Callable[[Tensor], Tensor], beta: Tensor, total: float, rounds: int = 12
) -> tuple[Tensor, Tensor]:
    """Bisection over log beta, image by image: bits fall as beta rises."""
    low, high = torch.full_like(beta, -3.0), torch.full_like(beta, 5.0)  # powers of ten
    for _ in range(rounds):
        middle = (low + high) / 2
        bits = fitted(10**middle)
        more = bits.sum(1) > total
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    return bits, 10**middle


def _cost(method: Iba, ask: Question, logits: Tensor, rows: Tensor) -> Tensor:
    if method.loss == "similarity":
        return -ask.target.read(logits, rows)
    if logits.shape[1] < 2:
        raise BadData("the cross-entropy of a single class is always 0: take loss='similarity' for one text.")
    return -ask.target.reading("logprob").read(logits, rows)


def _noise(method: Iba, ask: Question, layer: int, stream: Stream) -> tuple[Tensor, Tensor, int]:
    """Mean and spread of the noise, and how many first tokens stay as they are."""
    if method.loss == "similarity":
        return torch.zeros_like(stream), torch.full_like(stream, method.spread), 0
    if method.reference is None:
        patches = stream[:, ask.n_prefix :]
        return patches.mean(1, keepdim=True), patches.std(1, keepdim=True), ask.n_prefix
    pixels = ask.model.inputs(method.reference)
    if len(pixels) < 2:
        raise BadData(f"a reference of {len(pixels)} images has no spread; give at least 2.")
    site = f"blocks.{layer}.hook_resid_pre"
    known = torch.cat([ask.model.run(part, capture=[site]).cache[site] for part in pixels.split(ask.batch_size)])
    if known.shape[1:] != stream.shape[1:]:
        raise BadData(f"the reference has {known.shape[1]} tokens, these images {stream.shape[1]}.")
    return known.mean(0, keepdim=True), known.std(0, keepdim=True), 0
