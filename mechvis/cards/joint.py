"""Ablating several units together: what a set does, which is not the sum of what its members do."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis import edits
from mechvis.attribution.attribute import labels_of
from mechvis.errors import BadData
from mechvis.means import Means, means
from mechvis.metrics import classes_of, get
from mechvis.units import Unit


def reference_values(model: Any, reference: Any, edit: str, units: Sequence[Unit]) -> Means | None:
    """What takes a unit's place: nothing for zero, means over reference images otherwise.

    Raises:
        BadData: means without reference images.
    """
    if edit == "zero":
        return None
    if reference is None:
        raise BadData("mean ablation needs reference images: CardData(reference=...).")
    return means(model, reference, sorted({unit.site for unit in units}))


def edits_of_set(units: Sequence[Unit], values: Means | None) -> list[edits.Edit]:
    """One edit per site for a set of units."""
    by_site: dict[str, list[Unit]] = {}
    for unit in units:
        by_site.setdefault(unit.site, []).append(unit)
    found = []
    for site, some in by_site.items():
        index = [unit.index for unit in some]
        where: Mapping[str, Any] = {}
        if some[0].kind in ("heads", "result"):
            where = {"heads": index}
        elif some[0].kind == "neurons":
            where = {"units": index}
        elif some[0].kind == "tokens":
            where = {"tokens": index}
        kind = edits.zero(site, **where) if values is None else edits.mean_positional(site, values, **where)
        found.append(kind)
    return found


def drops(
    model: Any, images: Any, sets: Sequence[Sequence[Unit]], values: Means | None, metric: str, batch: int = 64
) -> Float[np.ndarray, "set image"]:
    """metric(clean) - metric(set ablated) for every set and image.

    Args:
        model: a wrapped model.
        images: an `ImageSet` or pixels.
        sets: units to ablate together.
        values: from :func:`reference_values`.
        metric: name of a metric.
        batch: images that go through together.
    """
    return drops_of_edits(model, images, [edits_of_set(units, values) for units in sets], metric, batch)


def drops_of_edits(
    model: Any, images: Any, sets: Sequence[Sequence[edits.Edit]], metric: str, batch: int = 64
) -> Float[np.ndarray, "set image"]:
    """The same for lists of edits."""
    measure = get(metric)[1]
    labels = labels_of(model, images)
    found = []
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        pixels = model.inputs(images[part])
        clean = model.run(pixels).output
        target, contrast = classes_of(clean, None if labels is None else labels[part])
        before = measure(clean, target, contrast, clean)
        rows: list[Tensor] = []
        for asked in sets:
            edited = model.run(pixels, asked).output
            rows.append(before - measure(edited, target, contrast, clean))
        found.append(torch.stack(rows).double().cpu().numpy())
    return np.concatenate(found, 1)
