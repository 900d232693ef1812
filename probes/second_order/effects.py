"""What a neuron does through later heads: second-order effects, exactly and without a tensor per token.

The direct effect of a late neuron on the output is small in CLIP-like models; much of what a neuron does is read by the
attention heads after it. With patterns and norm scales frozen and later MLPs not traversed, the way
"neuron n at token i -> value of head (l', h) -> output" is linear (**C**, **A**; methods.md 2.4):

    phi_n = sum_l' sum_h sum_i  A[l',h][read, i] * p[i, n] / s1[l'][i] * Phi(centred(w_n) * gain1 @ W_V @ W_O) / |z|

The vector behind `Phi` does not depend on the image (**P**). So:

1. Once per layer: `vectors[l'h, n, :] = Phi(...)`, without any image.
2. Per image: `alpha[l'h, n] = sum_i A[read, i] p[i, n] / s1[i] / s_last / |z|`: one product
   `[head token] x [token neuron]` per later layer.
3. `phi_n = sum_l'h alpha * vectors`, formed when somebody asks, for the neurons and images that are asked for.

:class:`Coefficients` keeps `alpha` and `vectors`. Biases and means are constants up to the norm's scale and are dropped
(**X**; the released code spreads them evenly over the terms). :func:`effects_by_token` is the plain twin, and
:func:`effect_of_write` the same for any write to the stream, such as the whole MLP output.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.engine import budget_bytes, free_memory
from mechvis.errors import BadData, BadImages, NotFinite, OutOfMemory, OutOfRange, ShapeMismatch
from mechvis.norms import gain, is_rms
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.store.forward import reader
from probes.second_order.readout import Of, ReadOut, read_out_of

BATCH = 32
"""Images per forward pass."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Coefficients:
    """Second-order effects of neurons of one layer, factorised: a number per image, head and neuron, and a vector per
    head and neuron."""

    layer: int
    """Layer of the neurons."""
    neurons: Int[np.ndarray, " neuron"]
    """Which neurons."""
    terms: tuple[str, ...]
    """Later heads that read them, `L3H1`; none for the last block. Where several pooled tokens stand side by side, one
    term each."""
    alpha: Float[np.ndarray, "image term neuron"]
    """How strongly each head passes the neuron on to the output, per image."""
    vectors: Float[np.ndarray, "term neuron d_out"]
    """What the head makes of the neuron, the same for all images."""
    of: str
    """What the vectors are in: `logits`, `embedding` or `pooled`."""
    unit: bool
    """Are effects divided by the length of the image's embedding?"""
    ids: tuple[str, ...] = ()
    """Names of the images."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Model, images, versions."""

    def __len__(self) -> int:
        return len(self.alpha)

    @property
    def names(self) -> list[str]:
        """`L1N37` per neuron."""
        return [f"L{self.layer}N{int(n)}" for n in self.neurons]

    def effects(self, images: Any = slice(None), neurons: Any = slice(None)) -> Float[np.ndarray, "image neuron d_out"]:
        """phi of some images and neurons (by position): the whole thing is large, ask for what is needed."""
        return np.einsum("ikn,knd->ind", self.alpha[images][:, :, neurons], self.vectors[:, neurons], optimize=True)

    @property
    def mean(self) -> Float[np.ndarray, "neuron d_out"]:
        """Mean effect b_n over the images."""
        return np.einsum("kn,knd->nd", self.alpha.mean(0, dtype=np.float64), self.vectors)

    def summed(self, images: Any = slice(None)) -> Float[np.ndarray, "image d_out"]:
        """Sum over the neurons."""
        return np.einsum("ikn,knd->id", self.alpha[images], self.vectors, optimize=True)

    def sizes(self, mean: Float[np.ndarray, "term neuron"] | None = None) -> Float[np.ndarray, "image neuron"]:
        """|phi_n(I) - b_n|, from the Gram matrix of the vectors: no `[image neuron d_out]` is formed.

        Args:
            mean: mean of alpha; None: of these images. Give the reference images' mean to measure other images.
        """
        mean = self.alpha.mean(0, dtype=np.float64) if mean is None else mean
        vectors = self.vectors.astype(np.float64)
        gram = np.einsum("knd,jnd->nkj", vectors, vectors, optimize=True)
        found = np.empty((len(self.alpha), len(self.neurons)))
        step = max(1, 2**22 // max(1, mean.size))
        for start in range(0, len(self.alpha), step):
            away = self.alpha[start : start + step] - mean
            found[start : start + step] = np.einsum("ikn,nkj,ijn->in", away, gram, away, optimize=True)
        return np.sqrt(np.maximum(found, 0))

    def __repr__(self) -> str:
        return (
            f"Coefficients(layer {self.layer}, {len(self.neurons)} neurons through {len(self.terms)} later heads, "
            f"{len(self)} images, {self.of}{', unit length' if self.unit else ''})"
        )


def coefficients(
    model: Any,
    images: Any,
    layer: int,
    *,
    neurons: Sequence[int] | np.ndarray | None = None,
    of: Of = "output",
    unit: bool | None = None,
    batch_size: int = BATCH,
    progress: bool = True,
) -> Coefficients:
    """Second-order effects of a layer's neurons on images, in factorised form: one forward pass per image.

    Source: second-order lens (methods.md 2.4, **C** for the quantity, **P** and **X** for the factorisation).

    Args:
        model: a wrapped image tower that reads CLS or a mean of tokens.
        images: an `ImageSet`, or pixels `[image channel height width]`.
        layer: layer of the neurons. The last layer's neurons have no second-order effect: zero terms.
        neurons: which; None: all of the layer.
        of: effect on `logits`, `embedding`, `pooled`, or the model's `output`.
        unit: divide by the length of the embedding; see :func:`probes.second_order.readout.read_out_of`.
        batch_size: images per forward pass.
        progress: show a progress bar.

    Returns:
        Coefficients: `[image term neuron]` numbers, `[term neuron d_out]` vectors.

    Raises:
        RefusedMethod: the read-out is not linear; says why.
        OutOfRange: a layer or neuron that does not exist.
        OutOfMemory: the numbers do not fit; says to take fewer neurons at a time.
        NotFinite: NaN or Inf; names the layer.

    Example:
        >>> found = coefficients(model, images, layer=1, neurons=[3, 7])               # doctest: +SKIP
        >>> found.effects().shape                                                      # doctest: +SKIP
        (256, 2, 8)
    """
    read = read_out_of(model, of, unit=unit)
    layer, chosen = chosen_neurons(model, layer, neurons)
    later = range(layer + 1, len(model.parts.blocks))
    vectors = head_vectors(model, read, layer, chosen)
    needed = len(images) * vectors.shape[0] * len(chosen) * model.dtype.itemsize
    if needed > 0.7 * free_memory():
        raise OutOfMemory(
            f"{len(chosen)} neurons on {len(images)} images through {vectors.shape[0]} terms need {needed / 1e9:.1f} "
            f"GB, {free_memory() / 1e9:.1f} GB are free. Take fewer neurons at a time, or fewer images."
        )
    pixels = reader(model, images)
    numpy_type = {torch.float64: np.float64}.get(model.dtype, np.float32)
    alpha = np.zeros((len(images), vectors.shape[0], len(chosen)), numpy_type)
    index = torch.as_tensor(chosen, device=model.device)
    with track(len(images), f"second order, layer {layer}", " images", show=progress) as bar:
        for start in range(0, len(images), batch_size):
            part = np.arange(start, min(start + batch_size, len(images)))
            if len(later):
                cache = run_for(model, pixels(part), layer, read)
                weighted = read_weights(cache, read)
                post = cache[f"blocks.{layer}.mlp.hook_post"][..., index]
                found = [_through(cache, after, weighted, post) for after in later]
                values = torch.cat(found, dim=1).to(torch.float64 if numpy_type is np.float64 else torch.float32)
                if not torch.isfinite(values).all():
                    bad = int(part[int((~torch.isfinite(values)).flatten(1).any(1).nonzero()[0])])
                    raise NotFinite(f"NaN or Inf in the effects of layer {layer} at image {bad}.")
                alpha[part] = values.cpu().numpy()
            bar.update(len(part))
    known = images if hasattr(images, "ids") else None
    return Coefficients(
        layer=layer,
        neurons=chosen,
        terms=_terms(model, read, later),
        alpha=alpha,
        vectors=vectors.cpu().numpy().astype(numpy_type),
        of=read.of,
        unit=read.length is not None,
        ids=tuple(f"image {i}" for i in range(len(images))) if known is None else known.ids,
        provenance=provenance(model=model, images=known),
    )


def contribution_maps(
    model: Any,
    images: Any,
    layer: int,
    toward: Float[np.ndarray, "image d_out"],
    *,
    of: Of = "output",
    unit: bool | None = None,
    batch_size: int = BATCH,
) -> Float[np.ndarray, "image token"]:
    """Where a layer's neurons get their second-order effect from: its part along a direction, per source token.

    Summed over the tokens it is `coefficients(...).summed() @ toward`, image by image.

    Args:
        toward: a direction of the output for each image, e.g. its class' text minus the mean of all texts.
        of: as in :func:`coefficients`; so are `unit` and `batch_size`.

    Raises:
        ShapeMismatch: not one direction per image, or of another width.
    """
    read = read_out_of(model, of, unit=unit)
    layer, chosen = chosen_neurons(model, layer, None)
    vectors = head_vectors(model, read, layer, chosen)
    if np.shape(toward) != (len(images), vectors.shape[-1]):
        raise ShapeMismatch(f"toward is [image d_out] = {[len(images), vectors.shape[-1]]}, got {np.shape(toward)}.")
    pixels, found = reader(model, images), []
    for start in range(0, len(images), batch_size):
        part = np.arange(start, min(start + batch_size, len(images)))
        cache = run_for(model, pixels(part), layer, read)
        weighted, post = read_weights(cache, read), cache[f"blocks.{layer}.mlp.hook_post"]
        along = vectors @ torch.as_tensor(toward[part], device=model.device).to(vectors).T  # [term neuron image]
        reach = [_reach(cache, after, weighted) for after in range(layer + 1, len(model.parts.blocks))]
        if not reach:
            found.append(np.zeros(post.shape[:2]))
            continue
        value = einsum(post, along, "image token neuron, term neuron image -> image term token")
        found.append((torch.cat(reach, dim=1) * value).sum(1).double().cpu().numpy())
    return np.concatenate(found)


def effects_by_token(
    model: Any,
    pixels: Float[Tensor, "image channel height width"],
    layer: int,
    *,
    neurons: Sequence[int] | np.ndarray,
    **read: Any,
) -> Float[Tensor, "image neuron d_out"]:
    """The plain twin of :func:`coefficients`: every neuron's write at every token, sent through every later head.

    It holds a tensor `[image token neuron d_model]`: for a few neurons and images.

    Args:
        read: `of` and `unit` of :func:`coefficients`.
    """
    layer, chosen = chosen_neurons(model, layer, neurons)
    out = read_out_of(model, **read)
    cache = run_for(model, pixels, layer, out)
    post = cache[f"blocks.{layer}.mlp.hook_post"][..., torch.as_tensor(chosen, device=model.device)]
    rows = model.blocks[layer].mlp.W_out[torch.as_tensor(chosen, device=model.device)].detach()
    write = post[..., None] * rows  # [image token neuron d_model]
    return _sent(model, cache, layer, out, write)


def effect_of_write(
    model: Any,
    pixels: Float[Tensor, "image channel height width"],
    layer: int,
    write: Tensor | None = None,
    **read: Any,
) -> Float[Tensor, "image d_out"]:
    """The same for any write after a layer's MLP `[image token d_model]`; None: the MLP's own, without its bias.

    Neurons add up to it: `coefficients(...).summed()` equals `effect_of_write(...)`.

    Raises:
        RefusedMethod: the read-out is not linear.
        BadData: a write of another shape.
    """
    layer, _ = chosen_neurons(model, layer, None)
    out = read_out_of(model, **read)
    cache = run_for(model, pixels, layer, out)
    post = cache[f"blocks.{layer}.mlp.hook_post"]
    if write is None:
        write = post @ model.blocks[layer].mlp.W_out.detach()
    if write.shape != (*post.shape[:2], model.parts.d_model):
        raise BadData(f"a write is {[*post.shape[:2], model.parts.d_model]} here, got {list(write.shape)}.")
    return _sent(model, cache, layer, out, write[:, :, None])[:, 0]


def chosen_neurons(model: Any, layer: int, neurons: Sequence[int] | np.ndarray | None) -> tuple[int, np.ndarray]:
    """The layer counted from 0, and the neurons as an array; checked."""
    n_layers = len(model.parts.blocks)
    if not -n_layers <= layer < n_layers:
        raise OutOfRange(f"layer {layer}: this model has layers 0 to {n_layers - 1}.")
    layer = int(layer) % n_layers
    n = model.parts.blocks[layer].d_mlp
    chosen = np.arange(n) if neurons is None else np.atleast_1d(np.asarray(neurons))
    if not chosen.size or not np.issubdtype(chosen.dtype, np.integer):
        raise BadData(f"neurons={neurons!r}: give whole numbers, at least one.")
    if chosen.min() < 0 or chosen.max() >= n:
        raise OutOfRange(f"neuron {int(chosen.max())} of layer {layer}: it has neurons 0 to {n - 1}.")
    return layer, chosen.astype(np.int64)


def neuron_groups(
    model: Any, layer: int, n_images: int, budget: str | int | None, n: int | None = None
) -> list[np.ndarray]:
    """Neurons of a layer (or `n` of them, by position) in groups whose effects, and what is made of them, fit."""
    terms = sum(block.attn.n_heads for block in model.parts.blocks[layer + 1 :]) or 1
    # In float64, and five more arrays of the size: deviations, masks, products.
    at_once = max(1, budget_bytes(budget, model.device) // (n_images * terms * 8 * 6))
    neurons = np.arange(model.parts.blocks[layer].d_mlp if n is None else n)
    return [neurons[start : start + at_once] for start in range(0, len(neurons), at_once)]


def run_for(model: Any, pixels: Tensor, layer: int, read: ReadOut) -> Any:
    """One forward pass with what second-order effects of a layer need."""
    size = model.parts.image_size
    if size is not None and tuple(pixels.shape[2:]) != tuple(size):
        raise BadImages(
            f"images of {tuple(pixels.shape[2:])} pixels; load the model for that size, it is at {size} now."
        )
    later = range(layer + 1, len(model.parts.blocks))
    sites = [f"blocks.{layer}.mlp.hook_post", "ln_final.hook_scale"]
    sites += [f"blocks.{after}.{site}" for after in later for site in ("attn.hook_pattern", "ln1.hook_scale")]
    sites += [read.length] if read.length else []
    return model.run(pixels.to(model.device, model.dtype), capture=sites).cache


def read_weights(cache: Any, read: ReadOut) -> Float[Tensor, "image slot token"]:
    """How much each token of the stream counts for the output of each image: pooling, last norm, length."""
    weights = read.weigh(cache["ln_final.hook_scale"])
    if read.length is None:
        return weights
    return weights / cache[read.length].norm(dim=-1)[:, None, None]


def head_vectors(model: Any, read: ReadOut, layer: int, neurons: np.ndarray) -> Float[Tensor, "term neuron d_out"]:
    """What every later head makes of every neuron's write direction, in the output: no image takes part."""
    rows = model.blocks[layer].mlp.W_out[torch.as_tensor(neurons, device=model.device)].detach()
    found = []
    with torch.no_grad():
        for after in range(layer + 1, len(model.parts.blocks)):
            attn = model.blocks[after].attn
            written = _normalised(model, after, rows)
            value = einsum(written, attn.W_V, "neuron d, head d e -> head neuron e")
            write = read.centre(einsum(value, attn.W_O, "head neuron e, head e d -> head neuron d"))
            found.append(einsum(write, read.matrix, "head neuron d, slot d out -> slot head neuron out").flatten(0, 1))
    return torch.cat(found) if found else rows.new_zeros(0, len(neurons), read.matrix.shape[-1])


def _normalised(model: Any, layer: int, write: Tensor) -> Tensor:
    """A write as the attention of a later layer sees it, before the division by the norm's scale."""
    norm = model.parts.blocks[layer].ln1
    centred = hasattr(norm, "eps") and not is_rms(norm)
    return gain(norm, write - write.mean(-1, keepdim=True) if centred else write)


def _through(
    cache: Any, layer: int, weights: Float[Tensor, "image slot token"], post: Float[Tensor, "image token neuron"]
) -> Float[Tensor, "image term neuron"]:
    """alpha of one later layer's heads."""
    return _reach(cache, layer, weights) @ post


def _reach(cache: Any, layer: int, weights: Float[Tensor, "image slot token"]) -> Float[Tensor, "image term token"]:
    """How far a write at each token gets through each head of one later layer to the output."""
    pattern = cache[f"blocks.{layer}.attn.hook_pattern"]
    reach = einsum(weights, pattern, "image slot query, image head query key -> image slot head key")
    reach = reach / cache[f"blocks.{layer}.ln1.hook_scale"][:, None, None, :, 0]
    return rearrange(reach, "image slot head key -> image (slot head) key")


def _sent(model: Any, cache: Any, layer: int, read: ReadOut, write: Tensor) -> Float[Tensor, "image neuron d_out"]:
    """Writes `[image token neuron d_model]` through every later head to the output, step by step."""
    weights = read_weights(cache, read)
    total = write.new_zeros(len(write), write.shape[2], read.matrix.shape[-1])
    with torch.no_grad():
        for after in range(layer + 1, len(model.parts.blocks)):
            attn = model.blocks[after].attn
            normal = _normalised(model, after, write) / cache[f"blocks.{after}.ln1.hook_scale"][:, :, None]
            for head in range(attn.W_V.shape[0]):
                value = normal @ attn.W_V[head] @ attn.W_O[head]
                pattern = cache[f"blocks.{after}.attn.hook_pattern"][:, head]
                mixed = einsum(pattern, value, "image query key, image key neuron d -> image query neuron d")
                pooled = einsum(
                    weights, read.centre(mixed), "image slot query, image query neuron d -> image slot neuron d"
                )
                total = total + einsum(pooled, read.matrix, "image slot neuron d, slot d out -> image neuron out")
    return total


def _terms(model: Any, read: ReadOut, later: Sequence[int]) -> tuple[str, ...]:
    slots = len(read.weights)
    return tuple(
        f"L{after}H{head}" + (f" slot {slot}" if slots > 1 else "")
        for after in later
        for slot in range(slots)
        for head in range(model.parts.blocks[after].attn.n_heads)
    )
