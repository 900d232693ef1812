"""A forward pass in which every edge has a gate: the engine under patching of edges, ACDC, pruning and evaluation.

With gate `g[u, v]` on the edge from writer u to reader v, the reader's input is

    in_v = sum_u ( g[u, v] out_u + (1 - g[u, v]) base_u )  =  stream - sum_u (1 - g[u, v]) (out_u - base_u)

where `out_u` is what u writes *in this run* (methods.md 5.6, 5.7 **C**). The second form is what is computed: the
stream is kept as the sum that it is, biases never enter, and a reader without a cut edge reads the stream itself. So a
run with all gates open is the plain forward, bit by bit, and costs nothing more.

1. Before the first layer with a cut edge, all circuits and the clean run agree: it restarts there from a recorded run.
2. Writers' differences `out_u - base_u` are made in `d_model` only for writers with a cut edge.
3. Readers with a cut edge get a fork of the stream: one bmm over the writers per layer; then the norm, and the head's
   own projection (:mod:`circuits.edges.inputs`). Attention stays fused.
4. In the last block only the tokens of the read-out are computed.

Gates may carry a gradient (edge pruning). The plain twin is :func:`mechvis.testing.planted.edge_forward`, which makes
every reader's input as the first form says.
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.edges.base import Outputs, Recorded, check_base
from circuits.edges.inputs import KINDS, project
from circuits.edges.wiring import Wiring, wiring
from mechvis import block as plain
from mechvis.errors import ShapeMismatch

Gates = Float[Tensor, "circuit writer reader"] | Bool[Tensor, "circuit writer reader"]
"""1: the edge carries what its writer writes; 0: the base. Entries where there is no edge are ignored."""
Streams = Float[Tensor, "circuit image token d_model"]
Differences = Float[Tensor, "circuit writer image token d_model"]


def gated(
    model: Any,
    clean: Recorded,
    base: Outputs,
    gates: Gates,
    *,
    wires: Wiring | None = None,
    restart: bool = True,
) -> Float[Tensor, "circuit image out"]:
    """Output of the model with some edges cut, for several circuits at once.

    Args:
        model: a `HookedViT`.
        clean: the recorded clean run of the images (:func:`circuits.edges.base.record`).
        base: what a cut edge carries; one row, or one per image.
        gates: float or bool.
        wires: graph and weights of the model; made here if left out (:func:`circuits.edges.wiring.wiring`).
        restart: begin at the first layer with a cut edge; False begins at the first block, whatever is cut (the plain
            twin of the restart).

    Raises:
        ShapeMismatch: gates that do not fit the graph.

    Example:
        >>> clean = record(model, pixels)                                                           # doctest: +SKIP
        >>> gates = torch.from_numpy(graph.mask(["L0H1->out"]))[None]                               # doctest: +SKIP
        >>> gated(model, clean, zeros(clean), gates).shape                                          # doctest: +SKIP
        torch.Size([1, 8, 10])
    """
    wires = wiring(model, clean) if wires is None else wires
    graph = wires.graph
    if tuple(gates.shape[1:]) != graph.shape:
        raise ShapeMismatch(
            f"gates are [circuit writer reader] = [n, {graph.shape[0]}, {graph.shape[1]}], got {list(gates.shape)}."
        )
    check_base(clean, base)
    allowed = torch.from_numpy(graph.allowed).to(model.device)
    cut = (1 - gates.to(model.device, model.dtype)) * allowed
    with torch.set_grad_enabled(gates.requires_grad):
        return _Pass(model, clean, base, cut, wires).run(restart)


class _Pass:
    """One gated forward: the streams, and the differences that later readers may be cut from."""

    def __init__(self, model: Any, clean: Recorded, base: Outputs, cut: Tensor, wires: Wiring):
        self.parts, self.clean, self.base, self.cut, self.wires = model.parts, clean, base, cut, wires
        graph = self.graph = wires.graph
        with torch.no_grad():
            # With a gradient every gate counts, also one that happens to be open now.
            some = cut if not cut.requires_grad else torch.from_numpy(graph.allowed).to(cut)[None]
            self.cut_readers = (some != 0).any(0).any(0)
            self.cut_writers = (some != 0).any(0).any(1)
        self.layout = clean.layout
        self.differences: list[tuple[Tensor, Differences]] = []
        """Pairs of indices of writers, and what they write more than the base."""
        reads = self.parts.reads
        self.read_tokens = list(reads) if isinstance(reads, tuple) else None

    def run(self, restart: bool) -> Tensor:
        n_layers = len(self.parts.blocks)
        first = next((layer for layer in range(n_layers) if self._touches(layer)), n_layers) if restart else 0
        self._add(torch.tensor([0]), self.clean.embed[None, None], self.base.embed)
        for layer in range(first):
            self._add_heads(layer, self.clean.z[layer][None])
            self._add_mlp(layer, self.clean.mlp[layer][None])
        x: Streams = self.clean.streams[first][None]
        if first == n_layers and self.read_tokens is not None:
            x = self._only_read(x)
        for layer in range(first, n_layers):
            x = self._block(layer, x)
        (forks,) = self._forks(x, [len(self.graph.readers) - 1])
        x = x if forks is None else forks
        out = plain.read_out(self.parts, x.flatten(0, 1), self._pick)
        out = out.unflatten(0, x.shape[:2])
        return out.expand(len(self.cut), *out.shape[1:])

    def _touches(self, layer: int) -> bool:
        place = self.graph.readers_of(layer)
        return bool(self.cut_readers[place.start : place.stop + 1].any())

    def _block(self, layer: int, x: Streams) -> Streams:
        block, last = self.parts.blocks[layer], layer == len(self.parts.blocks) - 1
        tokens = self.read_tokens if last else None
        z = self._heads(layer, x, tokens)
        if tokens is not None:
            x = self._only_read(x)
        self._add_heads(layer, z, tokens)
        write = plain.scaled(block.scale1, block.attn.out(plain.merge(z.flatten(0, 1)))).unflatten(0, z.shape[:2])
        mid = x + write
        (fork,) = self._forks(mid, [self.graph.readers_of(layer).stop])
        source = mid if fork is None else fork
        write = plain.mlp(block, source.flatten(0, 1)).unflatten(0, source.shape[:2])
        self._add_mlp(layer, write, tokens)
        return mid + write

    def _heads(
        self, layer: int, x: Streams, tokens: list[int] | None
    ) -> Float[Tensor, "circuit image query head d_head"]:
        """z of a layer, each head's inputs with their own cuts."""
        block, place = self.parts.blocks[layer], self.graph.readers_of(layer)
        n_heads = block.attn.n_heads
        touched = self.cut_readers[place].unflatten(0, (3, n_heads))
        if not touched.any():
            chosen = None if tokens is None else torch.tensor(tokens, device=x.device)
            z = plain.heads(block, block.ln1(x.flatten(0, 1)), self.layout, chosen)
            return z.unflatten(0, x.shape[:2])
        inputs = self.wires.inputs[layer]
        normalised = block.ln1(x.flatten(0, 1))
        projected = []
        for index, kind in enumerate(KINDS):
            own = tokens if kind == "q" else None
            heads = touched[index].nonzero()[:, 0]
            stream = x if own is None else x[:, :, own]
            whole = None
            if len(heads) < n_heads:
                whole = project(block.attn, kind, normalised if own is None else normalised[:, own])
                whole = whole.unflatten(0, x.shape[:2])
            if len(heads):
                readers = [place.start + index * n_heads + int(head) for head in heads]
                forks = torch.stack(self._forks(stream, readers, own))
                each = inputs.of(kind, heads, forks.flatten(1, 2)).unflatten(1, forks.shape[1:3])
                whole = _put(whole, heads, rearrange(each, "fork c i t e -> c i t fork e"))
            projected.append(whole)
        n = max(len(value) for value in projected)
        q, k, v = (value.expand(n, *value.shape[1:]).flatten(0, 1) for value in projected)
        chosen = None if tokens is None else torch.tensor(tokens, device=x.device)
        q, k = plain.place(block.attn, q, k, self.layout, chosen)
        z = plain.finish(block.attn, plain.mix(block.attn, q, k, v, self.layout, chosen))
        return z.unflatten(0, (n, -1))

    def _forks(self, stream: Streams, readers: Sequence[int], tokens: list[int] | None = None) -> list[Streams | None]:
        """What each of these readers reads; None where none of its edges is cut."""
        wanted = [reader for reader in readers if self.cut_readers[reader]]
        if not wanted:
            return [None] * len(readers)
        total: Any = 0
        for writers, difference in self.differences:
            share = self.cut[:, writers][:, :, wanted]  # [circuit writer fork]
            if not share.requires_grad and not share.any():
                continue
            difference = difference if tokens is None else difference[:, :, :, tokens]
            total = total + einsum(share, difference, "c w f, c w i t d -> f c i t d")
        whole = stream.expand(len(wanted), *stream.shape) - total
        forks = dict(zip(wanted, whole, strict=True))
        return [forks.get(reader) for reader in readers]

    def _add(self, writers: Tensor, written: Tensor, base: Tensor) -> None:
        """Remember what writers write `[circuit writer image token d_model]` more than the base `[image token d_model]`
        (or the base of each, with an axis `writer` in front)."""
        self.differences.append((writers, written - base))

    def _add_heads(self, layer: int, z: Tensor, tokens: list[int] | None = None) -> None:
        place = self.graph.writers_of(layer)
        heads = self.cut_writers[place].nonzero()[:, 0]
        if not len(heads):
            return
        base = self.base.z[layer]
        base = base if tokens is None else base[:, tokens]
        changed = (z - base)[..., heads, :]
        weight = self.wires.out[layer][heads]
        written = einsum(changed, weight, "c i t h e, h e d -> c h i t d")
        self.differences.append((heads.cpu() + place.start, written))

    def _add_mlp(self, layer: int, written: Streams, tokens: list[int] | None = None) -> None:
        writer = self.graph.writers_of(layer).stop
        if self.cut_writers[writer]:
            base = self.base.mlp[layer]
            base = base if tokens is None else base[:, tokens]
            self._add(torch.tensor([writer]), written[:, None], base)

    def _only_read(self, x: Streams) -> Streams:
        """The stream at the tokens of the read-out; what was written before is cut down too."""
        self.differences = [(writers, value[:, :, :, self.read_tokens]) for writers, value in self.differences]
        return x[:, :, self.read_tokens]

    def _pick(self, x: Tensor) -> Tensor:
        """Tokens that are read: they are all that is left, or all of them are read."""
        return x


def _put(whole: Tensor | None, heads: Tensor, values: Tensor) -> Tensor:
    """Values `[circuit image token fork d_head]` in the place of some heads; `whole` None: they are all heads."""
    if whole is None:
        return values
    n = max(len(whole), len(values))
    whole = whole.expand(n, *whole.shape[1:])
    values = values.expand(n, *values.shape[1:])
    return whole.index_copy(3, heads, values.to(whole.dtype))
