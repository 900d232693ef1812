"""Read directions as images: the patches on which a head's (or MLP's) input directions are largest.

One pass over the images. The activation of a direction at a token is its dot product with what it reads there: the
centred and divided stream before attention (`ov`, folded), the norm's output (`ov`, unfolded), z (`o`), the neurons
after their activation (`mlp`). Of every image its best token counts; kept are the best images of every direction, for
both signs, with how far they lie above the mean of all tokens, in standard deviations: some patch is always the best.
"""

from typing import Any, Literal

import polars as pl
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from circuits.weights.directions import Directions
from circuits.weights.exact import block_of
from circuits.weights.table import WeightTable
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.norms import statistics
from mechvis.progress import track
from mechvis.provenance import provenance

WORDS = {
    "unit": "head or MLP, direction (strongest is 0), sign",
    "direction": "index of the direction",
    "sign": "+ or -: along the direction or against it; which is which is arbitrary",
    "rank": "1 for the image with the largest activation",
    "image": "place of the image in the set",
    "id": "its name, where it has one",
    "token": "the image's token with the largest activation; prefix tokens first",
    "row": "row of that patch in the grid; empty for a prefix token",
    "column": "column of it",
    "value": "activation: dot product with the direction that is read (minus it, for the sign -)",
    "z": "standard deviations above the mean over the tokens of all images",
}


@torch.no_grad()
def read_as_images(
    model: Any,
    images: Any,
    found: Directions,
    *,
    k: int = 8,
    tokens: Literal["patch", "all"] = "patch",
    batch_size: int = 64,
    progress: bool = True,
) -> WeightTable:
    """The images, and the patches in them, on which directions are largest.

    Args:
        model: the wrapped tower that the directions are of.
        images: an `ImageSet`, or pixels `[image channel height width]`.
        found: from :func:`circuits.weights.directions`.
        k: images per direction and sign; all if there are fewer.
        tokens: which tokens count: patches, or all.
        batch_size: images per forward.
        progress: show a progress bar.

    Returns:
        WeightTable: one row per direction, sign and rank.

    Raises:
        OutOfRange: k or batch_size below 1, or no such layer.
        ShapeMismatch: directions of another model.
        BadData: no image, or a text tower.

    Example:
        >>> read_as_images(model, images, directions(model, 2, 0, top=3)).top(5, "value", sign="+")  # doctest: +SKIP
    """
    if k < 1 or batch_size < 1:
        raise OutOfRange(f"k and batch_size are at least 1, got {k} and {batch_size}.")
    if tokens not in ("patch", "all"):
        raise unknown("kind of tokens", tokens, ("patch", "all"))
    block_of(model, found.layer)
    if model.parts.grid is None:
        raise BadData("images of directions need a vision model; this tower reads text.")
    if len(images) == 0:
        raise BadData("there is no image to look at.")
    first = len(model.parts.prefix) if tokens == "patch" else 0
    best, total, squares, count = _Best(k), 0.0, 0.0, 0
    with track(len(images), f"reading {found.name}", " images", show=progress) as bar:
        for start in range(0, len(images), batch_size):
            part = model.inputs(images[start : start + batch_size])
            seen = activations(model, part, found)[:, first:].double()  # [image token direction]
            grid = model.parts.at_size(tuple(part.shape[2:])).grid
            best.offer(seen, start)
            total, squares = total + seen.sum((0, 1)), squares + seen.square().sum((0, 1))
            count += seen.shape[0] * seen.shape[1]
            bar.update(len(part))
    mean = total / count
    sd = (squares / count - mean.square()).clamp(min=0).sqrt()
    ids, prefix, rows = getattr(images, "ids", None), len(model.parts.prefix), []
    for direction in range(len(found)):
        for sign, word in ((1, "+"), (-1, "-")):
            for rank, (value, image, place) in enumerate(best.of(direction, sign), 1):
                token, centre = place + first, sign * float(mean[direction])
                patch = token - prefix
                rows.append(
                    {
                        "unit": f"{found.name} {direction}{word}",
                        "direction": direction,
                        "sign": word,
                        "rank": rank,
                        "image": image,
                        "id": None if ids is None else ids[image],
                        "token": token,
                        "row": None if patch < 0 else patch // grid[1],
                        "column": None if patch < 0 else patch % grid[1],
                        "value": value,
                        "z": (value - centre) / float(sd[direction]) if float(sd[direction]) > 0 else 0.0,
                    }
                )
    facts = {"of": found.of, "layer": found.layer, "head": found.head, "folded": found.folded, "tokens": tokens}
    named = images if hasattr(images, "fingerprint") else None
    return WeightTable(
        kind="patches",
        title=f"What {found.name} reads, on {len(images)} images",
        table=pl.DataFrame(rows, schema_overrides={"id": pl.String, "row": pl.Int64, "column": pl.Int64}),
        words=WORDS,
        provenance=provenance(model, named, directions=facts),
    )


@torch.no_grad()
def activations(model: Any, pixels: Tensor, found: Directions) -> Float[Tensor, "image token direction"]:
    """Dot products of what is read at every token with the directions.

    Raises:
        ShapeMismatch: directions of another model.
    """
    at = f"blocks.{found.layer}."
    site = {
        "ov": at + ("hook_resid_pre" if found.folded else "ln1.hook_normalized"),
        "o": at + "attn.hook_z",
        "mlp": at + "mlp.hook_post",
    }[found.of]
    seen = model.run(pixels, capture=[site], stop_when_captured=True).cache[site]
    if found.of == "o":
        seen = seen[:, :, found.head]
    if seen.shape[-1] != found.reads.shape[1]:
        raise ShapeMismatch(
            f"{found!r} reads {found.reads.shape[1]} numbers, and {site} of this model has {seen.shape[-1]}: the "
            "directions are of another model."
        )
    if found.of == "ov" and found.folded:
        centred, scale = statistics(model.parts.blocks[found.layer].ln1, seen)
        seen = centred / scale
    return einsum(seen.to(found.reads), found.reads, "image token d, direction d -> image token direction")


class _Best:
    """The k images with the largest token of every direction and sign, as batches come by."""

    def __init__(self, k: int):
        self.k = k
        self.kept: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def offer(self, seen: Float[Tensor, "image token direction"], start: int) -> None:
        for sign in (1, -1):
            value, place = (sign * seen).max(1)
            image = torch.arange(start, start + len(seen), device=seen.device)[:, None].expand_as(value)
            if sign in self.kept:
                old = self.kept[sign]
                value, image, place = (torch.cat(pair) for pair in zip(old, (value, image, place), strict=True))
            value, order = value.topk(min(self.k, len(value)), dim=0)
            self.kept[sign] = (value, image.gather(0, order), place.gather(0, order))

    def of(self, direction: int, sign: int) -> list[tuple[float, int, int]]:
        value, image, place = (kept[:, direction].tolist() for kept in self.kept[sign])
        return list(zip(value, image, place, strict=True))
