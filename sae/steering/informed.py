"""Steering-informed top-k: a latent's top images, masked to where it is active, and steered there (methods.md 8).

1. The k images on which the latent is strongest; each is kept where the latent is active (patches with an activation
   above zero, black elsewhere, as in the released code [C]).
2. Run them, with the latent's direction added at the active tokens only.
3. Read the change from the blank image's output, averaged over the k.

Beside it the two halves alone: the masked images unsteered (top-k, what is usually done) and the same images with a
random direction. In the paper the combination was best on all four of its measures [N].
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.errors import BadData, OutOfRange
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record
from sae.splicing.splice import splice_parts
from sae.steering.controls import random_like
from sae.steering.outputs import Blank, blank_pixels, steered_outputs
from sae.steering.quality import activation_iou
from sae.steering.readers import Reader, reader_of

WORDS = {
    "latent": "number of the latent",
    "labels": "labels whose score rises most, top images masked and steered",
    "top_k_labels": "the same without steering: the masked top images alone",
    "steered_share": "share of the change of the first label that steering adds to the masked images",
    "similarity": "mean score of the first label on the masked, unsteered top images, minus that of all labels",
    "random_similarity": "the same for the label that a random direction gives",
    "iou": "patches where the latent is active and the given mask is, over patches where either is; on the top images",
    "images": "the top images",
    "active": "share of the top images' patches where the latent is active",
    "n": "top images on which the latent is active",
}


class InformedExplanations(Record):
    """Labels of latents by steered top images; see :func:`informed_top_k`."""

    KIND = "informed_explanations"


def informed_top_k(
    model: Any,
    dictionary: Any,
    latents: Sequence[int],
    images: Any,
    *,
    texts: Sequence[str] | None = None,
    site: str | None = None,
    k: int = 5,
    rho: float = 1.0,
    blank: Blank = "white",
    masks: Bool[Tensor, "image height width"] | None = None,
    top: int = 5,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> InformedExplanations:
    """Labels of latents from their top images, masked to where they are active and steered there.

    Args:
        model: a `HookedCLIP` with `texts`, or a classifier.
        dictionary: of a site `[row token d]` of the vision tower.
        latents: which.
        images: an `ImageSet`, or pixels.
        texts: for CLIP: the vocabulary.
        site: what the dictionary writes, by default the name that it was trained on.
        k: top images per latent.
        rho: strength, relative to the mean length of the activation.
        blank: image whose output every change is measured from.
        masks: where a concept is, for `iou` (e.g. the images' object masks).
        top: labels per latent.
        batch_size: images per forward.
        seed: of the random direction.
        progress: show a progress bar.

    Returns:
        InformedExplanations: a row per latent; one that is never active has no labels.

    Raises:
        BadData: no latent of these is ever active.
        OutOfRange: a latent, k or rho that cannot be.
    """
    reader = reader_of(model, texts)
    part = splice_parts(reader.model, dictionary, site=site)
    chosen = [int(latent) for latent in latents]
    if not chosen or k < 1 or top < 1 or any(not 0 <= latent < part.n_latents for latent in chosen):
        raise OutOfRange(
            f"latents={chosen[:6]}, k={k}, top={top}: latents from 0 to {part.n_latents - 1}, and at least one of each."
        )
    codes = _codes(reader.model, part, images, chosen, batch_size)
    before = reader.scores(reader.model.run(blank_pixels(reader.model, blank, seed=seed)).output)[0]
    black = blank_pixels(reader.model, "black")
    n_prefix = len(reader.model.parts.prefix)
    rows, changes = [], []
    with track(len(chosen), "steering top images", " latents", show=progress) as bar:
        for place, latent in enumerate(chosen):
            bar.update(1)
            strongest = codes[place].amax(1)
            order = strongest.argsort(descending=True, stable=True)[:k]
            order = order[strongest[order] > 0].tolist()
            if not order:
                rows.append({"latent": latent, "labels": [], "top_k_labels": [], "images": [], "n": 0})
                changes.append(np.full(len(reader.labels), np.nan))
                continue
            active = codes[place][order] > 0
            pixels = reader.model.inputs(images[order])
            masked = masked_to(pixels, active[:, n_prefix:], reader.model.parts.grid, black)
            direction = part.directions().detach()[latent][None]
            drawn = random_like(direction, seed + latent)
            plain = reader.scores(reader.model.run(masked).output)
            steered, random = (
                reader.scores(steered_outputs(reader.model, masked, part.site, d, rho, tokens=active)[0])
                for d in (direction, drawn)
            )
            rows.append(
                {
                    "latent": latent,
                    "labels": reader.explain((steered - before).mean(0)[None], top)[0],
                    "top_k_labels": reader.explain((plain - before).mean(0)[None], top)[0],
                    **_judged(plain, steered, random, before),
                    "iou": None if masks is None else _iou(codes[place][order], masks[order], reader, n_prefix),
                    "images": _names(images, order),
                    "active": float(active[:, n_prefix:].double().mean()),
                    "n": len(order),
                }
            )
            changes.append((steered - before).mean(0).double().cpu().numpy())
    if not any(row["n"] for row in rows):
        raise BadData("none of these latents is active on these images, so there are no top images to steer.")
    return InformedExplanations(
        title=f"{len(chosen)} latents of {part.site} by steered top images",
        tables={"latents": pl.DataFrame(rows, infer_schema_length=None, schema_overrides=_LISTS)},
        arrays={"change": np.stack(changes)},
        facts={"labels": list(reader.labels), "read_by": reader.kind, "k": k, "rho": rho, "site": part.site,
               "n_images": len(images)},
        words=WORDS,
        caveats=("What is masked to black is far from any image, and the labels also say what the images show.",),
        provenance=provenance(model=reader.model, seed=seed, dictionary=part.identity),
    )  # fmt: skip


_LISTS = {name: pl.List(pl.String) for name in ("labels", "top_k_labels", "images")}


def masked_to(
    pixels: Float[Tensor, "image channel height width"],
    active: Bool[Tensor, "image patch"],
    grid: tuple[int, int],
    other: Float[Tensor, "1 channel height width"],
) -> Float[Tensor, "image channel height width"]:
    """Images where a latent is active, something else elsewhere (nearest neighbour, patch by patch)."""
    on = active.unflatten(1, grid)[:, None].to(pixels)
    on = torch.nn.functional.interpolate(on, size=pixels.shape[2:], mode="nearest") > 0.5
    return torch.where(on, pixels, other.to(pixels))


def _codes(model: Any, part: Any, images: Any, latents: list[int], batch_size: int) -> Float[Tensor, "latent image t"]:
    found = []
    for start in range(0, len(images), batch_size):
        x = model.run(images[start : start + batch_size], capture=[part.reads]).cache[part.reads]
        with torch.no_grad():
            found.append(part.encode(x.flatten(2) if x.ndim == 4 else x)[..., latents])
    return torch.cat(found).movedim(-1, 0)


def _judged(plain: Tensor, steered: Tensor, random: Tensor, before: Tensor) -> dict[str, float]:
    change = (steered - before).mean(0)
    best, drawn = int(change.argmax()), int((random - before).mean(0).argmax())
    gained = (steered - plain).mean(0)[best]
    centred = plain.mean(0) - plain.mean()
    share = float(gained / change[best]) if float(change[best].abs()) > 1e-6 else 0.0
    return {
        "steered_share": share,
        "similarity": float(centred[best]),
        "random_similarity": float(centred[drawn]),
    }


def _iou(codes: Tensor, masks: Tensor, reader: Reader, n_prefix: int) -> float | None:
    grid = reader.model.parts.grid
    area = torch.nn.functional.adaptive_avg_pool2d(masks[:, None].double(), grid)[:, 0].flatten(1)
    there = (area > 0.5).cpu().numpy()
    patches = codes[:, n_prefix:].double().cpu().numpy()
    return activation_iou(patches, there) if there.any() or (patches > 0).any() else None


def _names(images: Any, order: list[int]) -> list[str]:
    ids = getattr(images, "ids", None)
    return [ids[i] if ids is not None else f"image {i}" for i in order]
