"""Massive activations: a few fixed dimensions with huge values at few tokens, which act as constants (methods.md 12).

Sun et al. 2024 (**K**): values of 10^2 to 10^4 times the median, in the same one to three dimensions, at the same few
tokens, nearly the same for every image. Setting them to zero ruins the model; setting them to their mean over images
changes nothing: they are a bias. So the test is *mean against zero* (:mod:`probes.registers.mean_or_zero`).

Detector: `|a| > least` and `|a| > ratio * median |a|` over the tokens and dimensions of the image's stream.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from mechvis.data.images import ImageSet
from mechvis.errors import OutOfRange
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import bootstrap


class MassiveActivations(Record):
    """Where massive activations are; see :func:`massive_activations`."""

    KIND = "massive_activations"

    def dimensions(self, layer: int) -> list[int]:
        """Dimensions that are massive after a block in at least half of the images."""
        found = self.table.filter((pl.col("layer") == layer) & pl.col("fixed"))
        return sorted(set(found["dimension"].to_list()))

    def layers(self) -> list[int]:
        """Layers with a fixed massive dimension."""
        return sorted(set(self.table.filter(pl.col("fixed"))["layer"].to_list()))


def massive_activations(
    model: Any,
    images: Any,
    *,
    layers: Sequence[int] | None = None,
    least: float = 100.0,
    ratio: float = 1000.0,
    fixed: float = 0.5,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> MassiveActivations:
    """Find dimensions of the stream that are far above all others at some tokens.

    Args:
        model: a wrapped tower.
        images: an `ImageSet` or pixels.
        layers: blocks after which to look; default: all.
        least: smallest absolute value (**K**).
        ratio: over the median absolute value of the image's stream (**K**).
        fixed: share of images in which a dimension must be massive to count as fixed.
        batch_size: images per forward.
        seed: of the bootstrap.
        progress: show a progress bar.

    Returns:
        MassiveActivations: one row per layer, dimension and kind of token (`cls`, `register`, `patch`) with at least
        one massive value: `share` of images, `value` (mean over massive entries), `low`, `high`, `spread` (standard
        deviation between images over the mean: near 0 for a constant), `over_median`, `fixed`. No row: there is none.

    Raises:
        OutOfRange: no such layer, or bounds that are not positive.

    Example:
        >>> massive_activations(model, images).layers()                                            # doctest: +SKIP
        [7, 8, 9, 10]
    """
    n_layers = len(model.parts.blocks)
    chosen = list(range(n_layers)) if layers is None else [int(layer) for layer in layers]
    if not chosen or not all(0 <= layer < n_layers for layer in chosen):
        raise OutOfRange(f"layers={chosen}: this model has layers 0 to {n_layers - 1}.")
    if not (least >= 0 and ratio > 0 and 0 < fixed <= 1):
        raise OutOfRange(f"least={least}, ratio={ratio}, fixed={fixed}: bounds are positive, and fixed is a share.")
    names = _kinds(model.parts.prefix)
    found: dict[tuple[int, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    medians: dict[int, list[np.ndarray]] = {layer: [] for layer in chosen}
    with track(len(images), "massive activations", " images", show=progress) as bar:
        for start in range(0, len(images), batch_size):
            some = images[start : start + batch_size]
            sites = {layer: f"blocks.{layer}.hook_resid_post" for layer in chosen}
            cache = model.run(some, capture=list(sites.values()), stop_when_captured=True).cache
            for layer, site in sites.items():
                value = cache[site].double()
                median = value.abs().flatten(1).median(1).values
                mask = massive_mask(value, median, least, ratio)
                medians[layer].append(median.cpu().numpy())
                for kind, tokens in names(value.shape[1]).items():
                    own, marked = value[:, tokens], mask[:, tokens]
                    count = marked.sum(1)
                    mean = (own * marked).sum(1) / count.clamp(min=1)
                    found.setdefault((layer, kind), []).append((mean.cpu().numpy(), (count > 0).cpu().numpy()))
            bar.update(len(some))
    rows = []
    for (layer, kind), parts in found.items():
        mean, has = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        median = np.concatenate(medians[layer])
        for dimension in np.flatnonzero(has.any(0)):
            rows.append(_row(layer, kind, int(dimension), mean[:, dimension], has[:, dimension], median, fixed, seed))
    order = ["layer", "token", "dimension", *_SCHEMA]
    table = (
        pl.DataFrame(rows, schema={**_KEYS, **_SCHEMA})
        .select(order)
        .sort("layer", "over_median", descending=[False, True])
    )
    where = sorted({row["layer"] for row in rows if row["fixed"]})
    said = f"Fixed massive dimensions after layers {', '.join(map(str, where))}." if where else "None is fixed."
    return MassiveActivations(
        title=f"Massive activations of {getattr(model, 'name', '') or 'a model'} in {len(images)} images",
        tables={"activations": table},
        facts={"least": least, "ratio": ratio, "fixed": fixed, "images": len(images)},
        words={
            "share": "share of images with a massive value there",
            "value": "mean over the images that have one, with its 95 % interval",
            "spread": "standard deviation between images over the absolute mean: near 0 for a constant",
            "over_median": "absolute value over the median absolute value of the stream",
            "fixed": "massive in enough images to be a constant rather than an accident",
        },
        caveats=(said if rows else "No value is massive by these bounds.", "Bounds depend on the scale of the model."),
        provenance=provenance(model=model, images=images if isinstance(images, ImageSet) else None, seed=seed),
    )


def massive_mask(value: torch.Tensor, median: torch.Tensor, least: float, ratio: float) -> torch.Tensor:
    """Which entries `[image token d_model]` are massive; `median` of the absolute values, per image."""
    return (value.abs() > least) & (value.abs() > ratio * median[:, None, None])


_KEYS = {"layer": pl.Int64, "token": pl.String, "dimension": pl.Int64}
_SCHEMA = {
    **dict.fromkeys(("share", "value", "low", "high", "spread", "over_median"), pl.Float64),
    "fixed": pl.Boolean,
    "n": pl.Int64,
}


def _row(
    layer: int,
    kind: str,
    dimension: int,
    mean: np.ndarray,
    has: np.ndarray,
    median: np.ndarray,
    fixed: float,
    seed: int,
) -> dict[str, Any]:
    values = mean[has]
    one = bootstrap(values, seed=seed)
    size = abs(float(one.effect[0]))
    row = {"layer": layer, "token": kind, "dimension": dimension, "share": float(has.mean())}
    row |= {"value": float(one.effect[0])}
    row |= {
        "low": None if len(values) < 2 else float(one.low[0]),
        "high": None if len(values) < 2 else float(one.high[0]),
    }
    row |= {"spread": float(values.std() / size) if size > 0 else None}
    row |= {"over_median": float((np.abs(values) / np.maximum(median[has], 1e-30)).mean())}
    return row | {"fixed": bool(has.mean() >= fixed), "n": len(values)}


def _kinds(prefix: Sequence[str]) -> Any:
    """Number of tokens -> kind of token -> its positions."""

    def kinds(n_tokens: int) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for token in range(n_tokens):
            word = prefix[token] if token < len(prefix) else "patch"
            found.setdefault("register" if word.startswith("register") else word, []).append(token)
        return found

    return kinds
