"""Roles of attention heads, from their patterns over images: who looks where, and is that more than it seems?

1. One pass over the images: for every head and image the score of every role and its control
   (:mod:`circuits.weights.role_scores` says what they are).
2. effect = score - control, averaged over images, with a 95 % interval over images and a correction over heads.
3. excess = effect / (1 - control): 0 is the control, 1 a head that does nothing else. Only in this measure can roles be
   compared with each other; :func:`top_roles` names the largest, where it is above its control for sure.

A role is what a pattern looks like. It is no proof that the head does anything with it: heads that attend to the object
may write nothing (ablate them: `mechvis.sweep`), and a head may serve by what its pattern hardly shows.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool
from torch import Tensor

from circuits.weights.patterns import each_pattern, parts_for
from circuits.weights.per_head import heads_of, result_of_heads
from circuits.weights.role_scores import (
    ROLES,
    Places,
    mean_distance,
    object_scores,
    other_masks,
    places,
    role_scores,
)
from mechvis.axes import Mask
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, OutOfRange, ResultMismatch, unknown
from mechvis.patches import patch_groups
from mechvis.provenance import provenance
from mechvis.results import Result
from mechvis.sweep_inputs import image_table

ROUNDING = 1e-6
"""Differences of score and control below this are rounding of float32 patterns, and count as zero."""

LEAST = 0.1
"""Smallest excess that gives a head its name (**X**)."""

QUERIES = ("read", "patch", "all")


def head_roles(
    model: Any,
    images: Any,
    *,
    masks: Mask | None = None,
    queries: Literal["read", "patch", "all"] = "read",
    diffuse: float = 0.5,
    layers: Iterable[int] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Score every head on every role that the model and the images allow.

    Args:
        model: a wrapped vision tower.
        images: an `ImageSet` (with masks: also object and background), or pixels `[image channel height width]`.
        masks: object masks at the model's resolution, True on the object; by default those of the images, if any.
        queries: whose attention counts for object and background: tokens that the read-out `read`s (CLS, or the patches
            where the model takes their mean), `patch` queries, or `all` tokens. All other roles are of patch queries.
        diffuse: share of the keys that a head must use, effectively, to count as diffuse.
        layers: only these layers.
        batch_size: images per forward; default: by memory.
        seed: of the bootstrap.
        progress: show a progress bar.

    Returns:
        Result: one metric per role, `effect` = score - control, and the columns `score`, `control` and `excess`; the
        metric `distance` is the mean distance of attention among patches, in patches, below what key popularity gives.
        Heads whose role is undefined on all images (no attention to patches: no distance) have no row for it.

    Raises:
        BadData: no image, a text tower, masks of fewer than two images.
        ShapeMismatch: masks that do not fit.
        OutOfRange: `diffuse` outside 0 to 1, or no such layer.
        UnknownName: other queries.

    Example:
        >>> roles = head_roles(model, mechvis.data.scenes(200))                                    # doctest: +SKIP
        >>> top_roles(roles)                                                                       # doctest: +SKIP
        >>> roles.plot("object")                                                                   # doctest: +SKIP
    """
    if not 0 < diffuse < 1:
        raise OutOfRange(f"diffuse is a share of the keys between 0 and 1, got {diffuse}.")
    if queries not in QUERIES:
        raise unknown("choice of queries", queries, QUERIES)
    listed, heads = heads_of(model, layers)
    row_of = {(head["layer"], head["head"]): row for row, head in enumerate(heads)}
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    at: Places | None = None
    own = others = None
    for which, layer, pattern, _ in each_pattern(
        model, images, listed, batch_size=batch_size, what="head roles", progress=progress
    ):
        if at is None:
            at = places(parts_for(model, images), pattern.device)
            own = _object_patches(model, images, masks, at)
            others = None if own is None else other_masks(own)
        scores = role_scores(pattern, at, diffuse=diffuse)
        if own is not None:
            asked = {"read": list(at.read), "patch": list(range(at.n_prefix, at.n_tokens))}
            asking = asked.get(queries, list(range(at.n_tokens)))
            mine, theirs = (part[which].to(pattern.device) for part in (own, others))
            scores |= object_scores(pattern, asking, mine, theirs, at.n_prefix)
        scores["distance"] = mean_distance(pattern, at)
        first = row_of[layer, 0]
        rows = slice(first, first + pattern.shape[1])
        for name, pair in scores.items():
            if name not in found:
                found[name] = tuple(np.full((len(heads), len(images)), np.nan) for _ in pair)
            for array, values in zip(found[name], pair, strict=True):
                array[rows, which] = values.T.double().cpu().numpy()
    return _result(model, images, heads, found, {"queries": queries, "diffuse": diffuse, "layers": listed}, seed)


def top_roles(roles: Result, *, least: float = LEAST) -> pl.DataFrame:
    """The role of each head: the largest excess, if its interval lies above the control, it survives the correction
    over heads, and the excess is at least `least`; else `none`.

    Args:
        roles: from :func:`head_roles`.
        least: smallest excess that gives a name.

    Returns:
        One row per head: `unit layer head role excess low high score control n`; the interval is that of the excess,
        the control taken as it is. For a head without a role the numbers are those of its largest excess.

    Raises:
        ResultMismatch: a result of something else.
        OutOfRange: `least` outside 0 to 1.

    Example:
        >>> top_roles(head_roles(model, images)).filter(pl.col("role") == "object")                # doctest: +SKIP
    """
    if roles.kind != "head_roles":
        raise ResultMismatch(f"top_roles reads the result of head_roles, this one is of {roles.kind!r}.")
    if not 0 <= least <= 1:
        raise OutOfRange(f"least is an excess between 0 and 1, got {least}.")
    order = {role: place for place, role in enumerate(ROLES)}
    free = 1 - pl.col("control")
    table = roles.table.filter(pl.col("metric").is_in(ROLES)).with_columns(
        (pl.col("low") / free).alias("low"),
        (pl.col("high") / free).alias("high"),
        pl.col("metric").replace_strict(order, return_dtype=pl.Int32).alias("order"),
    )
    sure = pl.col("significant") & (pl.col("low") > 0) & (pl.col("excess") >= least)
    table = table.with_columns(sure.fill_null(False).alias("sure"))
    # Equal excess up to rounding: the more special role, which comes first in ROLES.
    table = table.with_columns(pl.col("excess").round(6).alias("rounded"))
    table = table.sort(["layer", "head", "sure", "rounded", "order"], descending=[False, False, True, True, False])
    first = table.group_by("layer", "head", maintain_order=True).first()
    role = pl.when("sure").then(pl.col("metric")).otherwise(pl.lit("none")).alias("role")
    return first.select("unit", "layer", "head", role, "excess", "low", "high", "score", "control", "n")


def _object_patches(model: Any, images: Any, masks: Mask | None, at: Places) -> Bool[Tensor, "image patch"] | None:
    """Object patches of each image; None without masks."""
    if masks is None and not (isinstance(images, ImageSet) and images.read_mask is not None):
        return None
    masks = masks if masks is None else torch.as_tensor(masks)
    if masks is not None and (masks.dtype != torch.bool or masks.ndim != 3):
        raise BadData(
            f"masks are bool [image height width], True on the object; got {masks.dtype} {list(masks.shape)}."
        )
    if len(images) < 2:
        raise BadData("object and background need at least two images: the control is other images' masks.")
    members = patch_groups(model, images, "object" if masks is None else masks).members[:, 0, at.n_prefix :]
    if int((members.any(-1) & ~members.all(-1)).sum()) < 2:
        raise BadData(
            "fewer than two images have both object and background patches: there is no mask to compare with."
        )
    return members


def _result(
    model: Any, images: Any, heads: list, found: dict[str, tuple[np.ndarray, np.ndarray]], settings: dict, seed: int
) -> Result:
    values, columns = {}, {}
    for name in sorted(found, key=(*ROLES, "distance").index):
        score, control = found[name]
        # A pattern that stays nearer than popularity has a positive effect too.
        effect = control - score if name == "distance" else score - control
        effect = np.where(np.abs(effect) < ROUNDING, 0.0, effect)
        values[name], columns[name] = effect, {"score": score, "control": control}
    named = images if isinstance(images, ImageSet) else None
    result = result_of_heads(
        "head_roles",
        "Where heads look",
        heads,
        values,
        columns=columns,
        images=image_table(images),
        provenance=provenance(model, named, seed=seed, roles={**settings, "roles": list(values), "least": LEAST}),
        seed=seed,
    )
    excess = pl.when(pl.col("metric") == "distance").then(None).otherwise(pl.col("effect") / (1 - pl.col("control")))
    return replace(result, table=result.table.with_columns(excess.alias("excess")))
