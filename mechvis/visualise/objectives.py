"""What a picture should raise: a direction at a site, a unit, a head along a direction, a latent, a logit.

An objective is a value: the sites that it reads and a function from a run to one number per picture. For a latent it is
the encoder's direction *before* the activation function: a latent that is off has no gradient.

Source: methods2.md 19.2 and 19.3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, unknown

Tokens = Literal["patches", "prefix", "all"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """What a picture should raise."""

    title: str
    """In words."""
    sites: tuple[str, ...] = ()
    """Sites that are captured; none: the output is read."""
    read: Callable[[Any, Any], Float[Tensor, " row"]]
    """(run, parts) -> one number per row."""
    states: Callable[[Any, Any], Float[Tensor, "row token d"]] | None = None
    """(run, parts) -> the vectors that the direction is compared with; for control directions."""
    vector: Float[Tensor, " d"] | None = None
    """The direction, where there is one."""
    among: Callable[[Any, Any], Float[Tensor, "row peer"]] | None = None
    """(run, parts) -> the same number of every peer (all units of the site, all classes): for specificity."""
    index: int | None = None
    """Which of the peers this one is."""


def direction(site: str, vector: Tensor, *, tokens: Tokens = "patches", cosine: bool = True) -> Objective:
    """Mean over tokens of `cos(h, v) * (h . v)`, or of `h . v` alone.

    Args:
        site: with axes row, token, d (heads side by side count as one d).
        vector: `[d]`.
        tokens: which tokens are averaged.
        cosine: weigh by the cosine, which keeps a picture from being large in every direction.

    Raises:
        NotFinite, ShapeMismatch, UnknownName, BadData: not a direction.

    Example:
        >>> direction("blocks.3.hook_resid_post", torch.ones(128)).title
        'direction at blocks.3.hook_resid_post'
    """
    vector = _vector(vector)
    _tokens(tokens)

    def states(run: Any, parts: Any) -> Tensor:
        found = run.cache[site]
        if found.ndim == 2:
            found = found[:, None]
        found = found.flatten(2)
        if found.shape[2] != len(vector):
            raise ShapeMismatch(f"the direction has {len(vector)} entries, {site} has {found.shape[2]}.")
        return _taken(found, tokens, parts)

    def read(run: Any, parts: Any) -> Tensor:
        found = states(run, parts)
        along = found @ vector.to(found)
        if cosine:
            along = along * torch.cosine_similarity(found, vector.to(found), dim=-1)
        return along.mean(1)

    return Objective(title=f"direction at {site}", sites=(site,), read=read, states=states, vector=vector)


def unit(site: str, index: int, *, tokens: Tokens = "patches") -> Objective:
    """Mean over tokens of one unit (neurons: take `mlp.hook_pre`, before the activation function).

    Raises:
        OutOfRange, UnknownName.
    """
    _tokens(tokens)

    def among(run: Any, parts: Any) -> Tensor:
        found = run.cache[site]
        found = (found if found.ndim > 2 else found[:, None]).flatten(2)
        if not 0 <= index < found.shape[2]:
            raise OutOfRange(f"unit {index}: {site} has {found.shape[2]} (0 to {found.shape[2] - 1}).")
        return _taken(found, tokens, parts).mean(1)

    return Objective(
        title=f"unit {index} of {site}",
        sites=(site,),
        read=lambda run, parts: among(run, parts)[:, index],
        among=among,
        index=index,
    )


def head(model: Any, layer: int, index: int, vector: Tensor, *, tokens: Tokens = "prefix") -> Objective:
    """What a head writes along a direction of the stream (a text's or a class's), mean over tokens.

    Args:
        model: the wrapped model (its `W_O` is read).
        layer: block.
        index: head of the block.
        vector: `[d_model]`; a text direction of CLIP has to be taken through the projection first.
        tokens: where the head writes.

    Raises:
        OutOfRange, ShapeMismatch, NotFinite, UnknownName, BadData.
    """
    vector = _vector(vector)
    _tokens(tokens)
    layer = model._layer(layer, "layer")
    if not 0 <= layer < len(model.blocks):
        raise OutOfRange(f"layer {layer}: this model has layers 0 to {len(model.blocks) - 1}.")
    weight = model.blocks[layer].attn.W_O.detach()
    if not 0 <= index < len(weight):
        raise OutOfRange(f"head {index}: block {layer} has {len(weight)} (0 to {len(weight) - 1}).")
    if weight.shape[2] != len(vector):
        raise ShapeMismatch(f"the direction has {len(vector)} entries, the stream {weight.shape[2]}.")
    site = f"blocks.{layer}.attn.hook_z"
    along = einsum(weight, vector.to(weight), "head e d, d -> head e")

    def among(run: Any, parts: Any) -> Tensor:
        z = run.cache[site]
        return _taken(einsum(z, along.to(z), "row token head e, head e -> row token head"), tokens, parts).mean(1)

    return Objective(
        title=f"head {layer}.{index} along a direction",
        sites=(site,),
        read=lambda run, parts: among(run, parts)[:, index],
        among=among,
        index=index,
    )


def latent(
    site: str,
    encoder: Float[Tensor, "d latent"] | Float[Tensor, " d"],
    index: int = 0,
    *,
    bias: Tensor | float = 0.0,
    centre: Tensor | None = None,
    tokens: Tokens = "patches",
) -> Objective:
    """A dictionary's latent before its activation function: `w . (h - centre) + bias`, mean over tokens.

    Args:
        site: where the dictionary reads.
        encoder: the encoder `[d latent]` (then the other latents are the peers), or the latent's own direction `[d]`.
        index: which latent.
        bias: of the encoder, one number or `[latent]`.
        centre: what is taken off first (the decoder's bias in most dictionaries) `[d]`.
        tokens: which tokens are averaged.

    Raises:
        ShapeMismatch, NotFinite, OutOfRange, UnknownName.
    """
    _tokens(tokens)
    weight = torch.as_tensor(encoder).detach()
    weight = weight[:, None] if weight.ndim == 1 else weight
    if weight.ndim != 2 or not bool(torch.isfinite(weight).all()):
        raise ShapeMismatch(f"an encoder is finite, [d latent] or [d]; got {list(weight.shape)}.")
    if not 0 <= index < weight.shape[1]:
        raise OutOfRange(f"latent {index}: the encoder has {weight.shape[1]} (0 to {weight.shape[1] - 1}).")

    def among(run: Any, parts: Any) -> Tensor:
        found = run.cache[site].flatten(2)
        if found.shape[2] != len(weight):
            raise ShapeMismatch(f"the encoder reads {len(weight)} numbers, {site} has {found.shape[2]}.")
        found = _taken(found, tokens, parts)
        found = found if centre is None else found - centre.to(found)
        return (found @ weight.to(found) + torch.as_tensor(bias).to(found)).mean(1)

    many = weight.shape[1] > 1
    return Objective(
        title=f"latent {index} at {site}",
        sites=(site,),
        read=lambda run, parts: among(run, parts)[:, index],
        among=among if many else None,
        index=index if many else None,
    )


def logit(model: Any, target: str | int, contrast: str | int | None = None) -> Objective:
    """The logit of a class (for a zero-shot head: of a text), or a difference of two.

    Raises:
        UnknownName, OutOfRange: no such class.
        BadData: target and contrast are the same, or the model has no head.
    """
    if model.parts.head is None:
        raise BadData("this model has no head; for CLIP take clip.classifier(texts).")
    one = int(model.class_index(target))
    other = None if contrast is None else int(model.class_index(contrast))
    if one == other:
        raise BadData("target and contrast are the same class: their difference is zero.")

    def read(run: Any, parts: Any) -> Tensor:
        return run.output[:, one] if other is None else run.output[:, one] - run.output[:, other]

    names = model.parts.class_names
    title = f"logit of {names[one] if names else one}"
    title += "" if other is None else f" minus {names[other] if names else other}"
    among = (lambda run, parts: run.output) if other is None else None
    return Objective(title=title, read=read, among=among, index=None if other is not None else one)


def _vector(given: Tensor) -> Tensor:
    vector = torch.as_tensor(given).detach()
    if vector.ndim != 1 or not len(vector):
        raise ShapeMismatch(f"a direction is [d], got {list(vector.shape)}.")
    if not bool(torch.isfinite(vector).all()):
        raise NotFinite("the direction holds NaN or Inf.")
    if not bool(vector.any()):
        raise BadData("the direction is zero everywhere.")
    return vector


def _tokens(given: str) -> None:
    if given not in get_args(Tokens):
        raise unknown("tokens", given, get_args(Tokens))


def _taken(values: Tensor, tokens: str, parts: Any) -> Tensor:
    """The tokens that count; a site with one token has that one."""
    n_prefix = len(parts.prefix)
    if values.shape[1] == 1 or tokens == "all":
        return values
    if tokens == "prefix" and not n_prefix:
        raise BadData("this model has no prefix token; take tokens='patches'.")
    return values[:, n_prefix:] if tokens == "patches" else values[:, :n_prefix]
