"""One batch of images as a sum: what every head, every MLP and every bias adds to the output.

1. One forward pass captures what the chosen layers' heads hold (`hook_z`), what their MLPs write, the stream before the
   first of them, and the stream after the last block.
2. The read-out is frozen at these images (:mod:`mechvis.decompose.readout`).
3. Tokens are mixed first, weights come after: `z` of a head is pooled to `[image slot d_head]` and only then multiplied
   by `W_O`, the norm's gain, the projection and the head's weights, folded into one matrix per head.
4. The sum of the terms is compared with the model's own output; a difference is an error.

The conventions for what belongs to no component (methods.md 2.1): `linear` (default, **X**) takes every term's own mean
off and keeps biases as terms of their own; `even_split` (**C**) spreads the norm's mean and bias evenly over the
`2 n_layers + 1` writes (an attention's share evenly over its heads), and the output bias evenly over the heads. The sum
is the same; a single head differs by some percent.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from mechvis.decompose.even_split import spread
from mechvis.decompose.readout import Frozen, Of, ReadOut, centre, freeze, freeze_through, read_out
from mechvis.errors import BadData, FailedCheck, OutOfRange, RefusedMethod, unknown
from mechvis.norms import statistics

Convention = Literal["linear", "even_split"]
CONVENTIONS = ("linear", "even_split")
Pooling = Literal["heads", "through"]
POOLINGS = ("heads", "through")

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Largest difference between the sum of the terms and the output, relative to the output's largest entry, before it is
an error. What is reached is about 1e-15 and 1e-6."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Terms:
    """What everything adds to the output of some images."""

    values: Float[Tensor, "image term d_out"]
    """The terms; they add up to `whole`."""
    names: tuple[str, ...]
    """Name of each term: `embed` or `before L2`, `L2H0`, `L2 bias`, `L2MLP`, `pool H0`, `ln_final bias` ..."""
    kinds: tuple[str, ...]
    """`embed`, `head`, `mlp` or `bias`."""
    layers: tuple[int | None, ...]
    """Layer of each term; heads of an attention pooling have the number of blocks."""
    whole: Float[Tensor, "image d_out"]
    """The model's own output."""
    of: str
    """What the output is: `pooled`, `embedding` or `logits`."""
    error: float
    """Largest difference between sum and output, relative to the largest entry of the output."""
    per_token: Float[Tensor, "image head token d_out"] | None = None
    """Each head's term split by the token it read from (prefix tokens first); heads in the order of `heads`."""

    @property
    def heads(self) -> dict[tuple[int, int], int]:
        """(layer, head) -> place of its term."""
        found: dict[tuple[int, int], int] = {}
        for place, (kind, layer) in enumerate(zip(self.kinds, self.layers, strict=True)):
            if kind == "head":
                found[layer, sum(key[0] == layer for key in found)] = place
        return found

    def index(self, name: str) -> int:
        """Place of a term.

        Raises:
            UnknownName: names the nearest.
        """
        if name not in self.names:
            raise unknown("term", name, self.names)
        return self.names.index(name)

    def __getitem__(self, name: str) -> Float[Tensor, "image d_out"]:
        return self.values[:, self.index(name)]

    def __repr__(self) -> str:
        n, terms, width = self.values.shape
        return f"Terms({n} images, {terms} terms of {width} {self.of}, relative error {self.error:.1e})"


def terms(
    model: Any,
    images: Any,
    *,
    layers: int | Iterable[int] | None = None,
    of: Of = "output",
    convention: Convention = "linear",
    pooling: Pooling = "heads",
    tokens: bool = False,
    fixed: "Fixed | None" = None,
) -> Terms:
    """Split the output of one batch into what each part of the model writes.

    Args:
        model: a wrapped model (for CLIP: `clip.vision`, `clip.text`, or a zero-shot classifier).
        images: pixels `[image channel height width]` or an `ImageSet`; token ids of a text tower. One batch: all of it
            goes through the model at once. See :func:`stream` for more.
        layers: layers whose heads and MLPs are terms of their own; a negative number means that many last ones (-4).
            Everything before them is one term. None: all.
        of: `output`, `pooled`, `embedding` or `logits`.
        convention: see the module.
        pooling: of a model with attention pooling: its `heads`, or `through` them the layers of the tower.
        tokens: also split every head by the token it read from: `[image head token d_out]`, which is large.
        fixed: what does not change from batch to batch, from :func:`fix`; made here if it is not given.

    Raises:
        UnsupportedModel, RefusedMethod: see :func:`mechvis.decompose.readout.read_out`.
        OutOfRange: a layer that is none.
        UnknownName: no such read-out, convention or pooling.
        FailedCheck: the terms do not add up to the output.

    Example:
        >>> found = terms(model, pixels, layers=-2)                                    # doctest: +SKIP
        >>> found["L3H1"].shape, found.error                                           # doctest: +SKIP
        (torch.Size([8, 8]), 4e-07)
    """
    fixed = fixed or fix(model, layers=layers, of=of, convention=convention, pooling=pooling, tokens=tokens)
    with torch.no_grad():
        return _terms(fixed, model.inputs(images))


@dataclass(frozen=True, kw_only=True, eq=False)
class Fixed:
    """What does not change from batch to batch."""

    model: Any
    """The wrapped model."""
    layers: tuple[int, ...]
    """Layers with terms of their own, a run that ends with the last."""
    readout: ReadOut
    """The read-out."""
    convention: str
    """See the module."""
    heads_only: bool
    """The terms are the heads of an attention pooling."""
    through: bool
    """An attention pooling is read through."""
    tokens: bool
    """Heads are split by token."""
    sites: tuple[str, ...]
    """What is captured."""


def fix(
    model: Any,
    *,
    layers: int | Iterable[int] | None = None,
    of: Of = "output",
    convention: Convention = "linear",
    pooling: Pooling = "heads",
    tokens: bool = False,
) -> Fixed:
    """Check the arguments of :func:`terms` and prepare what all batches share."""
    if convention not in CONVENTIONS:
        raise unknown("convention", convention, CONVENTIONS)
    if pooling not in POOLINGS:
        raise unknown("pooling", pooling, POOLINGS)
    readout, parts = read_out(model, of), model.parts
    chosen = _layers(layers, len(parts.blocks))
    attention_pooling = parts.pooling is not None
    heads_only = attention_pooling and pooling == "heads"
    through = attention_pooling and pooling == "through"
    if through and convention == "even_split":
        raise RefusedMethod("convention='even_split' is that of models without attention pooling; use 'linear'.")
    last = len(parts.blocks) - 1
    sites = [site for site in (_length_site(model, readout), _output_site(readout)) if site]
    if heads_only:
        sites += ["pool.attn.hook_z"] + (["pool.hook_mlp_out"] if parts.pooling.mlp is not None else [])
        sites += ["pool.attn.hook_pattern", "pool.attn.hook_v"] if tokens else []
        _no_norm_inside(parts.pooling.attn, tokens)
    else:
        sites += [f"blocks.{last}.hook_resid_post", f"blocks.{chosen[0]}.hook_resid_pre"]
        for layer in chosen:
            sites += [f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_mlp_out"]
            sites += [f"blocks.{layer}.attn.hook_pattern", f"blocks.{layer}.attn.hook_v"] if tokens else []
            _no_norm_inside(parts.blocks[layer].attn, tokens)
        if through:
            sites += ["pool.attn.hook_pattern"] + (["pool.hook_mlp_out"] if parts.pooling.mlp is not None else [])
    return Fixed(
        model=model,
        layers=chosen,
        readout=readout,
        convention=convention,
        heads_only=heads_only,
        through=through,
        tokens=tokens,
        sites=tuple(dict.fromkeys(sites)),
    )


def _no_norm_inside(attn: Any, tokens: bool) -> None:
    if tokens and attn.after is not None:
        raise RefusedMethod("tokens=True: this model has a norm between values and output; heads only.")


def _layers(layers: int | Iterable[int] | None, n: int) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(n))
    if isinstance(layers, int):
        if not 1 <= -layers <= n:
            raise OutOfRange(f"layers={layers}: give a negative number down to {-n} for the last ones, or a list.")
        return tuple(range(n + layers, n))
    chosen = sorted({int(layer) for layer in layers})
    if not chosen or chosen[0] < 0 or chosen[-1] >= n:
        raise OutOfRange(f"layers={chosen}: this model has layers 0 to {n - 1}.")
    if chosen != list(range(chosen[0], n)):
        raise BadData(f"layers={chosen}: the layers from one on up to the last ({n - 1}), without gaps.")
    return tuple(chosen)


def _output_site(readout: ReadOut) -> str:
    return {"logits": "hook_logits", "embedding": "hook_embedding", "pooled": "hook_pooled"}[readout.of]


def _length_site(model: Any, readout: ReadOut) -> str | None:
    if not readout.unit_length:
        return None
    return "hook_pooled" if model.parts.project is None else "hook_embedding"


def _terms(fixed: Fixed, inputs: Tensor) -> Terms:
    model, parts, readout = fixed.model, fixed.model.parts, fixed.readout
    cache = model.run(inputs, capture=list(fixed.sites)).cache
    site = _length_site(model, readout)
    length = None if site is None else cache[site].norm(dim=-1, keepdim=True)
    found = _Collected(cache)
    if fixed.heads_only:
        _pool_heads(fixed, cache, length, found)
    else:
        stream = cache[f"blocks.{len(parts.blocks) - 1}.hook_resid_post"]
        frozen = (
            freeze_through(model, readout, stream, cache["pool.attn.hook_pattern"], length)
            if fixed.through
            else freeze(model, readout, stream, inputs, length)
        )
        _stream_terms(fixed, cache, frozen, found)
        if fixed.convention == "even_split":
            spread(fixed, frozen, stream, found)
        else:
            found.bias("ln_final bias", frozen.scaled(frozen.constant))
        if fixed.through:
            _pool_rest(fixed, cache, frozen.scaled, found, _after_pooling(fixed, cache)[0])
    n_image = len(inputs)
    for name, bias in readout.biases.items():
        bias = bias.expand(n_image, -1)
        found.bias(name, bias if length is None or name == "head bias" else bias / length)
    return found.terms(cache[_output_site(readout)], readout.of)


class _Collected:
    """Terms as they come."""

    def __init__(self, cache: Any):
        self.cache = cache
        self.values: list[Tensor] = []
        self.names: list[str] = []
        self.kinds: list[str] = []
        self.layers: list[int | None] = []
        self.per_token: list[Tensor] = []

    def add(self, name: str, kind: str, layer: int | None, value: Tensor) -> None:
        self.values.append(value)
        self.names.append(name)
        self.kinds.append(kind)
        self.layers.append(layer)

    def bias(self, name: str, value: Tensor, layer: int | None = None) -> None:
        """A constant, unless it is zero."""
        if value.abs().max() > 0:
            self.add(name, "bias", layer, value)

    def terms(self, whole: Tensor, of: str) -> Terms:
        values = torch.stack(self.values, dim=1)
        scale = float(whole.abs().max())
        error = float((values.sum(1) - whole).abs().max()) / (scale or 1.0)
        if not error <= TOLERANCE[whole.dtype]:
            raise FailedCheck(
                f"the terms add up to the output with a relative error of {error:.1e}; at most "
                f"{TOLERANCE[whole.dtype]:.0e} is accepted in {whole.dtype}. Something in this model's read-out or "
                "blocks is not the sum that its map says."
            )
        return Terms(
            values=values,
            names=tuple(self.names),
            kinds=tuple(self.kinds),
            layers=tuple(self.layers),
            whole=whole,
            of=of,
            error=error,
            per_token=torch.cat(self.per_token, dim=1) if self.per_token else None,
        )


def _stream_terms(fixed: Fixed, cache: Any, frozen: Frozen, found: _Collected) -> None:
    model, first = fixed.model, fixed.layers[0]
    before = cache[f"blocks.{first}.hook_resid_pre"]
    found.add("embed" if first == 0 else f"before L{first}", "embed", None, frozen.outward(frozen.mixed(before)))
    for layer in fixed.layers:
        attn = model.blocks[layer].attn
        z = frozen.mixed(cache[f"blocks.{layer}.attn.hook_z"])
        # Weights once per batch and head: the image axis meets d_head numbers, not d_model.
        onward = einsum(attn.W_O, frozen.matrix, "head e d, slot d out -> slot head e out")
        values = frozen.scaled(einsum(z, onward, "image slot head e, slot head e out -> image head out"))
        for head in range(values.shape[1]):
            found.add(f"L{layer}H{head}", "head", layer, values[:, head])
        if attn.b_O is not None:
            share = frozen.mix.sum(-1)
            bias = einsum(share, attn.b_O, frozen.matrix, "image slot, d, slot d out -> image out")
            if fixed.convention == "linear":
                found.bias(f"L{layer} bias", frozen.scaled(bias), layer)
            else:
                for head in range(values.shape[1]):
                    found.values[-1 - head] = found.values[-1 - head] + frozen.scaled(bias) / values.shape[1]
        mlp = frozen.outward(frozen.mixed(cache[f"blocks.{layer}.hook_mlp_out"]))
        found.add(f"L{layer}MLP", "mlp", layer, mlp)
        if fixed.tokens:
            pattern, v = cache[f"blocks.{layer}.attn.hook_pattern"], cache[f"blocks.{layer}.attn.hook_v"]
            read = einsum(frozen.mix, pattern, "image slot query, image head query key -> image slot head key")
            part = einsum(
                read,
                v,
                onward,
                "image slot head key, image key head e, slot head e out -> image head key out",
            )
            found.per_token.append(frozen.scaled(part))


def _pool_heads(fixed: Fixed, cache: Any, length: Tensor | None, found: _Collected) -> None:
    """The heads of an attention pooling, which write the pooled vector itself."""
    model = fixed.model
    sites, slots = model.pool.attn, fixed.readout.slots
    weight, divisor, constant = _after_pooling(fixed, cache)
    length = divisor if length is None else length if divisor is None else length * divisor

    def scaled(x: Tensor) -> Tensor:
        return x if length is None else x / length.view(-1, *[1] * (x.ndim - 1))

    onward = einsum(sites.W_O, weight, "head e d, slot d out -> slot head e out")
    z = einsum(slots, cache["pool.attn.hook_z"], "slot latent, image latent head e -> image slot head e")
    values = scaled(einsum(z, onward, "image slot head e, slot head e out -> image head out"))
    n_blocks = len(model.parts.blocks)
    for head in range(values.shape[1]):
        found.add(f"pool H{head}", "head", n_blocks, values[:, head])
    if fixed.tokens:
        pattern, v = cache["pool.attn.hook_pattern"], cache["pool.attn.hook_v"]
        read = einsum(slots, pattern, "slot latent, image head latent key -> image slot head key")
        part = einsum(read, v, onward, "image slot head key, image key head e, slot head e out -> image head key out")
        found.per_token.append(scaled(part))
    _pool_rest(fixed, cache, scaled, found, weight)
    if constant is not None:
        constant = constant.expand(len(values), -1)
        found.bias("ln_final bias", constant if divisor is None else scaled(constant * divisor))


def _after_pooling(fixed: Fixed, cache: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """From the pooled latents to the output: the matrix `[slot d_out_of_pooling d_out]`, what a norm after the pooling
    divides by `[image 1]`, and what its bias adds."""
    model, readout = fixed.model, fixed.readout
    norm, sites, slots = model.parts.ln_final, model.pool.attn, readout.slots
    weight = rearrange(readout.weight, "(slot d) out -> slot d out", d=model.parts.pooling.d_out)
    if model.parts.norm != "pooled":
        return weight, None, None
    if len(slots) != 1:
        raise RefusedMethod("the last norm of this model spans several poolings; its parts are not told apart.")
    pooled = einsum(slots[0], cache["pool.attn.hook_z"], sites.W_O, "latent, i latent head e, head e d -> i d")
    if sites.b_O is not None:
        pooled = pooled + slots.sum() * sites.b_O
    if model.parts.pooling.mlp is not None:
        pooled = pooled + einsum(slots[0], cache["pool.hook_mlp_out"], "latent, i latent d -> i d")
    bias = getattr(norm, "bias", None)
    constant = None if bias is None else bias @ weight[0]
    return centre(norm, weight), statistics(norm, pooled)[1], constant


def _pool_rest(fixed: Fixed, cache: Any, scaled: Any, found: _Collected, weight: Tensor) -> None:
    """Output bias and MLP of an attention pooling."""
    model = fixed.model
    sites, slots = model.pool.attn, fixed.readout.slots
    n_blocks = len(model.parts.blocks)
    n_image = len(next(iter(cache.values())))
    if sites.b_O is not None:
        bias = einsum(slots.sum(1), sites.b_O, weight, "slot, d, slot d out -> out").expand(n_image, -1)
        heads = [place for place, name in enumerate(found.names) if name.startswith("pool H")]
        if fixed.convention == "linear" or not heads:
            found.bias("pool bias", scaled(bias), n_blocks)
        else:
            for place in heads:
                found.values[place] = found.values[place] + scaled(bias) / len(heads)
    if model.parts.pooling.mlp is not None:
        written = einsum(slots, cache["pool.hook_mlp_out"], "slot latent, image latent d -> image slot d")
        found.add("pool MLP", "mlp", n_blocks, scaled(einsum(written, weight, "image slot d, slot d out -> image out")))
