"""The slow truth: one source, both halves of every pair written out, nothing shared and nothing taken as a difference.

`circuits.contextual.batched` carries beta only and calls gamma what is left, so there `beta + gamma` is the total by
construction. Here beta and gamma each have their own formula, and that their sum is the model's activation at every
site is something that can fail. The tests compare the two, and both with runs of the model.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from circuits.contextual.affine import Shape, together
from circuits.contextual.batched import cancelled, share
from circuits.contextual.rules import Rules
from circuits.contextual.sources import Source
from circuits.contextual.walk import walk
from mechvis import block as blocks
from mechvis.models.parts import AttentionParts, Layout
from mechvis.norms import gain, is_rms, statistics


class Halves(NamedTuple):
    """Both halves of an activation `[image ...]`."""

    beta: Tensor
    gamma: Tensor
    learned: bool = False
    """Learned queries: weights, so that both halves of a pattern are made with them."""


class Plain:
    """Operations on both halves, as said at `circuits.contextual.walk.Ops`; arguments as for `Batched`, with one
    source. Afterwards `seen` holds the halves by site."""

    def __init__(
        self, rules: Rules, source: Source, values: Callable[[str], Tensor | None], *, direct: bool, sites: Any
    ):
        self.rules, self.source, self.values, self.direct, self.sites = rules, source, values, direct, sites
        self.known: dict[str, Any] = {}
        self.seen: dict[str, Halves] = {}

    def total(self, x: Halves) -> Tensor:
        return x.beta + x.gamma

    def enter(self, layer: int, x: Halves) -> Halves:
        return x

    def at(self, site: str, x: Halves) -> Halves:
        x = self.put(site, x)
        if site in self.sites:
            self.seen[site] = x
        return x

    def put(self, site: str, x: Halves) -> Halves:
        for piece in self.source.pieces:
            if piece.site != site:
                continue
            total, value = self.total(x), self.values(site)
            value = torch.zeros_like(total) if value is None else value.expand_as(total)
            here = piece.where(total, range(len(total)))
            x = Halves(torch.where(here, total - value, x.beta), torch.where(here, value, x.gamma))
        return x

    def wants(self, site: str) -> bool:
        return site in self.sites

    def involved(self, start: str) -> bool:
        return True

    def sourced(self, start: str) -> bool:
        return any(piece.site.startswith(start) for piece in self.source.pieces)

    def rest(self, total: Tensor) -> Halves:
        return Halves(torch.zeros_like(total), total, learned=True)

    def add(self, x: Halves, y: Halves, *, block_output: bool = False) -> Halves:
        return self._cancelled(x.beta + y.beta, x.gamma + y.gamma, mlp=block_output)

    def linear(self, f: Callable, x: Halves, shape: Shape, need: Any, *, mlp: bool = False) -> tuple[Halves, ...]:
        found = []
        outputs = (together(f(half)) for half in (x.beta, x.gamma, self.total(x)))
        for beta, gamma, total, zero, needed in zip(*outputs, shape.zero, need, strict=True):
            if not needed:
                found.append(Halves(torch.zeros_like(total), total))
                continue
            beta, gamma = beta - zero, gamma - zero
            part = share(beta, gamma) if self.rules.bias == "share" else 0.0
            found.append(self._cancelled(beta + zero * part, gamma + zero * (1 - part), mlp=mlp))
        return tuple(found)

    def difference(self, f: Callable, x: Halves, need: Any) -> tuple[Halves, ...]:
        totals, gammas = together(f(self.total(x))), together(f(x.gamma))
        return tuple(
            Halves(total - gamma, gamma) if needed else Halves(torch.zeros_like(total), total)
            for total, gamma, needed in zip(totals, gammas, need, strict=True)
        )

    def norm(self, norm: nn.Module, x: Halves) -> Halves:
        if self.rules.ln == "rest":
            gamma = norm(x.gamma)
            return Halves(norm(self.total(x)) - gamma, gamma)
        _, scale = statistics(norm, self.total(x))
        halves = (half if is_rms(norm) else half - half.mean(-1, keepdim=True) for half in (x.beta, x.gamma))
        beta, gamma = (gain(norm, half / scale) for half in halves)
        bias = getattr(norm, "bias", None)
        if bias is not None:
            part = share(x.beta, x.gamma) if self.rules.bias == "share" else 0.0
            beta, gamma = beta + bias * part, gamma + bias * (1 - part)
        return Halves(beta, gamma)

    def act(self, f: Callable, xs: tuple[Halves, ...]) -> Halves:
        def of(half: str) -> Tensor:
            return f(*(getattr(x, half) for x in xs))

        both, gamma = f(*map(self.total, xs)), of("gamma")
        if self.rules.act == "rest":
            return Halves(both - gamma, gamma)
        beta, none = of("beta"), f(*(torch.zeros_like(x.beta) for x in xs))
        return Halves((both - gamma + beta - none) / 2, (both + gamma - beta + none) / 2)

    def cosine(self, head: Any, x: Halves) -> Halves:
        if self.rules.cosine == "rest":
            gamma = head(x.gamma)
            return Halves(head(self.total(x)) - gamma, gamma)
        length = self.total(x).norm(dim=-1, keepdim=True)
        texts = head.prompts.to(length).T * head.scale.to(length)
        beta, gamma = x.beta / length @ texts, x.gamma / length @ texts
        if head.bias is not None:
            bias = head.bias.to(beta)
            part = share(beta, gamma) if self.rules.bias == "share" else 0.0
            beta, gamma = beta + bias * part, gamma + bias * (1 - part)
        return Halves(beta, gamma)

    def place(self, attn: AttentionParts, q: Halves, k: Halves, layout: Layout) -> tuple[Halves, Halves]:
        def turned(x: Halves) -> Halves:
            return Halves(attn.rotate(x.beta, layout, None), attn.rotate(x.gamma, layout, None))

        return turned(q), turned(k)

    def mix(self, attn: AttentionParts, q: Halves, k: Halves, v: Halves, layout: Layout) -> Halves:
        def pattern(half: Callable[[Halves], Tensor]) -> Tensor:
            queries = self.total(q) if q.learned else half(q)
            return blocks.pattern_of(attn, blocks.scores_of(attn, queries, half(k), layout))

        whole = pattern(self.total)
        if self.rules.pattern == "total":
            beta, gamma = blocks.mix_explicit(whole, v.beta), blocks.mix_explicit(whole, v.gamma)
        elif self.rules.pattern == "source":
            beta = blocks.mix_explicit(pattern(lambda x: x.beta), v.beta)
            gamma = blocks.mix_explicit(whole, self.total(v)) - beta
        else:
            gamma = blocks.mix_explicit(pattern(lambda x: x.gamma), v.gamma)
            beta = blocks.mix_explicit(whole, self.total(v)) - gamma
        return self._cancelled(beta, gamma)

    def each(self, f: Callable[[Tensor], Tensor], x: Halves) -> Halves:
        return Halves(f(x.beta), f(x.gamma))

    def _cancelled(self, beta: Tensor, gamma: Tensor, *, mlp: bool = False) -> Halves:
        if self.rules.cancel is False or (self.rules.cancel == "mlp" and not mlp):
            return Halves(beta, gamma)
        return Halves(*cancelled(beta, gamma))


@torch.no_grad()
def plain_halves(
    model: Any,
    inputs: Tensor,
    source: Source,
    rules: Rules,
    *,
    values: Callable[[str], Tensor | None],
    sites: Any,
    direct: bool = False,
) -> dict[str, Halves]:
    """Both halves at sites, for one source.

    Args:
        model: a wrapped model.
        inputs: pixels (token ids for text).
        source: whose part beta is; its tokens, where they differ from image to image, are those of these images.
        rules: the rules.
        values: site -> what gamma is where the source sits; None for zero.
        sites: names of sites.
        direct: see `circuits.contextual.walk`.
    """
    from circuits.contextual.passes import picker

    inputs = model.inputs(inputs)
    ops = Plain(rules, source, values, direct=direct, sites=frozenset(sites))
    stream = model.parts.embed(inputs)
    x = ops.at("hook_embed", Halves(torch.zeros_like(stream), stream))
    layout = model._layout(inputs, 0, None)
    walk(model.parts, ops, x, start=0, layout=layout, pick=picker(model.parts, inputs), stop=None)
    return ops.seen
