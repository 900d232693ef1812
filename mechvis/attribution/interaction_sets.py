"""The sets of patches that act together, with what each of them is worth, as a record: see `methods/h_sets.py`."""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from einops import rearrange

from mechvis import stats
from mechvis.attribution.attribute import labels_of, settle, vision_of
from mechvis.attribution.methods.h_sets import HSets, search
from mechvis.attribution.methods.shapley import all_masks
from mechvis.attribution.question import Question
from mechvis.errors import BadData
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.removal.game import Cost


class InteractionSets(Record):
    """Sets of patches that act together.

    Made by :func:`interaction_sets`. A row per image and set; arrays `sets` `[image set down across]` and
    `interactions` `[image patch patch]`.
    """

    KIND = "interaction_sets"


def interaction_sets(
    model: Any,
    images: Any,
    method: HSets | None = None,
    *,
    target: Any = "predicted",
    contrast: Any = None,
    form: Any = None,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> InteractionSets:
    """Which patches act together, and what each set does that its parts do not.

    Args:
        model: a wrapped vision model.
        images: as for :func:`mechvis.attribute`.
        method: settings; default `HSets()`.
        target, contrast, form: the score, as for :func:`mechvis.attribute`.
        seed: of the bootstrap.
        batch_size: images at a time.
        progress: show a bar.

    Returns:
        A row per image and set with at least two patches: its patches, the value of showing it alone (`value`), the
        sum of what its patches do alone (`alone`), and the dividend of the whole set (`dividend`), in the unit of the
        score.

    Raises:
        BadData: no set of two or more patches was found in any image; otherwise as :func:`mechvis.attribute`.

    Example:
        >>> found = interaction_sets(model, images, HSets(size=3))              # doctest: +SKIP
    """
    method = HSets() if method is None else method
    model, target = vision_of(model, target)
    ids, labels, cost = torch.arange(len(images)), labels_of(model, images), Cost()
    rows, sets, matrices = [], [], []
    with track(len(images), "interaction sets", " images", show=progress) as bar:
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            pixels = model.inputs(images[part])
            some = None if labels is None else labels[part]
            settled = settle(model, pixels, some, target, contrast, form, part)
            ask = Question(model=model, pixels=pixels, target=settled, ids=ids[part], seed=seed, cost=cost)
            found = search(method, ask)
            rows += _rows(found, method, start)
            sets.append(rearrange(found.sets, "i s (d a) -> i s d a", d=ask.grid[0]).numpy())
            matrices.append(found.interactions.numpy())
            bar.update(len(pixels))
    if not rows:
        raise BadData(f"no two patches interact by mu={method.mu} of the largest interaction; lower mu.")
    table = pl.DataFrame(rows)
    extra = table.group_by("image", maintain_order=True).agg((pl.col("value") - pl.col("alone")).mean())["value"]
    mean = stats.bootstrap(extra.to_numpy(), seed=seed)
    return InteractionSets(
        title=f"patches that act together, {len(images)} images",
        tables={"sets": table},
        arrays={"sets": np.concatenate(sets).astype(np.uint8), "interactions": np.concatenate(matrices)},
        facts={
            "settings": replace(method).settings(),
            "more_than_parts": float(mean.effect[0]),
            "more_than_parts_low": float(mean.low[0]) if mean.n[0] > 1 else None,
            "more_than_parts_high": float(mean.high[0]) if mean.n[0] > 1 else None,
            "images_with_sets": int(mean.n[0]),
            "forwards": cost.forwards,
            "backwards": cost.backwards,
        },
        words={
            "image": "place of the image in the set",
            "set": "which set of the image; the first holds the patch with the largest share",
            "patches": "patches of the set, counted row by row",
            "value": "score of showing only the set, less that of showing nothing",
            "alone": "sum of what its patches do when each is shown alone",
            "dividend": "what all patches together do that no part of the set does",
            "more_than_parts": "mean over images of value - alone, with a 95 % interval",
        },
        caveats=(
            "Sets are found by second derivatives at the whole image and valued with everything else removed: two "
            "different neighbourhoods of the model.",
        ),
        provenance=provenance(model, None, seed),
    )


def _rows(found: Any, method: HSets, start: int) -> list[dict[str, Any]]:
    rows, sizes = [], all_masks(method.size).sum(1)
    for image, sets in enumerate(found.sets):
        for number, one in enumerate(sets):
            count = int(one.sum())
            if count < 2:
                continue
            worth = found.dividends[image, number]
            rows.append(
                {
                    "image": start + image,
                    "set": number,
                    "patches": " ".join(str(int(patch)) for patch in one.nonzero().flatten()),
                    "value": float(worth.sum()),
                    "alone": float(worth[sizes == 1].sum()),
                    "dividend": float(worth[2**count - 1]),
                }
            )
    return rows
