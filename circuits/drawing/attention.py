"""What the heads of a circuit attend to: one small picture each, for its box in the figure.

A head's picture is its mean attention over images from the tokens that are read (CLS; all tokens for mean pooling) to
the patches, laid over a faint image where one is given.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from einops import rearrange, reduce

from circuits.edges.graph import EdgeGraph
from mechvis.axes import Pixels
from mechvis.errors import BadData, OutOfRange


def attention_pictures(
    model: Any, pixels: Pixels, nodes: Iterable[str], *, image: int | None = 0, batch_size: int = 16
) -> dict[str, np.ndarray]:
    """Pictures of the heads among some components.

    Args:
        model: a `HookedViT`.
        pixels: the images that attention is averaged over.
        nodes: names of components, e.g. `circuit.nodes`; those that are no heads get no picture.
        image: which image lies under the attention; with one, its own attention is shown instead of the mean. None: the
            mean, alone.
        batch_size: images per forward.

    Returns:
        Component -> `[height width 3]`, uint8.

    Raises:
        BadData: no image, or no head among the components.
        OutOfRange: no such image.
    """
    graph = EdgeGraph.of(model)
    heads = [name for name in nodes if name in graph.writers and "H" in name]
    if not heads:
        raise BadData("there is no head among these components, so there is no attention to draw.")
    if len(pixels) == 0:
        raise BadData("attention pictures need at least one image.")
    if image is not None and not 0 <= image < len(pixels):
        raise OutOfRange(f"image {image} of {len(pixels)}.")
    chosen = pixels if image is None else pixels[image : image + 1]
    layers = sorted({graph.depth(name)[0] for name in heads})
    total: dict[int, Any] = {}
    for start in range(0, len(chosen), batch_size):
        run = model.run(
            chosen[start : start + batch_size], capture=[f"blocks.{layer}.attn.hook_pattern" for layer in layers]
        )
        for layer in layers:
            pattern = run.cache[f"blocks.{layer}.attn.hook_pattern"]
            reads = model.parts.reads
            pattern = pattern[:, :, list(reads)] if isinstance(reads, tuple) else pattern
            own = reduce(pattern.double(), "image head query key -> head key", "sum") / pattern.shape[2]
            total[layer] = total.get(layer, 0) + own / len(chosen)
    prefix = len(model.parts.prefix)
    under = None if image is None else _visible(pixels[image])
    found = {}
    for name in heads:
        layer = graph.depth(name)[0]
        head = graph.writer(name) - graph.writers_of(layer).start
        weights = total[layer][head, prefix:]
        grid = _grid(model, pixels, len(weights))
        found[name] = _overlaid(rearrange(weights, "(down across) -> down across", down=grid[0]).cpu().numpy(), under)
    return found


def _grid(model: Any, pixels: Pixels, n: int) -> tuple[int, int]:
    size = model.parts.patch_size
    down, across = pixels.shape[2] // size[0], pixels.shape[3] // size[1]
    if down * across != n:
        raise BadData(f"{n} patches do not fill a grid of {down} x {across}.")
    return down, across


def _visible(pixels: torch.Tensor) -> np.ndarray:
    """A preprocessed image in grey, in 0 to 1."""
    grey = pixels.detach().double().mean(0).cpu().numpy()
    low, high = grey.min(), grey.max()
    return (grey - low) / (high - low) if high > low else np.full_like(grey, 0.5)


def _overlaid(weights: np.ndarray, under: np.ndarray | None) -> np.ndarray:
    """Attention as colour, `[height width 3]` uint8; the image under it as brightness."""
    from matplotlib import colormaps

    scaled = weights / weights.max() if weights.max() > 0 else weights
    shape = under.shape if under is not None else (scaled.shape[0] * 8, scaled.shape[1] * 8)
    rows = np.arange(shape[0]) * scaled.shape[0] // shape[0]
    columns = np.arange(shape[1]) * scaled.shape[1] // shape[1]
    colour = colormaps["viridis"](scaled[rows][:, columns])[..., :3]
    if under is not None:
        colour = colour * (0.45 + 0.55 * under[..., None])
    return (colour * 255).round().astype(np.uint8)
