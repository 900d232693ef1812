"""Inner products of what writers write differently and how readers answer: the scores of all edges.

    score[u -> v] = sum over tokens, d_model of (out_u - base_u) * g_v

Heads stay `d_head` wide until they meet a reader (:func:`mechvis.kernels.edge_scores.edge_scores`), one writing layer
at a time, so no `[writer token d_model]` tensor of all heads is made. The embedding and the MLPs, which write `d_model`
numbers anyway, meet the readers of a layer in one product. The plain twin is :mod:`circuits.attribution.split`.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from circuits.attribution.gradients import Readers
from circuits.edges.base import Outputs
from circuits.edges.wiring import Wiring
from mechvis.axes import PerHead
from mechvis.kernels.edge_scores import edge_scores


@dataclass(frozen=True, eq=False)
class Differences:
    """What writers write more than the base, as narrow as it can be kept."""

    heads: tuple[PerHead, ...]
    """Per layer, z."""
    streams: Float[Tensor, "writer image token d_model"]
    """The embedding, then the MLP of each layer."""

    @classmethod
    def of(cls, clean: Outputs, base: Outputs) -> "Differences":
        """Of a run and what cut edges carry instead."""
        streams = [clean.embed - base.embed, *(a - b for a, b in zip(clean.mlp, base.mlp, strict=True))]
        return cls(tuple(a - b for a, b in zip(clean.z, base.z, strict=True)), torch.stack(streams))


def contract(
    scores: Float[Tensor, "image writer reader"],
    differences: Differences,
    readers: slice,
    gradient: Readers,
    wires: Wiring,
    writers: slice | None = None,
) -> None:
    """Fill in the scores of some readers of one layer.

    Args:
        scores: written to.
        differences: what the writers write more than the base.
        readers: which readers the gradients are of: those of a layer with its MLP, a layer's MLP, or the read-out.
        gradient: `[reader image token d_model]`.
        wires: of the model.
        writers: fill in these only; default: all that come before.
    """
    graph = wires.graph
    before = int(graph.n_before[readers.stop - 1])
    first, last = (0, before) if writers is None else (writers.start, min(writers.stop, before))
    wide = [0, *(graph.writers_of(layer).stop for layer in range(graph.n_layers))]  # the embedding and the MLPs
    chosen = [place for place, writer in enumerate(wide) if first <= writer < last]
    if chosen:
        at = slice(chosen[0], chosen[-1] + 1)
        own = [wide[place] for place in chosen]
        for image in range(len(scores)):
            written = differences.streams[at, image].flatten(1)
            scores[image, own, readers] = written @ gradient[:, image].flatten(1).T
    by_image = rearrange(gradient, "reader image token d -> image token reader d")
    for layer in range(graph.n_layers):
        heads = graph.writers_of(layer)
        if first <= heads.start < last:
            found = edge_scores(differences.heads[layer], wires.out[layer], by_image)
            scores[:, heads, readers] = found.to(scores.dtype)
    # The heads of a layer come before its MLP, not before its own inputs.
    scores[:, :, readers] *= torch.from_numpy(graph.allowed[:, readers]).to(scores)


def to_edges(scores: Float[Tensor, "image writer reader"], wires: Wiring) -> Float[Tensor, "edge image"]:
    """Scores in the order of the graph's edges."""
    places = torch.from_numpy(wires.graph.places.copy()).to(scores.device)
    return scores[:, places[:, 0], places[:, 1]].T
