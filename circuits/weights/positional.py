"""Is a head's pattern a matter of positions? Three predictions that know nothing of the image, against its patterns.

For every head and evaluation image, with A its pattern and U uniform attention,

    R^2 = 1 - ||A - prediction||^2 / ||A - U||^2             1: explained;  0: no better than uniform attention

*pattern mean*       the mean pattern of reference images: whatever is the same in all images, by position;
*positional stream*  the pattern that the head's own queries and keys make of the mean, over reference images, of what
                     each token's norm hands to attention: what positions alone would make it look at, through QK. In
                     layer 0 that is the position embedding with a mean patch, deeper also what layers have added for a
                     place. Rotary positions, position bias and q-norm take part as they are (the head itself is asked,
                     nothing is folded);
*popular keys*       one row for all queries, the mean over reference images and queries: how much is due to keys that
                     everybody looks at. Position matters to the query only where the first is above this one.

The mean is taken behind the norm (**X**): the mean of the stream before it is shorter than any image's stream, and the
norm would blow its positional part up.

The reference images have no part in the evaluation, so a prediction is not flattered by the image it predicts; with few
of them it is noisy, and R^2 a little low. An R^2 below zero is worse than uniform attention. A head that attends
uniformly to everything on an image has nothing to explain there (NaN, not counted).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.weights.patterns import each_pattern, parts_for
from circuits.weights.per_head import heads_of, result_of_heads
from mechvis import block as blocks
from mechvis.axes import Pattern
from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.errors import BadData, OutOfRange
from mechvis.provenance import provenance
from mechvis.results import Result
from mechvis.sweep_inputs import image_table

METRICS = ("pattern mean", "positional stream", "popular keys")

NOTHING = 1e-8
"""Mean squared distance from uniform attention, per query, below which there is nothing to explain."""


def positional_scores(
    model: Any,
    images: Any,
    *,
    reference: Any = None,
    share: float = 1 / 3,
    layers: Iterable[int] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """How much of every head's pattern positions alone explain, with intervals over images.

    Args:
        model: a wrapped vision tower.
        images: an `ImageSet`, or pixels.
        reference: images that the predictions are made of; by default a part of `images`, drawn by `seed`, which is
            then not evaluated.
        share: which part, if `reference` is left out.
        layers: only these layers. Memory: one mean pattern per layer is held.
        batch_size: images per forward; default: by memory.
        seed: of the split and of the bootstrap.
        progress: show progress bars.

    Returns:
        Result: metrics `pattern mean`, `positional stream` and `popular keys`; `effect` is R^2, a share.

    Raises:
        BadData: too few images, a text tower, or nothing to explain anywhere.
        SplitOverlap: reference images that are evaluated too.
        OutOfRange: no such layer, or `share` outside 0 to 1.

    Example:
        >>> found = positional_scores(model, mechvis.data.scenes(300))                             # doctest: +SKIP
        >>> found.top(5, metric="positional stream")                                               # doctest: +SKIP
    """
    if not 0 < share < 1:
        raise OutOfRange(f"share is the part of the images that is set aside, between 0 and 1; got {share}.")
    listed, heads = heads_of(model, layers)
    images, reference = _split(images, reference, share, seed)
    settings = {"batch_size": batch_size, "progress": progress}
    means, normal = _references(model, reference, listed, settings)
    layout = _layout(model, reference)
    predicted = {}
    for layer in listed:
        through = position_pattern(model, layer, normal[layer], layout)
        popular = means[layer].mean(1, keepdim=True).expand_as(means[layer])
        predicted[layer] = torch.stack([means[layer], through.to(means[layer]), popular])
    values = {name: np.full((len(heads), len(images)), np.nan) for name in METRICS}
    row_of = {(head["layer"], head["head"]): row for row, head in enumerate(heads)}
    for which, layer, pattern, _ in each_pattern(model, images, listed, what="positional scores", **settings):
        rows = slice(row_of[layer, 0], row_of[layer, 0] + pattern.shape[1])
        for name, prediction in zip(METRICS, predicted[layer], strict=True):
            values[name][rows, which] = explained(pattern, prediction).T.cpu().numpy()
    named = images if isinstance(images, ImageSet) else None
    facts = {"layers": listed, "reference": getattr(reference, "fingerprint", ""), "reference_images": len(reference)}
    return result_of_heads(
        "positional",
        "How much of a head's pattern positions explain",
        heads,
        values,
        columns={},
        images=image_table(images),
        provenance=provenance(model, named, seed=seed, positional=facts),
        seed=seed,
    )


@torch.no_grad()
def position_pattern(
    model: Any, layer: int, normalised: Float[Tensor, "token d_model"], layout: Any = None
) -> Float[Tensor, "head query key"]:
    """The pattern that a layer's own queries and keys make of one normalised stream.

    Args:
        model: a wrapped tower.
        layer: block.
        normalised: what attention reads, e.g. the mean over images of `ln1.hook_normalized` per token.
        layout: what the family's positions need (`model.parts.layout(size)`).

    Example:
        >>> site = "blocks.0.ln1.hook_normalized"                                                  # doctest: +SKIP
        >>> position_pattern(model, 0, mechvis.means(model, images, site)[site]).shape             # doctest: +SKIP
        torch.Size([4, 65, 65])
    """
    attn = model.parts.blocks[layer].attn
    q, k, _ = blocks.project(attn, normalised[None])
    q, k = blocks.place(attn, q, k, layout)
    return blocks.pattern_of(attn, blocks.scores_of(attn, q, k, layout))[0]


def explained(pattern: Pattern, prediction: Float[Tensor, "head query key"]) -> Float[Tensor, "image head"]:
    """R^2 of patterns by a prediction, against uniform attention; NaN for uniform patterns."""
    pattern, prediction = pattern.double(), prediction.double()
    total = (pattern - 1 / pattern.shape[-1]).square().sum((-2, -1))
    rest = (pattern - prediction).square().sum((-2, -1))
    some = total > NOTHING * pattern.shape[-2]
    return torch.where(some, 1 - rest / torch.where(some, total, 1.0), torch.nan)


@torch.no_grad()
def _references(model: Any, reference: Any, listed: list[int], settings: dict) -> tuple[dict, dict]:
    """Mean patterns and mean normalised streams by layer, accumulated in double precision."""
    patterns: dict[int, Tensor] = {}
    normal: dict[int, Tensor] = {}
    for _, layer, pattern, stream in each_pattern(model, reference, listed, what="reference patterns", **settings):
        for held, value in ((patterns, pattern), (normal, model.parts.blocks[layer].ln1(stream))):
            total = value.sum(0, dtype=torch.float64)
            held[layer] = held[layer] + total if layer in held else total
    n = len(reference)
    return (
        {at: total / n for at, total in patterns.items()},
        {at: (total / n).to(model.dtype) for at, total in normal.items()},
    )


def _layout(model: Any, images: Any) -> Any:
    return None if model.parts.layout is None else model.parts.layout(parts_for(model, images).image_size)


def _split(images: Any, reference: Any, share: float, seed: int) -> tuple[Any, Any]:
    if reference is not None:
        if isinstance(images, ImageSet) and isinstance(reference, ImageSet):
            refuse_overlap(reference, images, what="reference and evaluated images")
        return images, reference
    order = np.random.default_rng(seed).permutation(len(images))
    aside = round(share * len(images))
    if not 0 < aside < len(images):
        raise BadData(
            f"{len(images)} images leave none for the reference or none to evaluate. Use more, or reference=."
        )
    chosen = [np.sort(part) for part in (order[aside:], order[:aside])]
    if isinstance(images, Tensor):
        chosen = [torch.from_numpy(part).to(images.device) for part in chosen]
    return images[chosen[0]], images[chosen[1]]
