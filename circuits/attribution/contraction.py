"""Inner products of what writers write differently and how readers answer: the scores of all edges.

    score[u -> v] = sum over tokens, d_model of (out_u - base_u) * g_v

Heads stay `d_head` wide until they meet a reader (:func:`mechvis.kernels.edge_scores.edge_scores`), one writing layer
at a time, so no `[writer token d_model]` tensor is made. The plain twin is :mod:`circuits.attribution.split`.
"""

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from circuits.attribution.gradients import Readers
from circuits.edges.base import Outputs
from circuits.edges.wiring import Wiring
from mechvis.kernels.edge_scores import edge_scores


def contract(
    scores: Float[Tensor, "image writer reader"],
    clean: Outputs,
    base: Outputs,
    readers: slice,
    gradient: Readers,
    wires: Wiring,
    writers: slice | None = None,
) -> None:
    """Fill in the scores of some readers of one layer.

    Args:
        scores: written to.
        clean: what the writers write.
        base: what cut edges carry instead.
        readers: which readers the gradients are of.
        gradient: `[reader image token d_model]`.
        wires: of the model.
        writers: fill in these only; default: all that come before.
    """
    graph = wires.graph
    before = int(graph.n_before[readers.start])
    by_image = rearrange(gradient, "reader image token d -> image token reader d")
    first, last = (0, before) if writers is None else (writers.start, min(writers.stop, before))
    if first == 0 and last > 0:
        scores[:, 0, readers] = _residual(clean.embed - base.embed, gradient)
    for layer in range(graph.n_layers):
        heads = graph.writers_of(layer)
        if heads.start >= before:
            break
        if first <= heads.start < last:
            change = clean.z[layer] - base.z[layer]
            scores[:, heads, readers] = edge_scores(change, wires.out[layer], by_image).to(scores.dtype)
        if heads.stop < before and first <= heads.stop < last:
            scores[:, heads.stop, readers] = _residual(clean.mlp[layer] - base.mlp[layer], gradient)


def _residual(change: Tensor, gradient: Readers) -> Float[Tensor, "image reader"]:
    return einsum(change, gradient, "image token d, reader image token d -> image reader")


def to_edges(scores: Float[Tensor, "image writer reader"], wires: Wiring) -> Float[Tensor, "edge image"]:
    """Scores in the order of the graph's edges."""
    places = torch.from_numpy(wires.graph.places.copy()).to(scores.device)
    return scores[:, places[:, 0], places[:, 1]].T
