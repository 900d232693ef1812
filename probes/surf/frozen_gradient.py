"""EXPERIMENTAL: SURF before the last layer, with the gradient held fixed (methods.md 7, extension, **X**; no source).

At an inner site with tokens `h_j`, the model is replaced by its linearisation at each image:

    y_i(x)  ~  sum_j g_ij . h_j + c_i(x),      g_ij = dy_i / dh_j at this image, held fixed

and a dictionary is judged by what it keeps of the linear part, with the importance that the gradient gives it there:

    yhat_i = sum_j sum_k (v_k . g_ij) Proj(h_j; V)_k + c_i(x)

Norms and attention patterns are held fixed at each image's own values, too (`freeze`), so that only MLPs bend. With
free norms the linear part says nothing: a norm does not change when its input is stretched, so the gradient is at right
angles to the stream, `g . h = 0`, whatever the model reads there. With free patterns it can point anywhere: on
`scenes-vit` it then explains less than nothing of the logits in the first layers, and nine tenths with fixed ones.

It asks whether the concepts hold what the next layers read *to first order*. `c_i(x)` is given to both sides, so a bad
linearisation does not show here: `explained` says how much of the logits' variance the linear part carries. At the
head's input of a linear head this is SURF itself.
"""

import warnings
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from mechvis import edits
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, EffectlessEdit, ShapeMismatch, UnknownName, unknown
from mechvis.provenance import provenance
from mechvis.stats import bootstrap
from probes.surf.explanation import Project, dot, unit_rows
from probes.surf.study import WORDS, Surf
from probes.surf.surrogate import MEASURES, errors

Freeze = Literal["nothing", "norms", "norms and patterns"]
FREEZES = {"nothing": (), "norms": ("hook_scale",), "norms and patterns": ("hook_scale", "hook_pattern")}
"""What is held fixed -> ends of the names of its sites."""


def frozen_gradient_surf(
    model: Any,
    images: Any,
    site: str,
    concepts: Float[np.ndarray, "concept d"],
    *,
    project: Project = dot,
    offset: Float[np.ndarray, " d"] | None = None,
    freeze: Freeze = "norms and patterns",
    name: str = "concepts",
    batch_size: int = 16,
    seed: int = 0,
) -> Surf:
    """How much of what the next layers read of a site, to first order, is in a dictionary. Experimental.

    Args:
        model: a wrapped model with a head.
        images: an `ImageSet` or pixels, none of which made the dictionary.
        site: one site with a last axis of the dictionary's width, e.g. `blocks.2.hook_resid_post`.
        concepts: the dictionary; brought to length one.
        project: the method's own projection onto unit vectors.
        offset: taken off every token before it is projected; its share of the linear part is given to both sides.
        freeze: what after the site is held fixed at each image's own value before the gradient is taken.
        name: of the dictionary in the table.
        batch_size: images per backward pass; one pass per class.
        seed: of the bootstrap.

    Returns:
        Surf: rows for the dictionary and for `nothing` (no concept at all: c_i(x) and the offset alone).

    Raises:
        UnknownName: the site is a pattern for several sites, or `freeze` is none of the three.
        ShapeMismatch: concepts of another width.
        BadData: the model has no head.

    Example:
        >>> frozen_gradient_surf(model, images, "blocks.2.hook_resid_post", components)            # doctest: +SKIP
    """
    if model.parts.head is None:
        raise BadData("this model has no head, so there are no logits to explain. For CLIP use clip.classifier(names).")
    if freeze not in FREEZES:
        raise unknown("freeze", freeze, FREEZES)
    found = model.graph.match([site])
    if len(found) != 1:
        raise UnknownName(f"{site!r} matches {len(found)} sites; the surrogate is about one.")
    site, vectors = found[0], unit_rows(name, concepts)
    logits, kept, bare, linear = [], [], [], []
    after = _after(model, site, FREEZES[freeze])
    for start in range(0, len(images), batch_size):
        some = images[start : start + batch_size]
        fixed = model.run(some, capture=after).cache if after else {}
        with warnings.catch_warnings():
            # Every value is set to what it is already; what changes is where the gradient goes.
            warnings.simplefilter("ignore", EffectlessEdit)
            run = model.run(some, edits=[edits.freeze(name, fixed) for name in after], capture=[site], grad=True)
        value = run.cache[site]
        if value.shape[-1] != vectors.shape[1]:
            raise ShapeMismatch(f"{site} has width {value.shape[-1]}, the concepts {vectors.shape[1]}.")
        rows = value.detach().double().reshape(len(value), -1, value.shape[-1]).cpu().numpy()
        start_rows = rows if offset is None else rows - offset
        codes = project(start_rows.reshape(-1, rows.shape[-1]), vectors).reshape(*rows.shape[:2], -1)
        true = run.output.detach().double().cpu().numpy()
        part, given, seen = np.empty_like(true), np.zeros_like(true), np.empty_like(true)
        for index, gradient in enumerate(_gradients(run.output, value)):
            gradient = gradient.reshape(rows.shape)
            part[:, index] = np.einsum("ijd,ijd->i", gradient, rows)
            seen[:, index] = np.einsum("ijk,ijk->i", gradient @ vectors.T, codes)
            if offset is not None:
                given[:, index] = gradient.sum(1) @ offset
        logits.append(true)
        linear.append(part)
        bare.append(true - part + given)
        kept.append(true - part + given + seen)
    true, part = np.concatenate(logits), np.concatenate(linear)
    return _record(
        name, site, true, part, np.concatenate(kept), np.concatenate(bare), model, images, len(vectors), seed
    )


def _after(model: Any, site: str, ends: tuple[str, ...]) -> list[str]:
    """Sites of these kinds that fire after a site."""
    order = list(model.graph.sites)
    return [name for name in order[order.index(site) + 1 :] if name.endswith(ends)] if ends else []


def _gradients(output: torch.Tensor, value: torch.Tensor) -> Iterator[np.ndarray]:
    """dy_i / dh `[image ...]`, class by class (all of them at once would not fit); images do not see each other."""
    for index in range(output.shape[1]):
        (each,) = torch.autograd.grad(output[:, index].sum(), value, retain_graph=index + 1 < output.shape[1])
        yield each.double().cpu().numpy()


def _record(
    name: str,
    site: str,
    true: np.ndarray,
    linear: np.ndarray,
    kept: np.ndarray,
    bare: np.ndarray,
    model: Any,
    images: Any,
    size: int,
    seed: int,
) -> Surf:
    import polars as pl

    rows, arrays = [], {}
    for method, guessed in ((name, kept), ("nothing", bare)):
        found = errors(true, guessed)
        row: dict[str, Any] = {"method": method, "role": "method" if method == name else "bound"}
        row["concepts"] = size if method == name else 0
        for measure in MEASURES:
            one = bootstrap(found[measure], seed=seed)
            row |= {measure: float(one.effect[0]), f"{measure}_low": float(one.low[0])}
            row |= {f"{measure}_high": float(one.high[0])}
            arrays[f"{measure}/{method}"] = found[measure]
        rows.append(row | {"n": len(true)})
    rest = true - linear
    explained = 1 - ((rest - rest.mean(0)) ** 2).sum() / ((true - true.mean(0)) ** 2).sum()
    return Surf(
        title=f"Frozen-gradient SURF of {name} at {site} (experimental)",
        tables={"methods": pl.DataFrame(rows).with_columns(pl.col(pl.Float64).fill_nan(None)).sort("emd")},
        arrays=arrays,
        facts={"site": site, "explained": float(explained), "experimental": True},
        words={**WORDS, "explained": "share of the logits' variance that the linear part carries; may be negative"},
        caveats=(
            "Experimental: our own extension. It tests the dictionary against a linearisation, not against the model.",
            f"The linear part carries {explained:.1%} of the logits' variance at {site}.",
        ),
        provenance=provenance(model=model, images=images if isinstance(images, ImageSet) else None, seed=seed),
    )
