"""Masks of a dictionary's latents: where in the image each of them is active.

A dictionary is anything with `encode(x [row d]) -> [row latent]` (an SAE, or a fitted scikit-learn model behind such
a method). It codes the patches of a site; a latent is *there* where its code is above a share of its own large values,
and its mask is those patches' pixels.
"""

from typing import Any

import numpy as np
import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.data.images import ImageSet
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch
from probes.concept_scope.scope import ConceptScope, concept_scope
from probes.features import collect


def scope_of_dictionary(
    model: Any,
    images: ImageSet,
    dictionary: Any,
    site: str,
    *,
    per_class: int = 10,
    above: float = 0.5,
    encoder: Any = None,
    names: list[str] | None = None,
    progress: bool = True,
    **settings: Any,
) -> ConceptScope:
    """Sort the latents of a dictionary into target, context and bias for every class.

    Args:
        model: the classifier that is audited.
        images: labelled images.
        dictionary: has `encode(x [row d]) -> [row latent]`, tensors in and out (arrays out are taken, too).
        site: where the patches' vectors are read, e.g. `blocks.2.hook_resid_post`.
        per_class: latents per class, those with the largest mean code; all classes are then measured with the union.
        above: share of a latent's 99th percentile over the active patches from which it counts as there (**X**).
        encoder: the wrapped model whose site the dictionary codes (a CLIP vision tower); default: `model`.
        names: of the latents; default `latent 0`, ...
        progress: show progress bars.
        settings: of :func:`concept_scope` (`fill`, `clip`, `alpha`, ...).

    Raises:
        BadData: fewer than two latents are ever active.
        ShapeMismatch: the dictionary gives another number of rows, or names do not fit.
        NotFinite: it gives NaN or Inf.
        OutOfRange: a share that is none.

    Example:
        >>> scope_of_dictionary(model, images, sae, "blocks.2.hook_resid_post").of_kind("bias")    # doctest: +SKIP
    """
    if not 0 <= above < 1 or per_class < 1:
        raise OutOfRange(f"above={above}, per_class={per_class}: a share in [0, 1), and at least one latent per class.")
    encoder = model if encoder is None else encoder
    features = collect(encoder, images, site, tokens="patches", progress=progress)
    rows = next(iter(features.values()))
    codes = codes_of(dictionary, rows, len(images))
    if names is not None and len(names) != codes.shape[2]:
        raise ShapeMismatch(f"{len(names)} names for {codes.shape[2]} latents.")
    strength = codes.mean(1)
    chosen = _chosen(strength, images, per_class)
    grid, size = encoder.parts.grid, model.parts.image_size
    masks = {
        names[latent] if names else f"latent {latent}": masks_of(codes[:, :, latent], grid, size, above)
        for latent in chosen
    }
    activations = {name: strength[:, latent] for name, latent in zip(masks, chosen, strict=True)}
    return concept_scope(model, images, masks, activations=activations, progress=progress, **settings)


def codes_of(
    dictionary: Any, rows: Float[np.ndarray, "row d"], n_images: int, batch: int = 8192
) -> Float[np.ndarray, "image patch latent"]:
    """Codes of all patches.

    Raises:
        ShapeMismatch, NotFinite: what the dictionary gives is not one finite code per row.
    """
    found = []
    with torch.no_grad():
        for start in range(0, len(rows), batch):
            part = torch.from_numpy(np.ascontiguousarray(rows[start : start + batch]))
            code = torch.as_tensor(dictionary.encode(part)).detach().double().cpu().numpy()
            if code.ndim != 2 or len(code) != len(part):
                raise ShapeMismatch(f"dictionary.encode gave {list(code.shape)} for {len(part)} rows of patches.")
            found.append(code)
    codes = np.concatenate(found)
    if not np.isfinite(codes).all():
        raise NotFinite("the dictionary's codes hold NaN or Inf.")
    return codes.reshape(n_images, -1, codes.shape[1])


def masks_of(
    codes: Float[np.ndarray, "image patch"], grid: tuple[int, int], size: tuple[int, int], above: float
) -> Bool[Tensor, "image height width"]:
    """Where one latent is active, as pixels of a (height, width)."""
    active = codes[codes > 0]
    if not active.size:
        return torch.zeros(len(codes), *size, dtype=torch.bool)
    there = torch.from_numpy((codes > 0) & (codes >= above * np.quantile(active, 0.99)))
    down, across = size[0] // grid[0], size[1] // grid[1]
    return repeat(
        there.unflatten(1, grid), "image h w -> image (h down) (w across)", down=down, across=across
    ).contiguous()


def _chosen(strength: np.ndarray, images: ImageSet, per_class: int) -> list[int]:
    labels = np.zeros(len(images), int) if images.labels is None else np.asarray(images.labels)
    found: dict[int, None] = {}
    for index in np.unique(labels):
        mean = strength[labels == index].mean(0)
        found |= dict.fromkeys(
            int(latent) for latent in np.argsort(-mean, kind="stable")[:per_class] if mean[latent] > 0
        )
    if len(found) < 2:
        raise BadData(f"{len(found)} latent of the dictionary is ever active on these images: nothing to sort.")
    return sorted(found)
