"""How the metric answers to what each reader reads, for every reader of the model, from one backward pass.

No stream is forked for it (hooks_circuits.md 4.7). The gradients at q, k and v, `d_head` wide, and at the MLP's
normalised input are taken from an ordinary forward with fused attention; then, one layer at a time,

    g[L3H1.q] = J_norm^T ( dM/dq[head 1] W_Q[head 1]^T )      with J_norm the Jacobian of that layer's norm

which is what the gradient at a forked input would be: a fork is read by one head only, so nothing else flows into it.
Where queries, keys or values are not one product per head (norms on them, adapters), the user's own projection is
differentiated, head by head.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from circuits.edges.inputs import KINDS, LayerInputs, project
from circuits.edges.wiring import Wiring
from mechvis import block as plain
from mechvis.axes import PerHead, Residual
from mechvis.errors import NotFinite
from mechvis.models.parts import Layout
from mechvis.norms import gain, is_rms, statistics

Output = Float[Tensor, "row out"]
Readers = Float[Tensor, "reader row token d_model"]


@dataclass(frozen=True, eq=False)
class LayerTaps:
    """Where one layer reads the stream, and the gradients there."""

    pre: Residual
    """The stream before the layer."""
    inputs: tuple[PerHead, PerHead, PerHead]
    """Gradients at queries, keys and values."""
    mid: Residual
    """The stream before the MLP."""
    normalised: Residual
    """Gradient at the MLP's normalised input."""


@dataclass(frozen=True, eq=False)
class Taps:
    """Gradients of the summed metric at everything that reads the stream."""

    layers: tuple[LayerTaps, ...]
    """Per layer."""
    out: Residual
    """Gradient at the stream after the last block, which only the read-out reads."""
    stream: Residual
    """Gradient at the stream that the run started from: the sum over everything that reads it."""
    values: Float[Tensor, " row"]
    """The metric itself."""
    output: Output
    """The model's output."""


def tap(
    model: Any,
    stream: Residual,
    metric: Callable[[Output], Float[Tensor, " row"]],
    layout: Layout = None,
    start: int = 0,
) -> Taps:
    """One forward from a stream, one backward from the metric.

    Args:
        model: a `HookedViT`.
        stream: the stream before layer `start`.
        metric: output to one number per row.
        layout: what the blocks know of the images' size.
        start: first layer to run.

    Raises:
        NotFinite: the metric or a gradient is NaN or Inf.
    """
    parts = model.parts
    with torch.enable_grad():
        x = stream_in = stream.detach().requires_grad_(True)
        places, wanted = [], []
        for block in parts.blocks[start:]:
            pre = x
            q, k, v = plain.project(block.attn, block.ln1(x))
            rotated = plain.place(block.attn, q, k, layout)
            z = plain.finish(block.attn, plain.mix(block.attn, *rotated, v, layout))
            mid = x + plain.scaled(block.scale1, block.attn.out(plain.merge(z)))
            # A view: without a norm the MLP reads the stream itself, whose gradient is that of all later readers too.
            normalised = block.ln2(mid.view_as(mid))
            write = plain.scaled(block.scale2, block.mlp_out(plain.neurons(block, normalised)))
            x = mid + write
            places.append((pre.detach(), mid.detach()))
            wanted += [q, k, v, normalised]
        final = x
        wanted += [final, stream_in]
        output = plain.read_out(parts, final, lambda tokens: _read(parts, tokens))
        values = metric(output)
        if not torch.isfinite(values).all():
            row = int((~torch.isfinite(values)).nonzero()[0])
            raise NotFinite(f"the metric is NaN or Inf on row {row} of this batch.")
        found = torch.autograd.grad(values.sum(), wanted, allow_unused=True)
    found = [torch.zeros_like(at) if g is None else g for at, g in zip(wanted, found, strict=True)]
    if not all(bool(torch.isfinite(g).all()) for g in found):
        raise NotFinite("a gradient of the metric is NaN or Inf.")
    layers = tuple(
        LayerTaps(pre, tuple(found[4 * i : 4 * i + 3]), mid, found[4 * i + 3]) for i, (pre, mid) in enumerate(places)
    )
    return Taps(layers, found[-2], found[-1], values.detach(), output.detach())


def head_gradients(taps: LayerTaps, inputs: LayerInputs, kind: str, repeats: int = 1) -> Readers:
    """Gradient at what each head reads through one of its inputs, `[head image token d_model]`, mean over repeats.

    With weights `W` (gain included, and centred for a LayerNorm), normalised stream `n` of deviation `s`, and `u = dq /
    s`, the norm's Jacobian comes to

        g = u W^T - n (u . n W) / d_model

    The first term is linear in u, so repeats are averaged before the product; the second has one small product per
    repeat.

    Args:
        taps: of the layer; rows are `(repeat image)`.
        inputs: how the layer projects.
        kind: `q`, `k` or `v`.
        repeats: how many rows belong to one image.
    """
    gradient, norm = taps.inputs[KINDS.index(kind)], inputs.block.ln1
    if kind not in inputs.weights or not (isinstance(norm, nn.Identity) or hasattr(norm, "eps")):
        return _averaged(_by_calls(taps, inputs, kind), repeats)
    weight = inputs.weights[kind]
    if isinstance(norm, nn.Identity):
        mean = _averaged(gradient[None], repeats)[0]
        return einsum(mean, weight, "image token head e, head d e -> head image token d")
    centred, scale = statistics(norm, taps.pre)
    divided = centred / scale
    weight = gain(norm, weight.mT).mT
    scaled = gradient / scale[..., None]
    back = weight if is_rms(norm) else weight - weight.mean(1, keepdim=True)
    mean = _averaged(scaled[None], repeats)[0]
    found = einsum(mean, back, "image token head e, head d e -> head image token d")
    seen = einsum(divided, weight, "row token d, head d e -> row token head e")
    along = (scaled * seen).sum(-1) / divided.shape[-1]
    along, divided = (rearrange(x, "(r i) t x -> i t r x", r=repeats) for x in (along, divided))
    found -= rearrange(along.mT @ divided / repeats, "image token head d -> head image token d")
    return found


def _by_calls(taps: LayerTaps, inputs: LayerInputs, kind: str) -> Readers:
    """The same by differentiating the user's own norm and projection, head by head: the plain twin."""
    gradient = taps.inputs[KINDS.index(kind)]
    found = []
    for head in range(gradient.shape[2]):
        own = torch.zeros_like(gradient)
        own[:, :, head] = gradient[:, :, head]
        with torch.enable_grad():
            x = taps.pre.detach().requires_grad_(True)
            (g,) = torch.autograd.grad(project(inputs.block.attn, kind, inputs.block.ln1(x)), x, own)
        found.append(g)
    return torch.stack(found)


def mlp_gradients(taps: LayerTaps, inputs: LayerInputs) -> Readers:
    """Gradient at what the MLP of a layer reads, `[1 row token d_model]`."""
    return through_norm(inputs.block.ln2, taps.mid, taps.normalised[None])


def through_norm(norm: nn.Module, x: Residual, gradient: Readers) -> Readers:
    """Gradients at the output of a norm, taken to its input.

    A LayerNorm or RMSNorm is differentiated by hand, which needs one buffer; other modules by autograd.
    """
    if isinstance(norm, nn.Identity):
        return gradient
    if not hasattr(norm, "eps"):
        with torch.enable_grad():
            rows = x.expand(len(gradient), *x.shape).detach().requires_grad_(True)
            return torch.autograd.grad(norm(rows), rows, gradient)[0]
    centred, scale = statistics(norm, x)
    divided = centred / scale
    g = gain(norm, gradient)
    along = (g * divided).mean(-1, keepdim=True)
    g = g - divided * along if is_rms(norm) else g - g.mean(-1, keepdim=True) - divided * along
    return g / scale


def reader_gradients(taps: Taps, wires: Wiring, repeats: int = 1, start: int = 0) -> Iterator[tuple[slice, Readers]]:
    """Gradients at the readers, layer by layer from the last: (which readers, `[reader image token d_model]`).

    Args:
        taps: from :func:`tap`; its rows are `(repeat image)`, e.g. the steps of a path.
        wires: of the model.
        repeats: how many rows belong to one image; they are averaged.
        start: the layer that the taps start at.
    """
    graph = wires.graph
    yield slice(graph.shape[1] - 1, graph.shape[1]), _averaged(taps.out[None], repeats)
    for layer in reversed(range(start, graph.n_layers)):
        own, inputs, place = taps.layers[layer - start], wires.inputs[layer], graph.readers_of(layer)
        heads, n_images = graph.n_heads[layer], len(own.pre) // repeats
        found = own.pre.new_empty(3 * heads + 1, n_images, *own.pre.shape[1:])
        for index, kind in enumerate(KINDS):
            found[index * heads : (index + 1) * heads] = head_gradients(own, inputs, kind, repeats)
        found[-1:] = _averaged(mlp_gradients(own, inputs), repeats)
        yield slice(place.start, place.stop + 1), found


def _averaged(gradient: Float[Tensor, "reader row ..."], repeats: int) -> Float[Tensor, "reader image ..."]:
    """Mean over repeats of rows `(repeat image)`."""
    return gradient if repeats == 1 else gradient.unflatten(1, (repeats, -1)).mean(1)


def _read(parts: Any, tokens: Residual) -> Residual:
    """Tokens of the read-out."""
    return tokens[:, list(parts.reads)] if isinstance(parts.reads, tuple) else tokens
