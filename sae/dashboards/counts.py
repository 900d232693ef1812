"""What is known of every latent after one look at all images: how often, how strongly, on which classes.

Sums only, `[latent]` or `[latent class]`, so memory does not grow with the images. A mean activation is a ratio of two
sums over images (activations, rows on which the latent fires); its interval comes from the sums of their squares and
products (the delta method, images as the unit), which stream as well.

The histogram has bins that are fixed in advance, half octaves from 2^-30 to 2^30, so that batches and runs add up; bins
that no latent uses are cut off at the end.
"""

import numpy as np
from jaxtyping import Float, Int

from sae.dashboards.codes import Entries, Rows

OCTAVES = 30
"""Bins reach from 2^-30 to 2^30; what lies beyond is counted in the first or the last."""
PER_OCTAVE = 2
"""Bins per factor of two."""
N_BINS = 2 * OCTAVES * PER_OCTAVE
Z = 1.959963984540054
"""Of a 95 % interval."""


def bins(values: Float[np.ndarray, " entry"]) -> Int[np.ndarray, " entry"]:
    """Bin of each activation above zero.

    Example:
        >>> bins(np.array([1.0, 1.4, 1.5])).tolist()
        [60, 60, 61]
    """
    return np.clip(np.floor(PER_OCTAVE * np.log2(values)).astype(np.int64) + N_BINS // 2, 0, N_BINS - 1)


def edges(first: int = 0, last: int = N_BINS) -> Float[np.ndarray, " edge"]:
    """Edges of the bins from `first` to before `last`."""
    return 2.0 ** ((np.arange(first, last + 1) - N_BINS // 2) / PER_OCTAVE)


class Counts:
    """Sums over images.

    Example:
        >>> counts = Counts(n_latents=512, n_classes=8, n_groups=2)
        >>> counts.images
        0
    """

    def __init__(self, n_latents: int, n_classes: int = 0, n_groups: int = 0):
        """Args:
        n_latents: how many.
        n_classes: classes of the images; 0: not known.
        n_groups: groups.
        """
        self.images = self.rows = self.negative = 0
        """Images, rows, and codes below zero that were seen."""
        self.class_images = np.zeros(n_classes, np.int64)
        """Images of each class."""
        self.group_images = np.zeros(n_groups, np.int64)
        """Images of each group."""
        names = ("fired_images", "fired_rows", "prefix_rows", "total", "total_squares", "rows_squares", "products",
                 "mass", "largest")  # fmt: skip
        self._sums = {name: np.zeros(n_latents) for name in names}
        self._sums["histogram"] = np.zeros((n_latents, N_BINS), np.int64)
        for kind, n in (("class", n_classes), ("group", n_groups)):
            self._sums[f"{kind}_fired"] = np.zeros((n_latents, n), np.int64)
            self._sums[f"{kind}_mass"] = np.zeros((n_latents, n))

    def __getitem__(self, name: str) -> np.ndarray:
        """A sum: `[latent]`, or `[latent class]` (`class_fired`, `class_mass`, `group_fired`, `group_mass`)."""
        return self._sums[name]

    def add(
        self,
        found: Entries,
        per_image: tuple[np.ndarray, ...],
        rows: Rows,
        labels: Int[np.ndarray, " image"] | None = None,
        groups: Int[np.ndarray, " image"] | None = None,
    ) -> None:
        """Count a batch.

        Args:
            found: entries of the batch.
            per_image: `found.per_image()`.
            rows: what rows are about.
            labels: class of every image of the set.
            groups: group of every image of the set.
        """
        s = self._sums
        image, latent, value, _, total, count = per_image
        on_prefix = np.isin(found.row, np.flatnonzero(~np.isin(rows.types, ("patch", "pooled"))))
        n = len(s["total"])
        self.images += len(found.images)
        self.rows += len(found.images) * found.rows
        self.negative += found.negative
        s["prefix_rows"] += np.bincount(found.latent[on_prefix], minlength=n)
        s["fired_rows"] += np.bincount(found.latent, minlength=n)
        np.add.at(s["histogram"], (found.latent, bins(found.value)), 1)
        s["fired_images"] += np.bincount(latent, minlength=n)
        for name, weights in (
            ("total", total), ("total_squares", total**2), ("rows_squares", count.astype(float) ** 2),
            ("products", total * count), ("mass", value),
        ):  # fmt: skip
            s[name] += np.bincount(latent, weights=weights, minlength=n)
        np.maximum.at(s["largest"], latent, value)
        at = slice(found.images.start, found.images.stop)
        for kind, known, seen in (("class", labels, self.class_images), ("group", groups, self.group_images)):
            if known is not None:
                seen += np.bincount(known[at], minlength=len(seen))
                np.add.at(s[f"{kind}_fired"], (latent, known[image]), 1)
                np.add.at(s[f"{kind}_mass"], (latent, known[image]), value)

    def only(self, latents: Int[np.ndarray, " latent"]) -> "Counts":
        """The same for some latents, in that order."""
        found = Counts(len(latents), len(self.class_images), len(self.group_images))
        found.images, found.rows, found.negative = self.images, self.rows, self.negative
        found.class_images, found.group_images = self.class_images, self.group_images
        found._sums = {name: values[latents] for name, values in self._sums.items()}
        return found

    def means(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean activation where a latent fires, over rows, with a 95 % interval over images; NaN where it is unknown.

        The interval is unknown for a latent that fires on fewer than two images.
        """
        s = self._sums
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = s["total"] / s["fired_rows"]
            squares = s["total_squares"] - 2 * mean * s["products"] + mean**2 * s["rows_squares"]
            n = self.images
            error = np.sqrt(np.maximum(squares, 0) * n / max(n - 1, 1)) / s["fired_rows"]
        error[s["fired_images"] < 2] = np.nan
        return mean, mean - Z * error, mean + Z * error

    def used_bins(self) -> tuple[Int[np.ndarray, "latent bin"], Float[np.ndarray, " edge"]]:
        """The histogram from the first bin that is used to the last, and its edges."""
        used = np.flatnonzero(self._sums["histogram"].any(0))
        first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (N_BINS // 2, N_BINS // 2 + 1)
        return self._sums["histogram"][:, first:last], edges(first, last)


def wilson(right: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares with Wilson's 95 % intervals (Wilson 1927); NaN where n is 0.

    Example:
        >>> [round(float(end[0]), 3) for end in wilson(np.array([8]), np.array([10]))]
        [0.8, 0.49, 0.943]
    """
    right, n = np.asarray(right, np.float64), np.asarray(n, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = right / n
        middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    # At the ends rounding would leave 1e-17 of an interval.
    low = np.where(right == 0, np.minimum(share, 0), np.maximum(middle - half, 0))
    return share, low, np.where(right == n, np.maximum(share, 1), np.minimum(middle + half, 1))
