"""Concepts of a class on a wrapped model: which directions, where in the images, and how much they matter (CRAFT).

1. Take images that the model assigns to the class, and what a site holds for their pieces: the patches of a layer (the
   natural pieces of a ViT, **X**), or crops for sites after pooling (the published pieces).
2. Factor the pieces of one half of the images into concepts (:mod:`probes.concepts.factors`).
3. On the other half: codes, concept maps, and the importance of each concept for the rest of the model, by default
   total Sobol indices under masks (methods.md 12, **C**; :mod:`probes.concepts.importance`).
4. Where images have masks: is a concept the object or the background (:mod:`probes.concepts.maps`)?

Concepts are measured on images that they were not fitted on. Two figures say how much of the model they stand for: the
relative error, and how often the model still gives its own class when the activations are replaced by the concepts.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import OutOfRange
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.stats import bootstrap
from probes.concepts.crops import SIDE
from probes.concepts.factors import Factorisation, Method, factorise
from probes.concepts.importance import importance as importance_of
from probes.concepts.maps import against_masks, object_places
from probes.concepts.pieces import Chosen, halves, images_of_class, pictures_of, pieces_of
from probes.concepts.record import Concepts
from probes.concepts.tail import (
    Answer,
    Prefix,
    Residual,
    activations,
    class_of,
    named,
    start_layer,
    tail_of,
)

UNSIGNED = ("sobol", "tcav")
"""Importances that do not say how much a concept adds to the answer: the table then says so beside them."""


def craft(
    model: Any,
    images: Any,
    target: int | str,
    *,
    site: str | None = None,
    method: Method = "semi_nmf",
    n_concepts: int = 20,
    importance: str | Callable = "sobol",
    chosen: Chosen = "predicted",
    fit_share: float = 0.5,
    prefix: Prefix = "keep",
    residual: Residual = "drop",
    answer: Answer = "logit",
    crop: float = SIDE,
    dictionary: Any = None,
    importance_images: int = 64,
    top: int = 6,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
    options: dict[str, Any] | None = None,
    importance_options: dict[str, Any] | None = None,
) -> Concepts:
    """Concepts of a class, with maps and importance (CRAFT, methods.md 12, **C**; on ViT patches **X**).

    Args:
        model: a wrapped model with a head.
        images: an `ImageSet`, or pixels (then `chosen="labelled"` and masks are not possible).
        target: class by name or number.
        site: `blocks.L.hook_resid_pre|post` (pieces are patches), or `hook_pooled`, `hook_embedding` (pieces are
            crops). Default: the stream after the first half of the blocks.
        method: see :mod:`probes.concepts.factors`.
        n_concepts: how many (**C**: 20).
        importance: `sobol`, or another method of :func:`probes.concepts.importance.importance`.
        chosen: images that the model assigns to the class (**C**), those labelled so, or all.
        fit_share: of the images, for the factorisation; all else is measured on the rest (**X**).
        prefix: tokens before the patches: each image's own (CLS has seen the image already), or their mean.
        residual: what the concepts leave over: dropped (**C**) or kept.
        answer: `logit` of the class, its `probability`, or its `margin` over the best other class.
        crop: side of a crop as a share of the image's (**C**: 64 of 224); 1 for whole images.
        dictionary: for `method="dictionary"`: an object with `encode` and `decode`.
        importance_images: at most so many images are asked for importance: `sobol` runs the tail 32 (K + 1) times each.
        top: pictures kept per concept.
        batch_size: images per forward.
        seed: of the halves, of the fit, of the designs and intervals.
        progress: show a progress bar.
        options: more for :func:`probes.concepts.factors.factorise`.
        importance_options: more for the importance method.

    Returns:
        Concepts, the most important first (signed methods: what speaks for the class most). For `sobol` and `tcav` the
        table also has `effect`, the answer minus the answer without the concept.

    Raises:
        BadData: too few images of the class; a site from which patches have no effect.
        UnknownName, OutOfRange, ShapeMismatch, NotFinite.

    Example:
        >>> found = craft(model, images, "star", n_concepts=8)                                     # doctest: +SKIP
        >>> found.table.select("concept", "importance", "auroc", "what")                           # doctest: +SKIP
    """
    number = class_of(model, target)
    if importance_images < 1:
        raise OutOfRange(f"importance_images={importance_images}: at least 1.")
    site = site or f"blocks.{max(len(model.parts.blocks) // 2 - 1, 0)}.hook_resid_post"
    layer = start_layer(model, site)
    images = images_of_class(model, named(model, images), number, chosen, batch_size)
    fit, rest = halves(len(images), fit_share, seed)
    pieces, grid = pieces_of(model, images[fit], site, layer, crop, batch_size)
    fitted = factorise(
        pieces.flatten(0, 1).double().numpy(),
        method,
        n_concepts,
        dictionary=dictionary,
        seed=seed,
        **(options or {}),
    )
    shown = images[rest]
    rows, before, logits = activations(model, shown, site, batch_size=batch_size)
    settings = {"prefix": prefix, "residual": residual, "answer": answer}
    tail, codes = tail_of(model, site, number, fitted, rows, before, **settings)
    more = dict(importance_options or {})
    if importance in ("sobol", "shapley"):
        more.setdefault("seed", seed)
    found = _importances(tail, codes[:importance_images], importance, more, progress)
    order = np.argsort(-found.mean(0), kind="stable")
    place_rows, place_codes = rows, codes.double().numpy()
    if layer is None:
        place_rows, grid = pieces_of(model, shown, site, layer, crop, batch_size)
        place_codes = fitted.encode(place_rows.flatten(0, 1).double().numpy())
        place_codes = place_codes.reshape(*place_rows.shape[:2], -1)
    place_codes, found = place_codes[..., order], found[:, order]
    table = _table(found, place_codes, seed)
    if importance in UNSIGNED:
        effect = bootstrap(_importances(tail, codes[:importance_images], "occlusion", {}, False)[:, order].T, seed=seed)
        columns = {"effect": effect.effect, "effect_low": effect.low, "effect_high": effect.high}
        table = table.with_columns(**{name: pl.Series(values) for name, values in columns.items()})
    facts = {
        "target": model.parts.class_names[number] if model.parts.class_names else number,
        "site": site,
        "method": method,
        "importance": importance if isinstance(importance, str) else getattr(importance, "__name__", "given"),
        "grid": list(grid),
        "fitted_images": len(fit),
        "measured_images": len(rest),
        "price": fitted.price,
        "given_dictionary": dictionary is not None,
        **_fidelity(tail, codes, rows, fitted, logits, number),
    }
    masked = getattr(shown, "read_mask", None) is not None and tuple(grid) != (1, 1)
    if masked:
        on_object = object_places(shown.masks_for(model.preprocess).numpy(), grid)
        if (on_object.any(1) & ~on_object.all(1)).any():
            what, baselines = against_masks(place_codes, place_rows.double().numpy(), on_object, grid, seed=seed)
            table = pl.concat([table, what], how="horizontal")
            facts |= {f"auroc_{name}": value for name, value in baselines.items()}
    pictures, picture_maps = pictures_of(model, shown, place_codes, grid, top)
    arrays = {
        "bank": fitted.bank[order],
        "centre": fitted.centre,
        "codes": place_codes.astype(np.float32),
        "importance": found,
        "pictures": pictures,
        "picture_maps": picture_maps,
    }
    if fitted.penalty is not None:
        arrays["penalty"] = fitted.penalty[order]
    return Concepts(
        title=f"Concepts of {facts['target']!r} at {site}",
        tables={"concepts": table, "images": _images(shown, logits, number)},
        arrays=arrays,
        facts=facts,
        words=_WORDS | {"importance": f"mean {facts['importance']} importance over images, 95 % interval"},
        caveats=_caveats(facts, layer, settings, masked),
        provenance=provenance(
            model=model,
            images=images if hasattr(images, "fingerprint") else None,
            seed=seed,
            settings={**settings, "n_concepts": fitted.n_concepts, "chosen": chosen, "fit_share": fit_share},
        ),
    )


_WORDS = {
    "effect": "the answer minus the answer without the concept, mean over images: which way it speaks",
    "active": "share of the places in which the concept's code is not zero",
    "images": "share of the images in which it is anywhere",
    "auroc": "mean over images of the AUROC of its map against the object's mask",
    "moves": "that AUROC minus the one against masks of other images: does the map go where the object goes?",
    "what": "object, if auroc > .5 and moves > 0 for sure (95 % intervals); background, if both are below",
    "auroc_centre": "AUROC of a map that only knows the middle of the image",
    "auroc_random_object": "share of random directions that would be called object",
    "auroc_random_background": "share of random directions that would be called background",
    "relative_error": "|A - UV| / |A| on the measured images",
    "same_class": "share of the measured images whose class stays when activations are replaced by concepts",
    "answer_correlation": "correlation over images of the class logit with and without that replacement",
}


def _importances(
    tail: Any, codes: Tensor, method: str | Callable, options: dict[str, Any], progress: bool
) -> Float[np.ndarray, "image concept"]:
    """Image by image, so that there is a bar to look at: no method lets images know of each other."""
    found = []
    with track(len(codes), "importance", " images", show=progress) as bar:
        for i in range(len(codes)):

            def one(part: Tensor, images: Tensor, i: int = i) -> Tensor:
                return tail(part, images + i)

            found.append(importance_of(one, codes[i : i + 1], method, takes_images=True, **options))
            bar.update(1)
    return np.concatenate(found)


def _caveats(facts: dict[str, Any], layer: int | None, settings: dict[str, Any], masked: bool) -> tuple[str, ...]:
    said = [
        f"The concepts were fitted on {facts['fitted_images']} images, and measured on {facts['measured_images']} "
        "others."
    ]
    if settings["residual"] == "drop":
        said.append(
            f"The importance is that of the model fed with concepts alone: they miss {facts['relative_error']:.0%} of "
            f"the activations' length, and {facts['same_class']:.0%} of the images keep their class."
        )
    if masked and "auroc_random_object" not in facts:
        said.append("No place is mostly object: the pieces are too large to be compared with the masks.")
    if "auroc_random_object" in facts:
        said.append(
            f"Of random directions {facts['auroc_random_object']:.0%} would be called object and "
            f"{facts['auroc_random_background']:.0%} background: where a map lies does not make it a concept."
        )
    if layer is not None and settings["prefix"] == "keep":
        said.append(
            "Tokens before the patches (CLS) are each image's own and have seen the image: what they hold already is "
            "no concept's merit. Compare prefix='mean', or an earlier layer."
        )
    if facts["importance"] == "sobol":
        said.append(
            "Sobol indices have no sign: an important concept may speak against the class, and removing concepts in "
            "this order need not lower the answer. `effect` says which way each speaks."
        )
    if facts["importance"] == "tcav":
        said.append("Signs say a direction, not a size.")
    return tuple(said)


def _images(images: Any, logits: Tensor, number: int) -> pl.DataFrame:
    """The measured images (the first of them were asked for importance): is the model right, and what it answers."""
    labels = getattr(images, "labels", None)
    right = None if labels is None else logits.argmax(-1).numpy() == np.asarray(labels)
    ids = getattr(images, "ids", None) or [f"image {i}" for i in range(len(images))]
    return pl.DataFrame(
        {
            "image": list(ids),
            "logit": logits[:, number].double().numpy(),
            "correct": pl.Series(right, dtype=pl.Boolean) if right is not None else [None] * len(logits),
        }
    )


def _table(found: np.ndarray, codes: np.ndarray, seed: int) -> pl.DataFrame:
    mean = bootstrap(found.T, seed=seed)
    there = np.abs(codes) > 1e-9 * max(float(np.abs(codes).max()), 1e-300)
    return pl.DataFrame(
        {
            "concept": [f"c{i}" for i in range(found.shape[1])],
            "importance": mean.effect,
            "low": mean.low,
            "high": mean.high,
            "n": mean.n,
            "active": there.mean((0, 1)),
            "images": there.any(1).mean(0),
        }
    )


@torch.no_grad()
def _fidelity(
    tail: Any, codes: Tensor, rows: Tensor, fitted: Factorisation, logits: Tensor, number: int
) -> dict[str, float | None]:
    """How much of the activations and of the model's answer the concepts keep."""
    bare = replace(tail, residual=None)
    again = torch.cat(
        [bare.logits(codes[i : i + 64], torch.arange(i, min(i + 64, len(codes)))) for i in range(0, len(codes), 64)]
    )
    flat = rows.flatten(0, 1).double().numpy()
    left = flat - fitted.decode(codes.flatten(0, 1).double().numpy())
    before, after = logits[:, number].double().numpy(), again[:, number].cpu().double().numpy()
    moving = before.std() > 0 and after.std() > 0 and len(before) > 2
    return {
        "relative_error": float(np.linalg.norm(left) / np.linalg.norm(flat)),
        "same_class": float((again.argmax(-1).cpu() == logits.argmax(-1)).double().mean()),
        "answer_correlation": float(np.corrcoef(before, after)[0, 1]) if moving else None,
    }
