"""Many sources at once: what operations do to `(total, beta)`, with gamma as the difference.

The total of an image is the same for all sources, so it is computed once per image, and only beta once per source and
image: a pass costs one forward per source, not two. Rows are `[source image ...]`; sources of later blocks join when
the walk reaches them, so everything before is skipped for them. The plain twin is `circuits.contextual.plain`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from circuits.contextual.affine import Shape, together
from circuits.contextual.rules import Rules
from circuits.contextual.sources import Source
from mechvis import block as plain
from mechvis.models.parts import AttentionParts, Layout
from mechvis.norms import gain, is_rms, statistics

Beta = Float[Tensor, "source image *rest"]


class Pair(NamedTuple):
    """An activation and the part of it that stems from each source."""

    total: Float[Tensor, "image *rest"]
    beta: Beta | None
    """None: no source has a part in it."""

    @property
    def gamma(self) -> Beta:
        """What does not stem from the source."""
        return self.total[None] if self.beta is None else self.total - self.beta


See = Callable[[str, Tensor, Beta], None]
"""(site, total, beta of the sources that have begun)."""


class Batched:
    """Operations on `Pair`s of several sources; what each is, is said at `circuits.contextual.walk.Ops`.

    Args:
        rules: what to do where there is a choice.
        sources: sorted by layer.
        values: site -> what gamma is where a source sits, `[image or 1, ...]`; None for zero.
        watch: sites to look at.
        see: gets what is there.
        direct: see `circuits.contextual.walk`.
        known: what maps were found to be in earlier passes; filled here.
        images: positions of the images of this pass, for sources whose tokens differ from image to image.
    """

    def __init__(
        self,
        rules: Rules,
        sources: Sequence[Source],
        *,
        values: Callable[[str], Tensor | None],
        watch: frozenset[str],
        see: See,
        direct: bool,
        known: dict[str, Any],
        images: Sequence[int],
    ):
        self.rules, self.sources, self.values, self.direct, self.known = rules, sources, values, direct, known
        self.watch, self.see, self.images = watch, see, images
        self.sites = {piece.site for source in sources for piece in source.pieces}
        self.begun = 0

    # sites

    def total(self, x: Pair) -> Tensor:
        return x.total

    def enter(self, layer: int, x: Pair) -> Pair:
        self.begun = sum(source.layer <= layer for source in self.sources)
        have = 0 if x.beta is None else len(x.beta)
        if self.begun == have:
            return x
        more = x.total.new_zeros(self.begun - have, *x.total.shape)
        return Pair(x.total, more if x.beta is None else torch.cat([x.beta, more]))

    def at(self, site: str, x: Pair) -> Pair:
        x = self.put(site, x)
        if site in self.watch:
            self.see(site, x.total, self._filled(x))
        return x

    def put(self, site: str, x: Pair) -> Pair:
        if site not in self.sites:
            return x
        beta, value = self._filled(x).clone(), self.values(site)
        new = x.total if value is None else x.total - value
        for row, source in enumerate(self.sources[: len(beta)]):
            for piece in source.pieces:
                if piece.site == site:
                    beta[row] = torch.where(piece.where(x.total, self.images), new, beta[row])
        return Pair(x.total, beta)

    def wants(self, site: str) -> bool:
        return site in self.watch

    def involved(self, start: str) -> bool:
        return self.sourced(start) or any(site.startswith(start) for site in self.watch)

    def sourced(self, start: str) -> bool:
        return any(site.startswith(start) for site in self.sites)

    def _filled(self, x: Pair) -> Beta:
        """Beta, also where no source has a part."""
        if x.beta is not None:
            return x.beta
        return x.total.new_zeros(self.begun, *x.total.shape)

    # operations

    def rest(self, total: Tensor) -> Pair:
        return Pair(total, None)

    def add(self, x: Pair, y: Pair, *, block_output: bool = False) -> Pair:
        total = x.total + y.total
        if x.beta is None or y.beta is None:
            beta = y.beta if x.beta is None else x.beta
        else:
            beta = x.beta + y.beta
        return Pair(total, self._cancelled(total, beta, mlp=block_output))

    def linear(
        self, f: Callable, x: Pair, shape: Shape, need: tuple[bool, ...], *, mlp: bool = False
    ) -> tuple[Pair, ...]:
        totals = together(f(x.total))
        if x.beta is None or not any(need):
            return tuple(Pair(total, None) for total in totals)
        found = []
        for total, zero, beta, needed in zip(totals, shape.zero, together(_rows(f, x.beta)), need, strict=True):
            if needed:
                beta = beta - zero
                if self.rules.bias == "share":
                    beta = beta + zero * share(beta, remainder(total - zero, beta))
                found.append(Pair(total, self._cancelled(total, beta, mlp=mlp)))
            else:
                found.append(Pair(total, None))
        return tuple(found)

    def difference(self, f: Callable, x: Pair, need: tuple[bool, ...]) -> tuple[Pair, ...]:
        totals = together(f(x.total))
        if x.beta is None or not any(need):
            return tuple(Pair(total, None) for total in totals)
        gammas = together(_rows(f, x.gamma))
        return tuple(
            Pair(total, total - gamma if needed else None)
            for total, gamma, needed in zip(totals, gammas, need, strict=True)
        )

    def norm(self, norm: nn.Module, x: Pair) -> Pair:
        total = norm(x.total)
        if x.beta is None:
            return Pair(total, None)
        if self.rules.ln == "rest":
            return Pair(total, total - _rows(norm, x.gamma))
        _, scale = statistics(norm, x.total)
        centred = x.beta if is_rms(norm) else x.beta - x.beta.mean(-1, keepdim=True)
        beta = gain(norm, centred / scale)
        bias = getattr(norm, "bias", None)
        if bias is not None and self.rules.bias == "share":
            beta = beta + bias * share(x.beta, remainder(x.total, x.beta))
        return Pair(total, beta)

    def act(self, f: Callable, xs: tuple[Pair, ...]) -> Pair:
        total = f(*(x.total for x in xs))
        if all(x.beta is None for x in xs):
            return Pair(total, None)
        beta = total - f(*(x.gamma for x in xs))
        if self.rules.act == "shapley":
            alone = f(*(self._filled(x) for x in xs)) - f(*(torch.zeros_like(x.total[:1]) for x in xs))
            beta = (beta + alone) / 2
        return Pair(total, beta)

    def cosine(self, head: Any, x: Pair) -> Pair:
        total = head(x.total)
        if x.beta is None:
            return Pair(total, None)
        if self.rules.cosine == "rest":
            return Pair(total, total - _rows(head, x.gamma))
        unit = x.beta / x.total.norm(dim=-1, keepdim=True)
        beta = unit @ head.prompts.to(unit).T * head.scale.to(unit)
        if head.bias is not None and self.rules.bias == "share":
            bias = head.bias.to(unit)
            beta = beta + bias * share(beta, remainder(total - bias, beta))
        return Pair(total, beta)

    def place(self, attn: AttentionParts, q: Pair, k: Pair, layout: Layout) -> tuple[Pair, Pair]:
        def turned(x: Pair) -> Pair:
            beta = None if x.beta is None else _rows(lambda t: attn.rotate(t, layout, None), x.beta)
            return Pair(attn.rotate(x.total, layout, None), beta)

        return turned(q), turned(k)

    def mix(self, attn: AttentionParts, q: Pair, k: Pair, v: Pair, layout: Layout) -> Pair:
        pattern = plain.pattern_of(attn, plain.scores_of(attn, q.total, k.total, layout))
        total = plain.mix_explicit(pattern, v.total)
        if v.beta is None and (k.beta is None or self.rules.pattern != "rest"):
            return Pair(total, None)
        if self.rules.pattern == "total":
            values = rearrange(v.beta, "s i k h e -> i h k (s e)")
            beta = rearrange(pattern @ values, "i h q (s e) -> s i q h e", s=len(v.beta))
        else:
            part = "beta" if self.rules.pattern == "source" else "gamma"
            n = len(v.beta if v.beta is not None else k.beta)
            # Learned queries (of an attention pooling) are weights, of no source: both patterns are made with them.
            mine = [x.total.expand(n, *x.total.shape) if x.beta is None else getattr(x, part) for x in (q, k, v)]
            beta = plain.mix(attn, *(x.flatten(0, 1) for x in mine), layout).unflatten(0, (n, -1))
            beta = beta if part == "beta" else total - beta
        return Pair(total, self._cancelled(total, beta))

    def each(self, f: Callable[[Tensor], Tensor], x: Pair) -> Pair:
        return Pair(f(x.total), None if x.beta is None else f(x.beta))

    def _cancelled(self, total: Tensor, beta: Beta | None, *, mlp: bool = False) -> Beta | None:
        if beta is None or self.rules.cancel is False or (self.rules.cancel == "mlp" and not mlp):
            return beta
        return cancelled(beta, total - beta)[0]


def share(beta: Tensor, gamma: Tensor) -> Tensor:
    """`|beta| / (|beta| + |gamma|)`, entry by entry; 0 where both are 0, so that a source of nothing has no part.

    Example:
        >>> share(torch.tensor([1.0, 0.0]), torch.tensor([-3.0, 0.0]))
        tensor([0.2500, 0.0000])
    """
    size = beta.abs()
    return size / (size + gamma.abs()).clamp(min=torch.finfo(beta.dtype).tiny)


def remainder(total: Tensor, beta: Tensor) -> Tensor:
    """`total - beta`, and 0 where that is rounding: of a source that takes everything nothing is left, and a share of
    what is not there would otherwise grow from layer to layer."""
    left = total - beta
    rounding = min(256 * torch.finfo(total.dtype).eps, 1e-4) * total.abs().amax(-1, keepdim=True)
    return torch.where(left.abs() <= rounding, torch.zeros_like(left), left)


def cancelled(beta: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Where the signs differ the smaller of the two becomes 0, the larger their sum.

    Example:
        >>> cancelled(torch.tensor([1.0, 2.0, -3.0]), torch.tensor([2.0, -5.0, 1.0]))
        (tensor([ 1.,  0., -2.]), tensor([ 2., -3.,  0.]))
    """
    both, clash, larger = beta + gamma, beta * gamma < 0, beta.abs() >= gamma.abs()
    none = torch.zeros_like(both)
    return (
        torch.where(clash, torch.where(larger, both, none), beta),
        torch.where(clash, torch.where(larger, none, both), gamma),
    )


def _rows(f: Callable, x: Tensor) -> Any:
    """A part of the model on rows of several sources."""
    n = x.shape[:2]
    found = f(x.flatten(0, 1))
    if isinstance(found, Tensor):
        return found.unflatten(0, n)
    return tuple(part.unflatten(0, n) for part in found)
