"""What every run with cut edges needs of a model: its graph, its output weights per head, and how forks are
projected.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.edges.base import Recorded
from circuits.edges.graph import EdgeGraph
from circuits.edges.inputs import LayerInputs, layer_inputs


@dataclass(frozen=True, eq=False)
class Wiring:
    """Made once per model and study; the weights are those of the moment it was made."""

    graph: EdgeGraph
    """Writers, readers, edges."""
    out: tuple[Float[Tensor, "head d_head d_model"], ...]
    """W_O of each layer as it acts on the stream."""
    inputs: tuple[LayerInputs, ...]
    """How each layer's queries, keys and values are made."""


@torch.no_grad()
def wiring(model: Any, clean: Recorded, *, products: bool = True) -> Wiring:
    """The wiring of a model.

    Args:
        model: a `HookedViT`.
        clean: a recorded run; its first two images are what short ways are tried on.
        products: False: project every fork with the user's modules (the plain twin).

    Raises:
        UnsupportedModel: the stream is no sum of components.
    """
    graph = EdgeGraph.of(model)
    out = tuple(block.attn.W_O.detach() for block in model.blocks)
    inputs = tuple(
        layer_inputs(block, stream[:2], products)
        for block, stream in zip(model.parts.blocks, clean.streams, strict=False)
    )
    return Wiring(graph, out, inputs)
