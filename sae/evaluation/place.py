"""Which numbers of a site a dictionary is about: all tokens or some, all heads or one. Taken out, and put back.

A dictionary sees rows `[row d]`; a site has axes. For a site with heads (`attn.hook_z`, `[image token head d_head]`)
the width says what a row is:

* `head * d_head`: all heads of a token side by side, head after head, as `mechvis.harvest` writes them;
* `d_head`: one head of one token; of all heads, or of the one that is named.

What is not selected is never touched: evaluating one head by ablating all of them (SAELens #163), or unflattening in
another order (SAELens #164, #165, #695) gives plausible numbers about something else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, OutOfRange, RefusedMethod, ShapeMismatch, unknown

TOKENS = ("all", "cls", "registers", "prefix", "patches")


@dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """Part of a site; made by :func:`place_of`."""

    site: str
    """Canonical name."""
    n_heads: int
    """Heads of the site; 0: it has none."""
    per_head: bool
    """Is a head of a token a row of its own?"""
    head: int | None
    """The only head; None: all."""
    has_tokens: bool
    """Has the site a token axis?"""
    tokens: str | tuple[int, ...]
    """Which tokens."""
    prefix: tuple[str, ...]
    """Names of the tokens before the patches."""

    def indices(self, n_tokens: int) -> list[int]:
        """Positions of the tokens, ascending.

        Raises:
            BadData: the model has no such token.
            OutOfRange: a position that does not exist.
        """
        n_prefix = len(self.prefix)
        if isinstance(self.tokens, tuple):
            if bad := [t for t in self.tokens if not -n_tokens <= t < n_tokens]:
                raise OutOfRange(f"token {bad[0]} does not exist at {self.site}; there are {n_tokens}.")
            return sorted({t % n_tokens for t in self.tokens})
        found = {
            "all": range(n_tokens),
            "patches": range(n_prefix, n_tokens),
            "prefix": range(n_prefix),
            "cls": [i for i, name in enumerate(self.prefix) if name.startswith("cls")],
            "registers": [i for i, name in enumerate(self.prefix) if name.startswith("register")],
        }[self.tokens]
        if not len(found):
            raise BadData(f"tokens={self.tokens!r}: this model has none; its prefix is {list(self.prefix)}.")
        return list(found)

    def types(self, n_tokens: int) -> list[str]:
        """Type of the token of each row that is taken, in order: cls, register, ..., patch."""
        names = [name.rstrip("0123456789") for name in self.prefix]
        tokens = self.indices(n_tokens) if self.has_tokens else [len(names)]
        found = [names[t] if t < len(names) else "patch" for t in tokens] if self.has_tokens else ["pooled"]
        times = self.n_heads if self.per_head and self.head is None else 1
        return [name for name in found for _ in range(times)]

    def take(self, activation: Float[Tensor, "image ..."]) -> Float[Tensor, "image token d"]:
        """Rows of each image: tokens (times heads, where a head is a row; heads of a token are neighbours)."""
        x = activation if self.has_tokens else activation[:, None]
        x = x[:, self.indices(x.shape[1])] if self.has_tokens and self.tokens != "all" else x
        if not self.n_heads:
            return x
        if self.head is not None:
            return x[:, :, self.head]
        pattern = "(token head) d_head" if self.per_head else "token (head d_head)"
        return rearrange(x, f"image token head d_head -> image {pattern}", head=self.n_heads)

    def put(self, activation: Float[Tensor, "image ..."], rows: Float[Tensor, "image token d"]) -> Tensor:
        """A copy of the activation in which these rows stand where they were taken from."""
        x = (activation if self.has_tokens else activation[:, None]).clone()
        rows = rows.to(x)
        at = slice(None) if self.tokens == "all" or not self.has_tokens else self.indices(x.shape[1])
        if self.n_heads and self.head is not None:
            x[:, at, self.head] = rows
        elif self.n_heads:
            pattern = "(token head) d_head" if self.per_head else "token (head d_head)"
            x[:, at] = rearrange(rows, f"image {pattern} -> image token head d_head", head=self.n_heads)
        else:
            x[:, at] = rows
        return x if self.has_tokens else x[:, 0]


def place_of(
    model: Any, site: str, width: int, *, head: int | None = None, tokens: str | Sequence[int] = "all"
) -> Place:
    """The part of a site that a dictionary of this width is about.

    Args:
        model: a wrapped model.
        site: name of the site.
        width: of the dictionary's rows there.
        head: the only head, where a row is one head.
        tokens: all, cls, registers, prefix, patches, or positions.

    Raises:
        UnknownSite: no such site.
        ShapeMismatch: the width does not fit.
        OutOfRange: no such head.
        BadData, UnknownName: a selection that this site does not have.
        RefusedMethod: a site whose rows are no vectors (attention patterns).
    """
    info = model.graph[site]
    sizes = dict(zip(info.axes, info.sizes, strict=True))
    if "key" in sizes:
        raise RefusedMethod(f"{info.name} holds attention weights; a dictionary is about vectors.")
    if isinstance(tokens, str) and tokens not in TOKENS:
        raise unknown("tokens", tokens, TOKENS)
    chosen = tokens if isinstance(tokens, str) else tuple(int(t) for t in tokens)
    if chosen == ():
        raise BadData("tokens=[] selects nothing; leave it out to take all.")
    has_tokens = info.token_axis is not None
    if not has_tokens and chosen != "all":
        raise BadData(f"{info.name} has no token axis, so tokens={tokens!r} means nothing there.")
    n_heads = sizes.get("head") or 0
    last = sizes[info.axes[-1]]
    if head is not None and not n_heads:
        raise BadData(f"{info.name} has no heads, so head={head} means nothing there.")
    if head is not None and not -n_heads <= head < n_heads:
        raise OutOfRange(f"head {head} does not exist at {info.name}, which has {n_heads}.")
    fits = [last] if not n_heads or head is not None else [n_heads * last, last]
    if last is not None and width not in fits:
        told = " or ".join(map(str, fits))
        raise ShapeMismatch(f"this dictionary has width {width} at {info.name}, where rows are {told} wide.")
    return Place(
        site=info.name,
        n_heads=n_heads,
        per_head=bool(n_heads) and width == last,
        head=None if head is None else head % n_heads,
        has_tokens=has_tokens,
        tokens=chosen,
        prefix=tuple(model.parts.prefix),
    )


def one_per_image(values: Float[Tensor, "image token d"], pool: str = "mean") -> Float[Tensor, "image d"]:
    """One vector per image: the mean over its rows, or the largest value of each column.

    Raises:
        UnknownName: neither mean nor max.
    """
    if pool not in ("mean", "max"):
        raise unknown("pool", pool, ("mean", "max"))
    return values.mean(1) if pool == "mean" else torch.amax(values, 1)
