"""F4, DepthNet: heads of twelve layers that write straight to the output, each layer by a known factor more.

One token, no norm. The image is one number x, +1 or -1, and every head (l, h) reads it from the embedding and writes
`s_h exp(g l) x` to a slot that only the classifier reads (`s` = +1 for the first three heads of a layer, -1 for the
last: who sums signed scores goes wrong). No head reads another one, and MLPs write nothing. So the effect of
`L{l}H{h}->out` on `logit_diff` toward the image's class is exactly

    s_h exp(g l)         when replaced by zero, on every image
    s_h exp(g l)         when replaced by the mean of balanced images, which is zero
    2 s_h exp(g l)       when replaced by the corrupt half of `depth_pairs` (-x)

and Inside-Out's dependency depth bias over bands of n layers is `DDB_out = g (12 - n)` whichever of the three is used,
since it is the logarithm of a ratio: -3.6, 0 and +3.6 for g = -0.4, 0 and 0.4 with n = 3 (methods.md 4.3, **P**).
"""

import math
from typing import Any

import torch

from mechvis.errors import BadData
from mechvis.testing.planted.pairs import PlantedPairs
from mechvis.testing.planted.wired import WiredViT, wrapped

DEPTH_LAYERS, DEPTH_HEADS = 12, 4
X, Y = 0, 1
SIGNS = (1.0, 1.0, 1.0, -1.0)


@torch.no_grad()
def depth_net(g: float = 0.4) -> Any:
    """F4 as a wrapped model: pixels `[image 1 1 1]`, two logits (y / 2, -y / 2).

    Args:
        g: how much louder each layer is than the one before, as an exponent.

    Raises:
        BadData: g is not a finite number.

    Example:
        >>> depth_net(0.0)(torch.ones(1, 1, 1, 1, dtype=torch.float64)).tolist()
        [[12.0, -12.0]]
    """
    if not math.isfinite(g):
        raise BadData(f"g={g}: expected a finite number, such as 0.4.")
    model = WiredViT(channels=1, d_model=2, n_layers=DEPTH_LAYERS, n_heads=DEPTH_HEADS, d_head=1, n_classes=2)
    model.embedding[0, X] = 1.0
    for layer in range(DEPTH_LAYERS):
        for index, sign in enumerate(SIGNS):
            head = model.head(layer, index)
            head.v[X, 0], head.o[0, Y] = 1.0, sign * math.exp(g * layer)
    model.readout[Y] = torch.tensor([0.5, -0.5])
    return wrapped(model, f"depth-net g={g:g}", class_names=("plus", "minus"))


def depth_effects(g: float = 0.4) -> dict[str, float]:
    """Writer -> the exact effect, in logits, of every head's edge to the output under zero (or mean) ablation."""
    return {
        f"L{layer}H{head}": sign * math.exp(g * layer)
        for layer in range(DEPTH_LAYERS)
        for head, sign in enumerate(SIGNS)
    }


def depth_pairs(n: int = 8) -> PlantedPairs:
    """Images +1 and -1 by turns; the corrupt half is the other sign. The halves are balanced, so their mean is zero.

    Raises:
        BadData: n is not a positive even number.
    """
    if n < 2 or n % 2:
        raise BadData(f"n={n}: balanced images come in pairs, so n is even and positive.")
    clean = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(n // 2).reshape(n, 1, 1, 1)
    labels = (clean.flatten() < 0).long()
    heads = [f"L{layer}H{head}" for layer in range(DEPTH_LAYERS) for head in range(DEPTH_HEADS)]
    edges = frozenset([f"embed->{head}.v" for head in heads] + [f"{head}->out" for head in heads])
    return PlantedPairs(
        name="depth",
        clean=clean,
        corrupt=-clean,
        clean_labels=labels,
        corrupt_labels=1 - labels,
        contrast=1 - labels,
        circuit=edges,
        active=edges,
    )
