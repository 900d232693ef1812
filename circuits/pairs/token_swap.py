"""Token swap: the contents of two sets of patches exchanged. What is there stays, where it is changes.

Exchanged are the pixels of whole patches, so that each content gets the position of the other. Exchanging the
embeddings at `hook_embed` would carry the positions along: in a ViT whose positions are added before the first block
attention does not see the order of tokens, the output stays the same to rounding, and such a pair says nothing
(`tests/circuits/pairs` holds it to that). The patch embedding reads each patch by itself, so exchanging pixels
exchanges exactly the contents' part of the embedding. Source: methods.md 5.8, 4 (**X**).
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from circuits.pairs.grid import grid_of, moved, object_patches
from circuits.pairs.halves import half_of, pairs_of
from circuits.pairs.pairs import Pairs
from mechvis.axes import Mask, Pixels
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, OutOfRange


def token_swap(
    model: Any,
    images: ImageSet | Pixels,
    first: Literal["object"] | Sequence[int] = "object",
    second: Sequence[int] | None = None,
    *,
    labels: Any = None,
    masks: Mask | None = None,
    seed: int = 0,
) -> Pairs:
    """Pairs whose corrupt half has two sets of patches exchanged, the i-th of the one with the i-th of the other.

    Args:
        model: a wrapped model.
        images: an `ImageSet`, or preprocessed pixels.
        first: token indices (as everywhere: prefix tokens first, then patches row by row), the same in all images; or
            `"object"`: the object's patches, by the masks.
        second: as many other tokens. With `"object"` leave it out: as many patches of the background (as far as there
            are), drawn by `seed`.
        labels, masks: for pixels.
        seed: of the draw.

    Returns:
        Pairs: the corrupt half has no label; the model's prediction counts. Masks move along.

    Raises:
        BadData: sets that overlap, or of different sizes; no masks.
        OutOfRange: a token that is no patch.

    Example:
        >>> pairs = token_swap(model, images, first=[1, 2], second=[64, 63])                       # doctest: +SKIP
    """
    half = half_of(model, images, labels, masks)
    grid, patch = grid_of(model, half.pixels)
    n_patches, n_prefix = grid[0] * grid[1], len(model.parts.prefix)
    order = torch.arange(n_patches).repeat(len(half.pixels), 1)
    if isinstance(first, str):
        if first != "object" or second is not None:
            raise BadData("token swap: give 'object' alone (its partners are drawn), or two lists of tokens.")
        generator = torch.Generator().manual_seed(seed)
        for row, own in zip(order, object_patches(model, half.pixels, half.masks, "token swap", 1), strict=True):
            rest = torch.tensor(sorted(set(range(n_patches)) - set(own.tolist())))
            if not len(rest):
                raise BadData("token swap: an object covers all patches, so there is no background to exchange with.")
            count = min(len(own), len(rest))
            own = own[torch.randperm(len(own), generator=generator)[:count]]
            _exchange(row, own, rest[torch.randperm(len(rest), generator=generator)[:count]])
    else:
        sets = [_patches(tokens, n_prefix, n_patches) for tokens in (first, second)]
        together = torch.cat(sets)
        if len(sets[0]) != len(sets[1]) or len(together.unique()) != len(together):
            raise BadData(
                f"token swap exchanges two sets of equal size without a token in common; got {list(first)} and "
                f"{list(second or [])}."
            )
        _exchange(order.T, *sets)
    own = None if half.masks is None else torch.as_tensor(half.masks)
    return pairs_of(
        model,
        f"token swap ({'object with background' if isinstance(first, str) else f'{len(first)} patches'})",
        half.pixels,
        moved(half.pixels, order, grid, patch),
        ids=half.ids,
        clean_labels=half.labels,
        masks=own,
        corrupt_masks=None if own is None else moved(own, order, grid, patch),
    )


def _exchange(order: Tensor, first: Tensor, second: Tensor) -> None:
    order[first], order[second] = order[second], order[first]


def _patches(tokens: Sequence[int] | None, n_prefix: int, n_patches: int) -> Tensor:
    if tokens is None or not len(tokens):
        raise BadData("token swap needs two sets of tokens: first=[...] and second=[...].")
    patches = torch.as_tensor(list(tokens)) - n_prefix
    if patches.is_floating_point() or bool(((patches < 0) | (patches >= n_patches)).any()):
        raise OutOfRange(
            f"token swap: {list(tokens)[:5]} are not all patches; those are tokens {n_prefix} to "
            f"{n_prefix + n_patches - 1}."
        )
    return patches
