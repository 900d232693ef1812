"""Lengths of tokens, layer by layer: where do a few patches become ten times as long as the others? (methods.md 12)

In many large vision transformers a few patches with little to say are taken as scratch space: from some layer on their
vectors are several times longer than all others, and they hold global information (Darcet et al. 2024, **K**). The
histogram of patch lengths then has a second hill. What counts as long differs between models (30 in CLIP B/16, 150 in
DINOv2-L, **C**), so the limit is read off the histogram (:func:`suggest_threshold`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from mechvis.data.images import ImageSet
from mechvis.errors import BadData, NotFinite, OutOfRange, UnknownName
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import bootstrap

WORDS = {
    "median": "median length of a patch token",
    "p99": "length that 99 of 100 patch tokens stay below",
    "max": "largest length of a patch token",
    "prefix": "median length of the tokens before the patches",
    "threshold": "suggested limit between normal and long patches; none: the lengths have one hill only",
    "share": "share of patches above the threshold, mean over images with its 95 % interval",
    "images_with": "share of images with at least one patch above the threshold",
    "n": "images",
}


class TokenNorms(Record):
    """Lengths of tokens per layer; see :func:`token_norms`."""

    KIND = "token_norms"

    def of(self, layer: int) -> Float[np.ndarray, "image token"]:
        """Lengths of all tokens after a block (prefix first).

        Raises:
            OutOfRange: a layer that was not measured.
        """
        if f"norms/{layer}" not in self.arrays:
            raise OutOfRange(f"layer {layer} was not measured; there are {self.table['layer'].to_list()}.")
        return self.arrays[f"norms/{layer}"]

    def last_with_outliers(self) -> int | None:
        """The last layer whose lengths have a second hill, or None."""
        found = self.table.filter(pl.col("threshold").is_not_null())["layer"]
        return None if found.is_empty() else int(found[-1])

    def outliers(self, layer: int | None = None, threshold: float | None = None) -> Bool[np.ndarray, "image patch"]:
        """Which patches are long.

        Args:
            layer: after which block; default: the last with a second hill.
            threshold: limit; default: the suggested one of that layer.

        Raises:
            BadData: no second hill, and no threshold given; or no patch above it.
            OutOfRange: a layer that was not measured.
        """
        layer = self.last_with_outliers() if layer is None else layer
        if layer is None:
            raise BadData(
                "patch lengths have one hill in every layer: no outlier tokens. Give layer= and threshold= to insist."
            )
        lengths = self.of(layer)[:, self.facts["n_prefix"] :]
        threshold = self.pick(layer=layer)["threshold"] if threshold is None else threshold
        if threshold is None:
            raise BadData(f"patch lengths after layer {layer} have one hill only: give threshold= to insist.")
        if not (lengths > threshold).any():
            raise BadData(
                f"no patch after layer {layer} is longer than {threshold:g}; the longest is {lengths.max():g}."
            )
        return lengths > threshold

    def positions(self, layer: int | None = None, threshold: float | None = None) -> Float[np.ndarray, "down across"]:
        """Share of the images in which the patch at each place is long."""
        return self.outliers(layer, threshold).mean(0).reshape(self.facts["grid"])

    def figures(self) -> list:
        """Histograms of the lengths per layer."""
        from mechvis.plots.norm_histogram import norm_histogram
        from mechvis.report.blocks import Figure

        prefix = self.facts["n_prefix"]
        layers = self.table["layer"].to_list()
        lengths = [self.of(layer)[:, prefix:].ravel() for layer in layers]
        figure = norm_histogram([f"layer {layer}" for layer in layers], lengths, self.table["threshold"].to_list())
        return [Figure(figure, "Patches only; the line is the suggested threshold, where there is a second hill.")]


def token_norms(
    model: Any,
    images: Any,
    *,
    layers: Sequence[int] | None = None,
    ratio: float = 2.0,
    most: float = 0.2,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> TokenNorms:
    """Length of every token after every block, with a suggested threshold per layer.

    Args:
        model: a wrapped image tower.
        images: an `ImageSet` or pixels.
        layers: blocks; default: all.
        ratio, most: see :func:`suggest_threshold`.
        batch_size: images per forward.
        seed: of the bootstrap.
        progress: show a progress bar.

    Returns:
        TokenNorms: one row per layer; the lengths in `arrays`.

    Raises:
        OutOfRange: no such layer.
        UnknownName: a text tower.
        NotFinite: NaN or Inf in the stream.

    Example:
        >>> norms = token_norms(model, images)                                                     # doctest: +SKIP
        >>> norms.outliers().sum(1)                                                                # doctest: +SKIP
    """
    parts = model.parts
    if parts.modality != "image":
        raise UnknownName("a text tower has no patches; give an image tower (clip.vision).")
    n_layers, prefix = len(parts.blocks), len(parts.prefix)
    chosen = list(range(n_layers)) if layers is None else [int(layer) for layer in layers]
    if not chosen or not all(0 <= layer < n_layers for layer in chosen):
        raise OutOfRange(f"layers={chosen}: this model has layers 0 to {n_layers - 1}.")
    sites = {layer: f"blocks.{layer}.hook_resid_post" for layer in chosen}
    found: dict[int, list[np.ndarray]] = {layer: [] for layer in chosen}
    with track(len(images), "token lengths", " images", show=progress) as bar:
        for start in range(0, len(images), batch_size):
            some = images[start : start + batch_size]
            run = model.run(some, capture=list(sites.values()), stop_when_captured=True)
            for layer, site in sites.items():
                found[layer].append(run.cache[site].double().norm(dim=-1).cpu().numpy())
            bar.update(len(some))
    lengths = {layer: np.concatenate(each) for layer, each in found.items()}
    rows = [_row(layer, each, prefix, ratio, most, seed) for layer, each in lengths.items()]
    n_patches = next(iter(lengths.values())).shape[1] - prefix
    grid = parts.grid if parts.grid is not None and parts.grid[0] * parts.grid[1] == n_patches else (1, n_patches)
    hills = [row["layer"] for row in rows if row["threshold"] is not None]
    return TokenNorms(
        title=f"Lengths of the tokens of {getattr(model, 'name', '') or 'a model'} in {len(images)} images",
        tables={"layers": pl.DataFrame(rows, infer_schema_length=None, schema_overrides=_TYPES)},
        arrays={f"norms/{layer}": each for layer, each in lengths.items()},
        facts={"n_prefix": prefix, "grid": list(grid), "ratio": ratio, "most": most},
        words=WORDS,
        caveats=(
            f"Long patches stand apart after layers {', '.join(map(str, hills))}."
            if hills
            else "Patch lengths have one hill in every layer: no outlier tokens are seen here.",
            "A threshold is a suggestion from a smoothed histogram: look at the figure.",
        ),
        provenance=provenance(model=model, images=images if isinstance(images, ImageSet) else None, seed=seed),
    )


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A limit between two hills of a histogram."""

    value: float
    """The limit, at the bottom of the valley."""
    share: float
    """Share of the values above it."""
    normal: float
    """Top of the main hill."""
    long: float
    """Top of the second hill."""


def suggest_threshold(
    norms: Float[np.ndarray, "*token"], *, ratio: float = 2.0, most: float = 0.2, bins: int = 64, smooth: float = 1.5
) -> Threshold | None:
    """Where long tokens begin, or None if their lengths have one hill only (**X**).

    1. A histogram of the logarithms, smoothed.
    2. From the main hill to the right: the highest later hill above the lowest valley before it.
    3. It counts if its top is at least `ratio` times as long as the main hill's, and five robust standard deviations
       away from it, and if at most `most` of the tokens lie beyond the valley.

    Args:
        norms: lengths of patch tokens, of any shape.
        ratio: least distance of the two hills, as a factor.
        most: largest share of long tokens.
        bins: of the histogram.
        smooth: width of the smoothing, in bins.

    Raises:
        BadData: no token, or lengths that are not positive.
        NotFinite: NaN or Inf.
        OutOfRange: a ratio of 1 or less, a share that is none.

    Example:
        >>> short, long = np.linspace(9, 11, 980), np.linspace(55, 65, 20)
        >>> 15 < suggest_threshold(np.concatenate([short, long])).value < 50
        True
    """
    from scipy.ndimage import gaussian_filter1d

    values = np.asarray(norms, np.float64).ravel()
    if not np.isfinite(values).all():
        raise NotFinite("lengths of tokens hold NaN or Inf.")
    if not len(values) or values.max() <= 0 or values.min() < 0:
        raise BadData("lengths of tokens must be given, and be positive.")
    if not ratio > 1 or not 0 < most < 1:
        raise OutOfRange(f"ratio={ratio}, most={most}: a factor above 1 and a share between 0 and 1.")
    logs = np.log(np.maximum(values, values.max() * 1e-6))
    if logs.max() - np.median(logs) < np.log(ratio):
        return None
    counts, edges = np.histogram(logs, bins=bins)
    density = gaussian_filter1d(counts.astype(np.float64), smooth, mode="constant")
    middle = (edges[:-1] + edges[1:]) / 2
    main = int(density.argmax())
    right = density[main:]
    lowest = np.minimum.accumulate(right)
    spread = 1.4826 * np.median(np.abs(logs - np.median(logs)))
    far = middle[main:] - middle[main] >= max(np.log(ratio), 5 * spread)
    rises = far & (right >= 2 * lowest) & (right > lowest)
    if not rises.any():
        return None
    peak = int(np.where(rises, right - lowest, -np.inf).argmax())
    # An empty stretch has many lowest bins: the middle one.
    bottom = np.flatnonzero(right[: peak + 1] <= lowest[peak] + 1e-12)
    valley = middle[main + int(bottom[len(bottom) // 2])]
    share = float((logs > valley).mean())
    if not 0 < share <= most:
        return None
    return Threshold(
        value=float(np.exp(valley)),
        share=share,
        normal=float(np.exp(middle[main])),
        long=float(np.exp(middle[main + peak])),
    )


_TYPES = {name: pl.Float64 for name in ("threshold", "share", "share_low", "share_high", "images_with", "prefix")}


def _row(layer: int, lengths: np.ndarray, prefix: int, ratio: float, most: float, seed: int) -> dict[str, Any]:
    patches = lengths[:, prefix:]
    found = suggest_threshold(patches, ratio=ratio, most=most)
    row = {"layer": layer, "median": float(np.median(patches)), "p99": float(np.quantile(patches, 0.99))}
    row |= {"max": float(patches.max()), "prefix": float(np.median(lengths[:, :prefix])) if prefix else None}
    row |= {"threshold": None, "share": None, "share_low": None, "share_high": None, "images_with": None}
    if found is not None:
        long = patches > found.value
        one = bootstrap(long.mean(1), seed=seed)
        row |= {"threshold": found.value, "share": float(one.effect[0])}
        row |= {"share_low": float(one.low[0]), "share_high": float(one.high[0])}
        row |= {"images_with": float(long.any(1).mean())}
    return row | {"n": len(lengths)}
