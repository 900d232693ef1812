"""A linear network: where attribution patching is not an estimate but the truth, on every edge.

Two layers of heads and MLPs with random weights, no norm, no activation, and queries and keys of zero, so that every
head averages its values over all tokens. The output is then linear in what every writer writes, and the gradient of a
linear metric gives the exact effect of replacing an edge: EAP (any number of points, any rule) equals exact patching.

There is no CLS token: its embedding is the same on all images, so some edges would carry nothing.
"""

from typing import Any

import torch

from mechvis.errors import BadData
from mechvis.testing.planted.edge_oracle import edges_of
from mechvis.testing.planted.pairs import PlantedPairs
from mechvis.testing.planted.wired import WiredViT, wrapped

CHANNELS, GRID, CLASSES = 3, (2, 2), 3


@torch.no_grad()
def linear_net(seed: int = 0, *, n_layers: int = 2, n_heads: int = 3) -> Any:
    """The model, wrapped: pixels `[image 3 2 2]`, four patches of which the first is read, three logits, all biases
    but those of q and k non-zero.

    Args:
        seed: of the weights.
        n_layers: blocks.
        n_heads: heads per block.

    Example:
        >>> from mechvis.testing.planted import edges_of
        >>> len(edges_of(linear_net()))
        75
    """
    model = WiredViT(
        channels=CHANNELS,
        d_model=8,
        n_layers=n_layers,
        n_heads=n_heads,
        d_head=4,
        d_mlp=6,
        n_classes=CLASSES,
        grid=GRID,
    )
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            continue
        fan_in = parameter.shape[-1] if parameter.ndim > 1 else 1
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) / fan_in**0.5)
    return wrapped(model, "linear-net", class_names=("a", "b", "c"))


def linear_pairs(model: Any, n: int = 6, seed: int = 1) -> PlantedPairs:
    """Pairs of random images; the labels are the model's own predictions, the contrast is the corrupt prediction, or
    the next class where the two agree.

    Every edge but those into q and k is active.

    Args:
        model: from :func:`linear_net`.
        n: how many.
        seed: of the pixels.

    Raises:
        BadData: no pair is asked for.
    """
    if n < 1:
        raise BadData(f"n={n}: expected at least one pair.")
    generator = torch.Generator().manual_seed(seed)
    clean, corrupt = torch.randn(2, n, CHANNELS, *GRID, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        labels, others = model(clean).argmax(-1), model(corrupt).argmax(-1)
    edges = frozenset(edge for edge in edges_of(model) if not edge.endswith((".q", ".k")))
    return PlantedPairs(
        name="linear",
        clean=clean,
        corrupt=corrupt,
        clean_labels=labels,
        corrupt_labels=others,
        contrast=torch.where(labels == others, (labels + 1) % CLASSES, others),
        circuit=edges,
        active=edges,
    )
