"""Targets: components whose activation is split, and two numbers that say how much of it stems from a source.

* `ratio` = `mean|beta_t| / (mean|beta_t| + mean|gamma_t|)`, over tokens and units of the target (**C**): how much, not
  in which direction. 0 where the target is silent.
* `projected` = `beta_t . t / |t|^2` (**X**): signed; betas and gammas add up to 1, so it says whether the source makes
  the target what it is, or works against it.

Names: `L1H2` (its `z`), `L1H2.q`, `.k`, `.v`; `L1MLP` (what it writes), `L1MLP.pre`, `.post`; `L1.resid_pre`,
`.resid_mid`, `.resid_post`; `pool H0`; or any site that has a pair, as a whole.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.contextual.passes import ALIASES, splittable
from circuits.contextual.sources import Source
from mechvis.edits import TOKEN_NAMES
from mechvis.errors import BadData, OutOfRange, unknown

WORDS = ("heads", "mlp_out", "pool_heads")
"""Words that stand for all targets of a kind."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One target. Made by :func:`targets_of`."""

    name: str
    """How it is called in results, with the place: `L1H2.z`."""
    node: str
    """The component: `L1H2`."""
    at: str
    """Which of its activations: `z`, `q`, `out`, ..."""
    site: str
    """Where that is."""
    head: int | None = None
    """Head at the site; None: the whole site."""


def targets_of(model: Any, targets: str | Target | Sequence[str | Target], *, at: str = "z") -> list[Target]:
    """The targets that are asked for.

    Args:
        model: a wrapped model.
        targets: names (see above), sites or targets; or a word: `heads`, `mlp_out`, `pool_heads`.
        at: which activation of a head is meant where a name does not say it: `z`, `q`, `k` or `v`.

    Raises:
        UnknownName, UnknownSite, OutOfRange: there is no such component.
        BadData: none, one listed twice, or a site without a pair.

    Example:
        >>> targets_of(model, ["L1H2", "L1H3.q"])[0].site                                          # doctest: +SKIP
        'blocks.1.attn.hook_z'
    """
    if at not in ("z", "q", "k", "v"):
        raise unknown("activation of a head", at, ("z", "q", "k", "v"))
    if isinstance(targets, str) and targets in WORDS:
        listed: Sequence[Any] = _names_of(model, targets)
    else:
        listed = [targets] if isinstance(targets, str | Target) else list(targets)
    found = [entry if isinstance(entry, Target) else _of_name(model, entry, at) for entry in listed]
    if not found:
        raise BadData("no targets given.")
    names = [target.name for target in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadData(f"the target {twice[0]!r} is listed twice.")
    return found


def _names_of(model: Any, word: str) -> list[str]:
    blocks, pooling = model.parts.blocks, model.parts.pooling
    if word == "heads":
        return [f"L{layer}H{head}" for layer, block in enumerate(blocks) for head in range(block.attn.n_heads)]
    if word == "mlp_out":
        return [f"L{layer}MLP" for layer in range(len(blocks))]
    if pooling is None:
        raise BadData("this model has no attention pooling, so it has no targets 'pool_heads'.")
    return [f"pool H{head}" for head in range(pooling.attn.n_heads)]


def _of_name(model: Any, name: Any, at: str) -> Target:
    if not isinstance(name, str):
        raise BadData(f"a target is a name such as 'L1H2', 'L1H2.q', 'L1MLP', or a site; got {name!r}.")
    if found := re.fullmatch(r"L(\d+)H(\d+)(?:\.([qkvz]))?", name):
        layer, head = _layer(model, name, found[1]), int(found[2])
        _head(name, head, model.parts.blocks[layer].attn.n_heads)
        at = found[3] or at
        node = f"L{layer}H{head}"
        return Target(name=f"{node}.{at}", node=node, at=at, site=f"blocks.{layer}.attn.hook_{at}", head=head)
    if found := re.fullmatch(r"pool H(\d+)(?:\.([kvz]))?", name):
        if model.parts.pooling is None:
            raise BadData(f"target {name!r}: this model has no attention pooling.")
        _head(name, int(found[1]), model.parts.pooling.attn.n_heads)
        at = found[2] or "z"
        node = f"pool H{found[1]}"
        return Target(name=f"{node}.{at}", node=node, at=at, site=f"pool.attn.hook_{at}", head=int(found[1]))
    if found := re.fullmatch(r"L(\d+)MLP(?:\.(pre|post|out))?", name):
        layer, at = _layer(model, name, found[1]), found[2] or "out"
        site = {"pre": "mlp.hook_pre", "post": "mlp.hook_post", "out": "hook_mlp_out"}[at]
        return Target(name=f"L{layer}MLP.{at}", node=f"L{layer}MLP", at=at, site=f"blocks.{layer}.{site}")
    if found := re.fullmatch(r"L(\d+)\.(resid_pre|resid_mid|resid_post)", name):
        layer = _layer(model, name, found[1])
        return Target(name=name, node=name, at=found[2], site=f"blocks.{layer}.hook_{found[2]}")
    (site,) = splittable(model, [model.graph.resolve(name)])
    site = ALIASES.get(site, site)
    return Target(name=site, node=site, at="site", site=site)


def _layer(model: Any, name: str, layer: str) -> int:
    if int(layer) >= len(model.parts.blocks):
        raise OutOfRange(f"target {name!r}: this model has layers 0 to {len(model.parts.blocks) - 1}.")
    return int(layer)


def _head(name: str, head: int, n_heads: int) -> None:
    if head >= n_heads:
        raise OutOfRange(f"target {name!r}: there are heads 0 to {n_heads - 1}.")


def before(model: Any, source: Source, target: Target) -> bool:
    """Can the source reach the target: does any of its places come before it in the forward pass?"""
    order = model.graph.names
    return min(order.index(piece.site) for piece in source.pieces) < order.index(target.site)


def token_mask(prefix: Sequence[str], n_tokens: int, tokens: str | Sequence[int]) -> Bool[Tensor, " token"]:
    """Tokens at which targets are looked at, as a mask.

    Args:
        prefix: names of the tokens before the patches.
        n_tokens: tokens of the stream.
        tokens: `cls`, `registers`, `prefix`, `patches`, or indices.

    Raises:
        BadData, UnknownName, OutOfRange: no such tokens.

    Example:
        >>> token_mask(("cls",), 4, "patches").tolist()
        [False, True, True, True]
    """
    mask = torch.zeros(n_tokens, dtype=torch.bool)
    if isinstance(tokens, str):
        if tokens not in TOKEN_NAMES:
            raise unknown("token group", tokens, TOKEN_NAMES)
        if tokens == "patches":
            mask[len(prefix) :] = True
        else:
            start = {"cls": "cls", "registers": "register", "prefix": ""}[tokens]
            for i, word in enumerate(prefix):
                mask[i] = word.startswith(start)
    else:
        for token in tokens:
            if not isinstance(token, int) or not 0 <= token < n_tokens:
                raise OutOfRange(f"tokens={tokens!r}: there are tokens 0 to {n_tokens - 1}.")
            mask[token] = True
    if not mask.any():
        raise BadData(f"tokens={tokens!r} selects no token; this model's prefix is {list(prefix)}.")
    return mask


def measure(
    total: Float[Tensor, "image *rest"],
    beta: Float[Tensor, "source image *rest"],
    *,
    by_head: bool,
    tokens: Bool[Tensor, " token"] | None = None,
) -> tuple[Float[Tensor, "source image head"], Float[Tensor, "source image head"]]:
    """`ratio` and `projected` of one site, per head, or of everything at it as if it were one head.

    Args:
        total: the activation.
        beta: the sources' parts.
        by_head: the last axis but one is that of heads, and each is a target of its own.
        tokens: look at these tokens (the second axis) only.
    """
    total, beta = total.double(), beta.double()
    if tokens is not None:
        total, beta = total[:, tokens], beta[:, :, tokens]
    if not by_head:
        total, beta = total.flatten(1)[:, None], beta.flatten(2)[:, :, None]
    total = rearrange(total, "i ... h d -> i h (... d)")
    beta = rearrange(beta, "s i ... h d -> s i h (... d)")
    mine, others = (reduce(half.abs(), "s i h d -> s i h", "mean") for half in (beta, total - beta))
    square = reduce(total * total, "i h d -> i h", "sum")
    return _over(mine, mine + others), _over(reduce(beta * total, "s i h d -> s i h", "sum"), square)


def _over(a: Tensor, b: Tensor) -> Tensor:
    """`a / b`, and 0 where b is 0."""
    return torch.where(b > 0, a / torch.where(b > 0, b, torch.ones_like(b)), torch.zeros_like(a))
