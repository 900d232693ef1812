"""Which images of a class, which pieces of them, and the pictures that show a concept: what CRAFT is fed and gives."""

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, OutOfRange, unknown
from probes.concepts.crops import crops
from probes.concepts.tail import activations, pixels_of

Chosen = Literal["predicted", "labelled", "all"]


def images_of_class(
    model: Any, images: Any, number: int, chosen: Chosen = "predicted", batch_size: int = 64, *, least: int = 4
) -> Any:
    """The images of a class: those that the model assigns to it, those labelled so, or all.

    Raises:
        BadData: fewer than `least` of them.
        UnknownName: not one of the choices.
    """
    if chosen not in ("predicted", "labelled", "all"):
        raise unknown("choice of images", chosen, ("predicted", "labelled", "all"))
    if chosen == "all":
        of_class = np.arange(len(images))
    elif chosen == "labelled":
        if getattr(images, "labels", None) is None:
            raise BadData("chosen='labelled' needs images with labels; use chosen='predicted'.")
        of_class = np.flatnonzero(np.asarray(images.labels) == number)
    else:
        with torch.no_grad():
            parts = [
                model.run(pixels_of(model, images[start : start + batch_size])).output.argmax(-1).cpu()
                for start in range(0, len(images), batch_size)
            ]
        of_class = np.flatnonzero(torch.cat(parts).numpy() == number)
    if len(of_class) < least:
        raise BadData(
            f"{len(of_class)} of {len(images)} images are chosen (chosen={chosen!r}, class {number}): at least {least} "
            "are needed. Give more images, or choose them differently."
        )
    return images[of_class]


def halves(n: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the images to fit on and of the rest, at random, at least one each."""
    if not 0 < share < 1:
        raise OutOfRange(f"fit_share={share}: some images are needed to fit and some to measure.")
    order = np.random.default_rng(seed).permutation(n)
    cut = min(max(round(share * n), 1), n - 1)
    return np.sort(order[:cut]), np.sort(order[cut:])


@torch.no_grad()
def pieces_of(
    model: Any, images: Any, site: str, layer: int | None, crop: float, batch_size: int
) -> tuple[Float[Tensor, "image place d"], tuple[int, int]]:
    """What is factored, and the grid it lies on."""
    if layer is not None:
        rows = activations(model, images, site, batch_size=batch_size)[0]
        return rows, model._for_size(tuple(pixels_of(model, images[:1]).shape[2:]))[0].grid
    found, grid = [], (1, 1)
    for start in range(0, len(images), batch_size):
        cut, grid = crops(pixels_of(model, images[start : start + batch_size]), crop)
        rows = [model.run(part, capture=[site]).cache[site].flatten(1) for part in cut.flatten(0, 1).split(batch_size)]
        found.append(torch.cat(rows).cpu().unflatten(0, cut.shape[:2]))
    return torch.cat(found), grid


def pictures_of(
    model: Any, images: Any, codes: np.ndarray, grid: tuple[int, int], top: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each concept the images that hold most of it, in colours, and its map on them."""
    k = codes.shape[2]
    if model.preprocess is None or top < 1:
        return np.zeros((0, 0, 1, 1, 3), np.uint8), np.zeros((0, 0, *grid), np.float32)
    top = min(top, len(codes))
    best = np.argsort(-codes.max(1), axis=0, kind="stable")[:top].T  # [concept rank]
    used, where = np.unique(best, return_inverse=True)
    colours = model.preprocess.unnormalise(pixels_of(model, images[used]).float().cpu())
    drawn = (colours * 255).round().byte().permute(0, 2, 3, 1).numpy()
    if drawn.shape[-1] not in (1, 3):
        return np.zeros((0, 0, 1, 1, 3), np.uint8), np.zeros((0, 0, *grid), np.float32)
    maps = np.clip(codes, 0, None).reshape(len(codes), *grid, k)
    chosen = np.stack([maps[best[i], ..., i] for i in range(k)]).astype(np.float32)
    return drawn[where.reshape(best.shape)], chosen
