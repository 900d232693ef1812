"""Stress tests: nothing, grey, or noise in the place of the image.

Such halves are far from any image, so an effect over them says how the model leaves its habits, not what it uses: look
at them to see whether a finding depends on the pairs, never as the only pairs. :func:`circuits.pairs.check_pairs` finds
most of them collapsed; pass `entropy_ratio=None` to look at the rest. Source: methods.md 5.8, 7 (**X**).
"""

from typing import Any, Literal

import torch
from torch import Tensor

from circuits.pairs.halves import half_of, pairs_of, preprocess_of
from circuits.pairs.pairs import Pairs
from mechvis.axes import Pixels
from mechvis.data.images import ImageSet
from mechvis.errors import unknown

Kind = Literal["zero", "grey", "noise"]
KINDS = ("zero", "grey", "noise")


def stress(model: Any, images: ImageSet | Pixels, *, kind: Kind = "zero", labels: Any = None, seed: int = 0) -> Pairs:
    """Pairs whose corrupt half shows nothing of the clean one.

    Args:
        model: a wrapped model.
        images: an `ImageSet`, or preprocessed pixels.
        kind: `zero`: pixels of 0 after preprocessing (the mean colour that preprocessing takes off); `grey`: the middle
            of the colour range; `noise`: every colour of every pixel uniform in that range.
        labels: class index per image, for pixels.
        seed: of the noise.

    Raises:
        UnknownName: another kind.

    Example:
        >>> pairs = stress(model, images, kind="noise", seed=2)                                    # doctest: +SKIP
    """
    if kind not in KINDS:
        raise unknown("stress test", kind, KINDS)
    half = half_of(model, images, labels)
    return pairs_of(
        model,
        f"stress test: {kind}",
        half.pixels,
        _filled(model, half.pixels, kind, seed),
        ids=half.ids,
        clean_labels=half.labels,
        masks=half.masks,
    )


def _filled(model: Any, pixels: Tensor, kind: str, seed: int) -> Tensor:
    if kind == "zero":
        return torch.zeros_like(pixels)
    if kind == "grey":
        return preprocess_of(model).normalise(torch.full_like(pixels, 0.5))
    drawn = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return preprocess_of(model).normalise(drawn.to(pixels.device, pixels.dtype))
