"""Concepts in an MLP's neurons: sparse groups of neurons that fire together, and what they write (SNMF; **C**).

`A [d_mlp row] ~ F G^T` with `G >= 0` and sparse columns of `F` (methods.md 12): a concept is a few neurons with signs,
present in non-negative amounts. Because a column of `F` is a pattern of neurons, it writes a direction of its own:
`F^T W_out`, in the residual stream (:func:`writes`). Factored again, `F` itself falls into groups of concepts
(:func:`groups`): a hierarchy.

Where a concept fires says what it is about; what it writes says what it does. The second is measured here by adding the
write to the stream at every place where the concept fires.
"""

from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float

from mechvis.errors import BadData, OutOfRange
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import bootstrap
from probes.concepts.coding import nonnegative_code
from probes.concepts.maps import against_masks, object_places
from probes.concepts.semi_nmf import Init, SemiNMF, semi_nmf
from probes.concepts.tail import named, pixels_of


class MLPConcepts(Record):
    """Concepts of one MLP; `table` has one row per concept, the largest share of the activity first.

    Arrays: `neurons` `[d_mlp concept]` (F), `writes` `[concept d_model]`, `maps` `[image concept down across]`.
    """

    KIND = "mlp_concepts"


def mlp_concepts(
    model: Any,
    images: Any,
    layer: int,
    n_concepts: int = 20,
    *,
    sparsity: float = 0.01,
    init: Init = "kmeans",
    iterations: int = 500,
    fit_share: float = 0.5,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> MLPConcepts:
    """Sparse groups of neurons of one layer, from its activations on patches (SNMF, methods.md 12, **C**).

    Args:
        model: a wrapped model.
        images: an `ImageSet` or pixels.
        layer: which block's MLP.
        n_concepts: how many.
        sparsity: share of the neurons in each concept (**C**: the top 1 %); at least one.
        init: start of the factorisation.
        iterations: at most so many.
        fit_share: of the images, to find the concepts; the figures are those of the rest (**X**).
        batch_size: images per forward.
        seed: of the halves and the start.
        progress: show a progress bar.

    Returns:
        MLPConcepts: per concept its neurons, how often it fires, how long its write is, the class that the write speaks
        for (`effect` on that class's logit relative to the others, when the write is added where the concept fires,
        with its interval over images; the class is chosen on other images than those), and, where images have masks,
        what it is.

    Raises:
        OutOfRange: no such layer.
        BadData: too few images.

    Example:
        >>> found = mlp_concepts(model, images, 2, 20)                                             # doctest: +SKIP
        >>> found.table.select("concept", "neurons", "speaks_for", "effect")                       # doctest: +SKIP
    """
    layers = len(model.parts.blocks)
    if not 0 <= layer < layers:
        raise OutOfRange(f"layer {layer}: this model has 0 to {layers - 1}.")
    if not 0 < fit_share < 1 or len(images) < 4:
        raise BadData(f"{len(images)} images and fit_share={fit_share}: some are needed to fit and some to measure.")
    site = f"blocks.{layer}.mlp.hook_post"
    images = named(model, images)
    order = np.random.default_rng(seed).permutation(len(images))
    cut = min(max(round(fit_share * len(images)), 2), len(images) - 2)
    fit, rest = images[np.sort(order[:cut])], images[np.sort(order[cut:])]
    rows, _ = _neurons(model, fit, site, batch_size)
    found = semi_nmf(
        rows.reshape(-1, rows.shape[-1]), n_concepts, sparsity=sparsity, init=init, iterations=iterations, seed=seed
    )
    directions = _scaled(found.directions)
    shown, grid = _neurons(model, rest, site, batch_size)
    codes = nonnegative_code(shown.reshape(-1, shown.shape[-1]), directions.T).reshape(*shown.shape[:2], -1)
    share = codes.sum((0, 1)) / max(codes.sum(), 1e-300)
    by_share = np.argsort(-share, kind="stable")
    directions, codes, share = directions[:, by_share], codes[..., by_share], share[by_share]
    added = writes(model, layer, directions)
    effect = _effects(model, rest, layer, added, codes, batch_size, progress)
    table = _table(model, directions, codes, share, added, effect, seed)
    facts = {
        "layer": layer,
        "site": site,
        "grid": list(grid),
        "relative_error": float(np.linalg.norm(shown - codes @ directions.T) / max(np.linalg.norm(shown), 1e-300)),
        "iterations": len(found.losses),
        "fitted_images": len(fit),
        "measured_images": len(rest),
        "neurons_per_concept": int((directions != 0).sum(0).max()),
    }
    if getattr(rest, "read_mask", None) is not None:
        on_object = object_places(rest.masks_for(model.preprocess).numpy(), grid)
        what, baselines = against_masks(codes, shown, on_object, grid, seed=seed)
        table = pl.concat([table, what], how="horizontal")
        facts |= {f"auroc_{name}": value for name, value in baselines.items()}
    return MLPConcepts(
        title=f"Concepts of the neurons of layer {layer}",
        tables={"concepts": table},
        arrays={
            "neurons": directions,
            "writes": added,
            "maps": codes.transpose(0, 2, 1).reshape(len(codes), -1, *grid).astype(np.float32),
            "losses": found.losses,
        },
        facts=facts,
        words={
            "neurons": "the neurons of the concept with their weights, the largest first",
            "active": "share of the places in which it fires",
            "share": "its share of all amounts",
            "write": "length of what it writes to the stream for an amount of one",
            "speaks_for": "the class whose logit its write raises most, relative to the mean of all classes",
            "effect": "that rise when the write is added once more where the concept fires, in logits",
        },
        caveats=(
            f"Found on {len(fit)} images, measured on {len(rest)} others.",
            "The effect doubles what the concept writes; nothing is taken away, and later layers react to it.",
        ),
        provenance=provenance(
            model=model,
            images=images if hasattr(images, "fingerprint") else None,
            seed=seed,
            settings={"n_concepts": n_concepts, "sparsity": sparsity, "init": init},
        ),
    )


def writes(
    model: Any, layer: int, directions: Float[np.ndarray, "d_mlp concept"]
) -> Float[np.ndarray, "concept d_model"]:
    """What patterns of neurons write to the stream: `F^T W_out` (**C**).

    Args:
        model: a wrapped model.
        layer: which block.
        directions: patterns of its neurons.

    Example:
        >>> writes(model, 2, np.eye(256)[:, :1]).shape                                             # doctest: +SKIP
        (1, 128)
    """
    weight = model.blocks[layer].mlp.W_out
    return (torch.from_numpy(np.ascontiguousarray(directions.T)).to(weight) @ weight).detach().cpu().double().numpy()


def groups(
    directions: Float[np.ndarray, "d_mlp concept"],
    n_groups: int,
    *,
    sparsity: float | None = None,
    init: Init = "kmeans",
    seed: int = 0,
) -> SemiNMF:
    """The concepts themselves factored again: groups of concepts, for a hierarchy (methods.md 12, **C**).

    Args:
        directions: patterns of neurons, one per column.
        n_groups: fewer than concepts.
        sparsity, init, seed: see :func:`probes.concepts.semi_nmf.semi_nmf`.

    Returns:
        SemiNMF whose `amounts` `[concept group]` say which concepts are in which group, and whose `directions`
        `[d_mlp group]` are patterns of neurons again.

    Raises:
        OutOfRange: as many groups as concepts, or more.

    Example:
        >>> patterns = np.repeat(np.eye(6)[:, :2], 3, axis=1)
        >>> groups(patterns, 2).amounts.argmax(1).tolist() in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])
        True
    """
    concepts = np.asarray(directions).shape[1]
    if not 1 <= n_groups < concepts:
        raise OutOfRange(f"{n_groups} groups of {concepts} concepts: ask for fewer groups than concepts.")
    return semi_nmf(np.asarray(directions).T, n_groups, sparsity=sparsity, init=init, seed=seed)


@torch.no_grad()
def _neurons(
    model: Any, images: Any, site: str, batch_size: int
) -> tuple[Float[np.ndarray, "image place d_mlp"], tuple[int, int]]:
    prefix, found, grid = len(model.parts.prefix), [], (1, 1)
    for start in range(0, len(images), batch_size):
        pixels = pixels_of(model, images[start : start + batch_size])
        grid = model._for_size(tuple(pixels.shape[2:]))[0].grid
        run = model.run(pixels, capture=[site], stop_when_captured=True)
        found.append(run.cache[site][:, prefix:].cpu().double().numpy())
    return np.concatenate(found), grid


def _scaled(directions: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(directions, axis=0)
    return directions / np.where(lengths == 0, 1.0, lengths)


@torch.no_grad()
def _effects(
    model: Any, images: Any, layer: int, added: np.ndarray, codes: np.ndarray, batch_size: int, progress: bool
) -> Float[np.ndarray, "concept image class"] | None:
    """Change of the centred logits when a concept's write is added where it fires."""
    if model.parts.head is None:
        return None
    prefix, site = len(model.parts.prefix), f"blocks.{layer}.hook_resid_post"
    found = []
    vectors = torch.from_numpy(added).to(model.device, model.dtype)
    with track(len(images) * len(vectors), "effects", " passes", show=progress) as bar:
        for start in range(0, len(images), batch_size):
            run = model.run(pixels_of(model, images[start : start + batch_size]), capture=[site])
            stream, before = run.cache[site], run.output
            own = torch.from_numpy(codes[start : start + batch_size]).to(stream)
            rows = []
            for concept in range(len(vectors)):
                changed = stream.clone()
                changed[:, prefix:] += own[..., concept, None] * vectors[concept]
                moved = model.run(changed, start_at_layer=layer + 1).output - before
                rows.append((moved - moved.mean(1, keepdim=True)).cpu().double().numpy())
                bar.update(len(stream))
            found.append(np.stack(rows))
    return np.concatenate(found, axis=1)


def _table(
    model: Any,
    directions: np.ndarray,
    codes: np.ndarray,
    share: np.ndarray,
    added: np.ndarray,
    effect: np.ndarray | None,
    seed: int,
) -> pl.DataFrame:
    there = codes > 1e-9 * max(float(codes.max()), 1e-300)
    rows = []
    for i in range(directions.shape[1]):
        order = np.argsort(-np.abs(directions[:, i]), kind="stable")
        used = [j for j in order if directions[j, i] != 0]
        row = {
            "concept": f"m{i}",
            "share": share[i],
            "active": there[..., i].mean(),
            "neurons": [f"{j} ({directions[j, i]:+.2f})" for j in used[:5]],
            "write": float(np.linalg.norm(added[i])),
        }
        if effect is not None:
            # The class is chosen on every second image, and its effect measured on the others.
            best = int(effect[i, ::2].mean(0).argmax())
            mean = bootstrap(effect[i, 1::2, best], seed=seed)
            names = model.parts.class_names
            row |= {
                "speaks_for": names[best] if names else str(best),
                "effect": mean.effect[0],
                "effect_low": mean.low[0],
                "effect_high": mean.high[0],
                "n": int(mean.n[0]),
            }
        rows.append(row)
    return pl.DataFrame(rows)
