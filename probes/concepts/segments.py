"""Pieces of an image at several sizes: what ACE puts into its clusters (methods.md 12; **K**).

* `grid`: cells of a grid, at several numbers of cells. Exact, quick, blind to what is in the image.
* `superpixels`: k-means on colour and place, at about 15, 50 and 80 pieces, in the place of SLIC (which is the same
  k-means, searched in windows around its seeds; **X**). A piece need not be one connected region.

A piece becomes an image of its own: everything around it is filled with one colour, and its box is enlarged to the
model's size. Enlarging changes the scale of a texture; `enlarge=False` leaves the piece where it was (**X**).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.errors import OutOfRange, ShapeMismatch, unknown

How = Literal["superpixels", "grid"]
SIZES = (15, 50, 80)
"""Pieces per image at each resolution (**K**: those of ACE)."""


def grid_segments(size: tuple[int, int], pieces: int) -> Int[np.ndarray, "height width"]:
    """Label map of a grid of about so many cells.

    Example:
        >>> grid_segments((4, 4), 4)[0].tolist()
        [0, 0, 1, 1]
    """
    if pieces < 1 or min(size) < 1:
        raise OutOfRange(f"{pieces} pieces of an image of {size}: at least one of each.")
    across = max(1, round(np.sqrt(pieces)))
    rows, columns = (np.minimum(np.arange(length) * across // length, across - 1) for length in size)
    return rows[:, None] * across + columns


def superpixels(
    colours: Float[np.ndarray, "height width channel"], pieces: int, *, compactness: float = 1.0, seed: int = 0
) -> Int[np.ndarray, "height width"]:
    """Label map of a k-means on colour and place.

    Args:
        colours: in [0, 1].
        pieces: how many, at most.
        compactness: how much a step of one piece's width weighs against the spread of the colours (**X**).
        seed: of k-means.

    Raises:
        ShapeMismatch: not `[height width channel]`.
        OutOfRange: no piece, or more than pixels.

    Example:
        >>> image = np.zeros((8, 8, 3))
        >>> image[:, 4:] = 1
        >>> len(np.unique(superpixels(image, 2)[:, :4])), len(np.unique(superpixels(image, 2)))
        (1, 2)
    """
    from sklearn.cluster import KMeans

    colours = np.asarray(colours, np.float64)
    if colours.ndim != 3:
        raise ShapeMismatch(f"colours [height width channel] are wanted, got {list(colours.shape)}.")
    height, width = colours.shape[:2]
    if not 1 <= pieces <= height * width:
        raise OutOfRange(f"{pieces} pieces of {height * width} pixels.")
    spread = max(float(np.sqrt(colours.reshape(-1, colours.shape[2]).var(0).sum())), 1e-6)
    step = np.sqrt(height * width / pieces)
    down, across = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    place = np.stack([down, across], axis=-1) / step * compactness
    features = np.concatenate([colours / spread, place], axis=-1).reshape(height * width, -1)
    seeds = _seeds(height, width, pieces)
    found = KMeans(len(seeds), init=features[seeds], n_init=1, max_iter=10, random_state=seed).fit_predict(features)
    return np.unique(found, return_inverse=True)[1].reshape(height, width)


def cut_out(
    pixels: Float[Tensor, "channel height width"],
    labels: Int[np.ndarray, "height width"],
    *,
    fill: float | Tensor = 0.0,
    enlarge: bool = True,
    least: int = 4,
) -> tuple[Float[Tensor, "piece channel height width"], list[np.ndarray]]:
    """Each piece as an image of the model's size.

    Args:
        pixels: of one image, as the model takes them.
        labels: the piece of each pixel.
        fill: what stands around a piece: 0 is the mean colour of the model's normalisation (**X**), or one value per
            channel.
        enlarge: enlarge the piece's box to the whole image; False: leave it in its place and size.
        least: pieces of fewer pixels are left out.

    Returns:
        The pieces, and the mask of each.

    Raises:
        ShapeMismatch: labels of another size.
    """
    if tuple(labels.shape) != tuple(pixels.shape[1:]):
        raise ShapeMismatch(f"labels {list(labels.shape)} for an image of {list(pixels.shape[1:])}.")
    fill = torch.as_tensor(fill, dtype=pixels.dtype)
    fill = fill.reshape(-1, 1, 1) if fill.ndim else fill
    found, masks = [], []
    for label in np.unique(labels):
        mask = labels == label
        if mask.sum() < least:
            continue
        masks.append(mask)
        if not enlarge:
            found.append(torch.where(torch.from_numpy(mask), pixels, fill))
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        inside = torch.from_numpy(mask[box])
        piece = torch.where(inside, pixels[(slice(None), *box)], fill)
        size = tuple(pixels.shape[1:])
        found.append(torch.nn.functional.interpolate(piece[None], size=size, mode="bilinear", align_corners=False)[0])
    if not found:
        return pixels.new_zeros(0, *pixels.shape), []
    return torch.stack(found), masks


def segments_of(
    pixels: Float[Tensor, "channel height width"],
    colours: Float[np.ndarray, "height width channel"],
    how: How = "superpixels",
    sizes: Sequence[int] = SIZES,
    *,
    fill: float | Tensor = 0.0,
    enlarge: bool = True,
    same: float = 0.5,
    seed: int = 0,
) -> tuple[Float[Tensor, "piece channel height width"], list[np.ndarray]]:
    """All pieces of one image at several resolutions, near copies left out.

    Args:
        pixels: as the model takes them.
        colours: the same image in [0, 1], for the superpixels.
        how: see the module.
        sizes: pieces at each resolution.
        fill: around the pieces.
        enlarge: see :func:`cut_out`.
        same: a piece that overlaps a larger one by more than this (intersection over union) is a copy (**X**).
        seed: of k-means.

    Raises:
        UnknownName: not one of the two.
    """
    if how not in ("superpixels", "grid"):
        raise unknown("kind of segments", how, ("superpixels", "grid"))
    found, masks = [], []
    for pieces in sizes:
        labels = (
            superpixels(colours, pieces, seed=seed) if how == "superpixels" else grid_segments(pixels.shape[1:], pieces)
        )
        cut, own = cut_out(pixels, labels, fill=fill, enlarge=enlarge)
        for piece, mask in zip(cut, own, strict=True):
            if all((mask & other).sum() <= same * (mask | other).sum() for other in masks):
                found.append(piece)
                masks.append(mask)
    return torch.stack(found) if found else pixels.new_zeros(0, *pixels.shape), masks


def _seeds(height: int, width: int, pieces: int) -> np.ndarray:
    """Pixels on a regular grid, where the clusters begin."""
    down = max(1, round(np.sqrt(pieces * height / width)))
    across = max(1, -(-pieces // down))
    rows = ((np.arange(down) + 0.5) * height / down).astype(int)
    columns = ((np.arange(across) + 0.5) * width / across).astype(int)
    return (rows[:, None] * width + columns).ravel()[:pieces]
