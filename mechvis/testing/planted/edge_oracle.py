"""The slow truth about edges: a forward in which every reader has an input of its own, one edge at a time.

A transformer as a graph (path patching, methods.md 5.2 **K**; the graph of EAP, 4.1 **C**): writers (the embedding,
every head, every MLP) and readers (the q, k and v input of every head, every MLP's input, the output). Every writer
adds to what every later reader reads. :func:`edge_forward` adds up each reader's input term by term: what the writer
wrote in *this* run where the edge is kept, and what it writes on the corrupt image where it is not. Norms see the sum
that results.

Nothing here is clever, nothing is shared with the engines that search for circuits, and none of `mechvis.block` is
used: it calls the user's own parts. So it can judge them. One forward per edge makes it fit for models of a few hundred
edges.

What belongs to whom: a value bias to its head; an MLP's output bias to the MLP (its write is `hook_mlp_out`); an
attention's output bias to nobody, it is always there.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from mechvis.axes import Logits, Pixels, Residual
from mechvis.errors import BadData, NotFinite, RefusedMethod, ShapeMismatch, unknown
from mechvis.models.parts import AttentionParts, BlockParts, PoolingParts, TowerParts

Writes = dict[str, Residual]
PerImage = Float[Tensor, " image"]
Term = Callable[[str, str, Residual], Residual]
"""(writer, reader, what the writer wrote in this run) -> what the reader gets of it."""


def edges_of(model: Any) -> tuple[str, ...]:
    """Names of all edges, by reader from input to output, then by writer: `embed->L0H0.q`, ..., `L1MLP->out`.

    Example:
        >>> from mechvis.testing.planted import saturation_net
        >>> len(edges_of(saturation_net()))
        13
    """
    return tuple(f"{writer}->{reader}" for reader, writers in _readers(model.parts) for writer in writers)


@torch.no_grad()
def writes_of(model: Any, pixels: Pixels) -> Writes:
    """What every writer writes in an ordinary run, `[image token d_model]` each.

    Args:
        model: a wrapped model.
        pixels: one batch.
    """
    _check(model, pixels)
    return _run(model.parts, model.parts.embed(pixels), pixels, lambda writer, reader, wrote: wrote)[1]


@torch.no_grad()
def edge_forward(
    model: Any, clean: Pixels, corrupt: Pixels | Mapping[str, Tensor], kept_edges: Iterable[str]
) -> Logits:
    """Output on the clean images where only some edges carry what is written in this run; all others carry what their
    writer writes on the corrupt images.

    Args:
        model: a wrapped image model (`HookedViT`) of pre-norm blocks.
        clean: pixels.
        corrupt: pixels, or what takes the place of every writer's write (e.g. means or zeros): writer -> tensor that
            broadcasts to `[image token d_model]`, as from :func:`writes_of`.
        kept_edges: names of edges (:func:`edges_of`). All: the clean output. None: the corrupt output.

    Returns:
        The model's output, `[image class]`.

    Raises:
        UnknownName: an edge or writer that the model does not have.
        ShapeMismatch: halves of different shapes.
        RefusedMethod: the stream of this model is no sum of its writers, or it is a text tower.

    Example:
        >>> from mechvis.testing.planted import saturation_net, saturation_pairs, SATURATION_EDGES
        >>> model, pairs = saturation_net(), saturation_pairs()
        >>> core = {"embed->L0H0.v", "L0H0->L0MLP", "L0MLP->out"}
        >>> round(float(pairs.metric(edge_forward(model, pairs.clean, pairs.corrupt, core))), 3)
        7.4
    """
    _check(model, clean)
    base = _base(model, clean, corrupt)
    kept = set(kept_edges)
    if strange := kept.difference(edges_of(model)):
        raise unknown("edge", min(strange), edges_of(model))

    def term(writer: str, reader: str, wrote: Tensor) -> Tensor:
        return wrote if f"{writer}->{reader}" in kept else base[writer].expand_as(wrote)

    return _run(model.parts, model.parts.embed(clean), clean, term)[0]


@torch.no_grad()
def edge_effects(
    model: Any,
    clean: Pixels,
    corrupt: Pixels | Mapping[str, Tensor],
    metric: Callable[[Logits], PerImage],
    edges: Iterable[str] | None = None,
) -> dict[str, PerImage]:
    """Exact effect of every edge by itself: metric(clean) - metric(clean with this one edge replaced), per image;
    positive: the edge supports the behaviour.

    Args:
        model, clean, corrupt: as for :func:`edge_forward`.
        metric: logits -> one number per image.
        edges: which ones; None for all.

    Raises:
        BadData: no edge is asked for.
        NotFinite: a replacement gives NaN or Inf.

    Example:
        >>> from mechvis.testing.planted import saturation_net, saturation_pairs
        >>> model, pairs = saturation_net(), saturation_pairs()
        >>> effects = edge_effects(model, pairs.clean, pairs.corrupt, pairs.metric)
        >>> round(float(effects["embed->L0H0.v"]), 3)
        16.0
    """
    everything = edges_of(model)
    asked = everything if edges is None else tuple(edges)
    if not asked:
        raise BadData("edges=[] asks for no edge; leave it out for all.")
    if strange := set(asked).difference(everything):
        raise unknown("edge", min(strange), everything)
    base = _base(model, clean, corrupt)
    before = metric(edge_forward(model, clean, base, everything))
    found = {}
    for edge in asked:
        found[edge] = before - metric(edge_forward(model, clean, base, set(everything) - {edge}))
        if not torch.isfinite(found[edge]).all():
            raise NotFinite(f"replacing {edge} alone gives a metric of NaN or Inf.")
    return found


def edge_gradients(
    model: Any,
    clean: Pixels,
    corrupt: Pixels | Mapping[str, Tensor],
    metric: Callable[[Logits], PerImage],
    at: Sequence[float] = (1.0,),
) -> dict[str, PerImage]:
    """First-order effect of every edge, per image: `(write_clean - write_corrupt) . dM / d(input of the reader)`, in
    the orientation of :func:`edge_effects`.

    With `at=(1.0,)` this is EAP; with several points EAP-IG on inputs (**C**): the gradient is averaged over runs whose
    embedding lies at `corrupt + at * (clean - corrupt)`, the differences of writes stay those of the two ends. The
    plain way: a gate of one on every edge, and the derivative by that gate.

    Args:
        model, clean, corrupt: as for :func:`edge_forward`; with several points, `corrupt` needs an embedding too.
        metric: logits -> one number per image.
        at: points between corrupt (0) and clean (1), e.g. `[(k + 0.5) / 10 for k in range(10)]` (midpoint rule).

    Raises:
        BadData: no point.

    Example:
        >>> from mechvis.testing.planted import saturation_net, saturation_pairs
        >>> model, pairs = saturation_net(), saturation_pairs()
        >>> scores = edge_gradients(model, pairs.clean, pairs.corrupt, pairs.metric)
        >>> round(float(scores["embed->L0H0.v"]), 3)
        0.002
    """
    if len(at) == 0:
        raise BadData("at=[] averages over no run; at=(1.0,) is the gradient on the clean run.")
    _check(model, clean)
    base = _base(model, clean, corrupt)
    change = {writer: wrote - base[writer] for writer, wrote in writes_of(model, clean).items()}
    names = edges_of(model)
    found = {name: clean.new_zeros(len(clean)) for name in names}
    for point in at:
        gates = {name: clean.new_ones(len(clean)).requires_grad_(True) for name in names}

        def term(writer: str, reader: str, wrote: Tensor, gates: dict[str, Tensor] = gates) -> Tensor:
            return wrote + (gates[f"{writer}->{reader}"] - 1)[:, None, None] * change[writer]

        with torch.enable_grad():
            start = (base["embed"] + point * change["embed"]).detach()
            output = metric(_run(model.parts, start, clean, term)[0])
            gradients = torch.autograd.grad(output.sum(), list(gates.values()))
        for name, gradient in zip(names, gradients, strict=True):
            found[name] += gradient / len(at)
    return found


def _readers(parts: TowerParts) -> list[tuple[str, tuple[str, ...]]]:
    """Every reader with the writers before it, in the order of the forward."""
    writers, found = ["embed"], []
    for layer, block in enumerate(parts.blocks):
        heads = [f"L{layer}H{head}" for head in range(block.attn.n_heads)]
        found += [(f"{head}.{what}", tuple(writers)) for head in heads for what in "qkv"]
        writers += heads
        found.append((f"L{layer}MLP", tuple(writers)))
        writers.append(f"L{layer}MLP")
    return [*found, ("out", tuple(writers))]


def _run(parts: TowerParts, start: Residual, pixels: Pixels, term: Term) -> tuple[Tensor, Writes]:
    """Output, and what every writer wrote."""
    layout = None if parts.layout is None else parts.layout(tuple(pixels.shape[2:]))
    wrote: Writes = {"embed": start}
    always: list[Tensor] = []  # output biases of attention
    seen: dict[tuple, tuple[list[Tensor], Tensor]] = {}

    def read(reader: str, what: Callable[[Residual], Tensor], kind: str) -> Tensor:
        """A function of a reader's own input. Readers whose terms are the very same tensors share one computation;
        the terms are kept, so that an id stays theirs."""
        terms = [*(term(writer, reader, tensor) for writer, tensor in wrote.items()), *always]
        key = (kind, *map(id, terms))
        if key not in seen:
            total = terms[0]
            for one in terms[1:]:
                total = total + one
            seen[key] = (terms, what(total))
        return seen[key][1]

    for layer, block in enumerate(parts.blocks):
        results, bias = _heads(block, read, layer, layout)
        wrote |= {f"L{layer}H{head}": results[:, :, head] for head in range(block.attn.n_heads)}
        always += [] if bias is None else [bias]
        wrote[f"L{layer}MLP"] = read(f"L{layer}MLP", lambda x, block=block: _mlp(block, x), f"mlp {layer}")
    return read("out", lambda x: _output(parts, x), "out"), wrote


def _heads(block: BlockParts, read: Callable, layer: int, layout: Any) -> tuple[Tensor, Tensor | None]:
    """Write of every head `[image token head d_model]`, and the bias that belongs to none."""
    attn = block.attn
    inputs: dict[str, Callable[[Residual], Tensor]] = {
        "q": lambda x: attn.q(block.ln1(x)),
        "k": lambda x: attn.kv(block.ln1(x))[0],
        "v": lambda x: attn.kv(block.ln1(x))[1],
    }
    q, k, v = (
        torch.stack(
            [read(f"L{layer}H{head}.{name}", what, f"{name} {layer}")[:, :, head] for head in range(attn.n_heads)], 2
        )
        for name, what in inputs.items()
    )
    z = _attend(attn, q, k, v, layout)
    results = einsum(z, attn.out_weight(), "image token head e, head e d -> image token head d")
    bias = attn.out_bias()
    if block.scale1 is None:
        return results, bias
    return block.scale1(results), None if bias is None else block.scale1(bias.clone())


def _attend(attn: AttentionParts, q: Tensor, k: Tensor, v: Tensor, layout: Any) -> Tensor:
    """Queries, keys and values to z, all `[image token head d_head]`."""
    if attn.rotate is not None:
        q, k = attn.rotate(q, layout, None), attn.rotate(k, layout, None)
    scores = einsum(q, k, "image query head e, image key head e -> image head query key") * attn.scale
    scores = scores if attn.bias is None else scores + attn.bias(layout)
    # A model that computes its softmax in a type of its own (Hugging Face: float32) is followed.
    work = None if attn.fused() else attn.eager_softmax
    pattern = scores.softmax(-1, dtype=work).to(scores.dtype)
    z = einsum(pattern, v, "image head query key, image key head e -> image query head e")
    if attn.after is None:
        return z
    side_by_side = attn.after(rearrange(z, "image token head e -> image token (head e)"))
    return rearrange(side_by_side, "image token (head e) -> image token head e", head=attn.n_heads)


def _mlp(block: BlockParts, x: Residual) -> Residual:
    pre = block.mlp_in(block.ln2(x))
    post = block.act(pre[0]) * pre[1] if block.gated else block.act(pre)
    write = block.mlp_out(post if block.mlp_norm is None else block.mlp_norm(post))
    return write if block.scale2 is None else block.scale2(write)


def _output(parts: TowerParts, x: Residual) -> Tensor:
    x = parts.ln_final(x) if parts.norm == "tokens" else x
    x = x if parts.reads is None else x[:, list(parts.reads)]
    x = parts.ln_final(x) if parts.norm == "read" else x
    x = parts.pool(x if parts.pooling is None else _latents(parts.pooling, x))
    x = parts.ln_final(x) if parts.norm == "pooled" else x
    for last in (parts.project, parts.head):
        x = x if last is None else last(x)
    return x


def _latents(pooling: PoolingParts, tokens: Residual) -> Tensor:
    """Attention pooling, all of it part of the reader `out`."""
    q, (k, v) = pooling.attn.q(pooling.latents(len(tokens))), pooling.attn.kv(tokens)
    z = _attend(pooling.attn, q, k, v, None)
    x = pooling.attn.out(rearrange(z, "image latent head e -> image latent (head e)"))
    return x if pooling.mlp is None else x + _mlp(pooling.mlp, x)


def _base(model: Any, clean: Tensor, corrupt: Pixels | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What every writer writes in the other run."""
    if not isinstance(corrupt, Tensor):
        writers = _readers(model.parts)[-1][1]
        if missing := [writer for writer in writers if writer not in corrupt]:
            raise BadData(f"no replacement is given for the write of {missing[0]} ({len(missing)} of {len(writers)}).")
        if strange := set(corrupt).difference(writers):
            raise unknown("writer", min(strange), writers)
        return corrupt
    if corrupt.shape != clean.shape:
        raise ShapeMismatch(f"clean is {list(clean.shape)}, corrupt {list(corrupt.shape)}; edges need aligned pairs.")
    return writes_of(model, corrupt)


def _check(model: Any, pixels: Any) -> None:
    parts = model.parts
    if not all(block.linear_writes for block in parts.blocks):
        raise RefusedMethod(f"{parts.family} has a norm after its sub-layers: its stream is no sum of heads and MLPs.")
    if parts.modality != "image" or (parts.reads is not None and not isinstance(parts.reads, tuple)):
        raise RefusedMethod(f"{parts.family} is a text tower; this plain evaluator takes pixels.")
    model.inputs(pixels)
