"""What do long patches do: who looks at them, and what do they hold? (methods.md 12)

1. *Attention received*: mean weight that a long patch gets from the read token (or all patches) in each later block,
   against the mean over the other patches of the same image.
2. *Held globally*: how well the image's label can be read from one long patch, and from one other patch of the same
   images, by logistic regression on training images, judged on others.
3. *Held locally*: the same for where the patch lies (its row and column, R^2 of a ridge regression): a patch that has
   become scratch space forgets its place.

If long patches are registers in disguise, the label is read better from them, the place worse (Darcet et al., **K**).
"""

from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int

from mechvis.data.images import ImageSet
from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.provenance import provenance
from mechvis.record import Record, finite
from mechvis.stats import bootstrap, interval_of, paired_difference


class OutlierContent(Record):
    """Attention that long patches get, and what can be read from them; see :func:`outlier_content`."""

    KIND = "outlier_content"


def outlier_content(
    model: Any,
    images: ImageSet,
    outliers: Bool[np.ndarray, "image patch"],
    *,
    layer: int,
    train: float = 0.5,
    batch_size: int = 8,
    seed: int = 0,
) -> OutlierContent:
    """Attention to long patches after their layer, and what their vectors hold.

    Args:
        model: a wrapped image tower.
        images: labelled images in which the long patches were found.
        outliers: which patches are long, from :meth:`TokenNorms.outliers`.
        layer: the block after which they are long.
        train: share of the images that probes are fitted to; the others judge.
        batch_size: images per forward; the attention of all later blocks is held at once.
        seed: of the split, the drawn patches and the bootstrap.

    Returns:
        OutlierContent: tables `held` (label and place from long and from other patches) and `attention` (per later
        block and query).

    Raises:
        ShapeMismatch: not one row of patches per image.
        BadData: no labels, or too few images with a long patch.
        OutOfRange: no such block.

    Example:
        >>> outlier_content(model, images, norms.outliers(), layer=9).table                        # doctest: +SKIP
    """
    parts, prefix = model.parts, len(model.parts.prefix)
    mask = np.asarray(outliers)
    if mask.dtype != bool or mask.shape != (len(images), parts.n_tokens - prefix):
        raise ShapeMismatch(
            f"outliers must be bool [image patch] = [{len(images)} {parts.n_tokens - prefix}], got {mask.dtype} "
            f"{list(mask.shape)}."
        )
    if not 0 <= layer < len(parts.blocks):
        raise OutOfRange(f"layer {layer} does not exist: this model has layers 0 to {len(parts.blocks) - 1}.")
    if images.labels is None:
        raise BadData("the images have no labels, so nothing global is known that a token could hold.")
    site = f"blocks.{layer}.hook_resid_post"
    later = [f"blocks.{at}.attn.hook_pattern" for at in range(layer + 1, len(parts.blocks))]
    generator = np.random.default_rng(seed)
    places = {"long": _draw(mask, generator), "other": _draw(~mask, generator)}
    rows: dict[str, list[np.ndarray]] = {"long": [], "other": []}
    seen: dict[str, list[np.ndarray]] = {name: [] for name in later}
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        cache = model.run(images[part], capture=[site, *later]).cache
        patches = cache[site][:, prefix:].double().cpu().numpy()
        for kind, drawn in places.items():
            # Images without such a patch give their first one, and are left out below.
            rows[kind].append(patches[np.arange(len(patches)), np.maximum(drawn[part], 0)])
        for name in later:
            seen[name].append(_received(cache[name], torch.from_numpy(mask[part]).to(model.device), prefix))
    usable = (places["long"] >= 0) & (places["other"] >= 0)
    held = what_tokens_hold(
        {kind: np.concatenate(each)[usable] for kind, each in rows.items()},
        {kind: drawn[usable] for kind, drawn in places.items()},
        np.asarray(images.labels)[usable],
        _grid(parts, mask.shape[1]),
        train=train,
        seed=seed,
    )
    attention = [row for name in later for row in _attention(name, np.concatenate(seen[name]), prefix, seed)]
    return OutlierContent(
        title=f"What long patches after block {layer} of {getattr(model, 'name', '') or 'a model'} hold",
        tables={"held": held} | ({"attention": pl.DataFrame(attention)} if attention else {}),
        facts={"layer": layer, "images": int(usable.sum())},
        words={
            "label_accuracy": "accuracy of the label read from one such patch, on images that no probe was fitted to",
            "place_r2": "share of the variance of row and column that a ridge regression reads from it",
            "chance": "accuracy of always naming the most frequent class of the training images",
            "to_long": "mean attention that a long patch gets",
            "to_other": "mean attention that another patch of the same image gets",
            "ratio": "to_long over to_other",
        },
        caveats=("A probe shows what can be read, not what the model reads.",),
        provenance=provenance(model=model, images=images, seed=seed),
    )


def what_tokens_hold(
    rows: dict[str, Float[np.ndarray, "image d"]],
    places: dict[str, Int[np.ndarray, " image"]],
    labels: Int[np.ndarray, " image"],
    grid: tuple[int, int],
    *,
    train: float = 0.5,
    seed: int = 0,
) -> pl.DataFrame:
    """Label and place read from one token per image, for each kind of token; the same images train and judge.

    Args:
        rows: per kind of token `[image d]`.
        places: per kind the number of the patch.
        labels: of the images.
        grid: patches (down, across).
        train: share of the images that fit.
        seed: of the split and the bootstrap.

    Returns:
        `token label_accuracy low high place_r2 place_low place_high chance n`.

    Raises:
        BadData: too few images, or one class only.
        NotFinite: NaN or Inf in the rows.
        OutOfRange: a share that is not between 0 and 1.
    """
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if not 0 < train < 1:
        raise OutOfRange(f"train={train} is the share of images that fit: between 0 and 1.")
    n = len(labels)
    order = np.random.default_rng(seed).permutation(n)
    fit, judge = order[: round(train * n)], order[round(train * n) :]
    if len(fit) < 10 or len(judge) < 10 or len(np.unique(labels[fit])) < 2:
        raise BadData(
            f"{n} images with a long and another patch, {len(np.unique(labels))} classes: too few to fit and judge "
            "probes (10 images on either side, two classes). Use more images."
        )
    kinds, counts = np.unique(labels[fit], return_counts=True)
    chance = float((labels[judge] == kinds[counts.argmax()]).mean())
    found = []
    for kind, each in rows.items():
        each = finite(f"tokens {kind!r}", np.asarray(each, np.float64))
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=0.1))
        right = (probe.fit(each[fit], labels[fit]).predict(each[judge]) == labels[judge]).astype(np.float64)
        where = np.stack(np.divmod(places[kind], grid[1]), axis=1).astype(np.float64)
        regression = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 7)))
        guessed = regression.fit(each[fit], where[fit]).predict(each[judge])
        accuracy = bootstrap(right, seed=seed)
        r2 = interval_of(_r2, guessed, where[judge], seed=seed, resamples=500)
        found.append(
            {"token": kind, "label_accuracy": float(accuracy.effect[0]), "low": float(accuracy.low[0])}
            | {"high": float(accuracy.high[0]), "place_r2": r2[0], "place_low": r2[1], "place_high": r2[2]}
            | {"chance": chance, "n": len(judge)}
        )
    return pl.DataFrame(found).with_columns(pl.col(pl.Float64).fill_nan(None))


def _r2(guessed: np.ndarray, true: np.ndarray) -> float:
    spread = ((true - true.mean(0)) ** 2).sum()
    return float(1 - ((guessed - true) ** 2).sum() / spread) if spread > 0 else float("nan")


def _draw(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """One marked patch per image, at random; -1 where there is none."""
    score = np.where(mask, generator.random(mask.shape), -1.0)
    return np.where(mask.any(1), score.argmax(1), -1)


def _grid(parts: Any, n_patches: int) -> tuple[int, int]:
    grid = parts.grid
    return grid if grid is not None and grid[0] * grid[1] == n_patches else (1, n_patches)


def _received(pattern: torch.Tensor, mask: torch.Tensor, prefix: int) -> np.ndarray:
    """Mean attention to long and other patches from CLS (if any) and from patches, mean over heads `[image 4]`."""
    weights = pattern.double().mean(1)
    queries = [weights[:, 0] if prefix else weights.mean(1), weights[:, prefix:].mean(1)]
    found = []
    for query in queries:
        for where in (mask, ~mask):
            count = where.sum(1)
            mean = (query[:, prefix:] * where).sum(1) / count.clamp(min=1)
            found.append(torch.where(count > 0, mean, torch.nan))
    return torch.stack(found, 1).cpu().numpy()


def _attention(name: str, seen: np.ndarray, prefix: int, seed: int) -> list[dict[str, Any]]:
    rows = []
    for place, query in enumerate(("first token" if prefix else "all tokens", "patches")):
        long, other = seen[:, 2 * place], seen[:, 2 * place + 1]
        one, two = bootstrap(long, seed=seed), bootstrap(other, seed=seed)
        more = paired_difference(long, other, seed=seed)
        rows.append(
            {"layer": int(name.split(".")[1]), "query": query, "to_long": float(one.effect[0])}
            | {"to_other": float(two.effect[0]), "ratio": float(one.effect[0] / max(two.effect[0], 1e-12))}
            | {"difference": float(more.effect[0]), "low": float(more.low[0]), "high": float(more.high[0])}
            | {"n": int(more.n[0])}
        )
    return rows
