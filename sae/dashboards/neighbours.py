"""Latents that are near: by what they write, and by when they fire.

* decoder: cosine of the two decoder rows (of several written sites, side by side).
* together: of the rows on which either fires, the share on which both do (Jaccard), with its count and interval.

Cosines come in blocks of latents. Firing together is counted on rows that a hash draws (at most `ROWS`, the same ones
whatever the batches), as a sparse matrix; all pairs on all rows would be `latents x latents` numbers.
"""

from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int

from sae.dashboards.best import drawn
from sae.dashboards.codes import Entries
from sae.dashboards.counts import wilson

ROWS = 2**14
"""Rows on which firing together is counted."""
BLOCK = 2**22
"""Pairs of latents at a time."""


class Together:
    """Which latents fire on some rows, drawn by a hash."""

    def __init__(self, n_images: int, *, seed: int = 0, rows: int = ROWS):
        """Args:
        n_images: how many will come.
        seed: of the draw.
        rows: about how many are drawn; all, if there are no more.
        """
        self._n_images, self._seed, self._rows = n_images, seed, rows
        self.count = 0
        """Rows that were drawn."""
        self._found: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, found: Entries) -> None:
        """Look at a batch."""
        share = self._rows / (self._n_images * found.rows)
        image, row = np.divmod(np.arange(len(found.images) * found.rows), found.rows)
        # Latents have numbers below 2^32, so rows get their own ones.
        taken = drawn(image + found.images.start, row + 2**32, self._seed) < share
        number = self.count + np.cumsum(taken) - 1
        of = (found.image - found.images.start) * found.rows + found.row
        kept = taken[of]
        self._found.append((number[of[kept]], found.latent[kept]))
        self.count += int(taken.sum())

    def matrix(self, latents: Int[np.ndarray, " latent"], n_latents: int) -> Any:
        """Which rows some of the latents fire on: sparse, 0 or 1, `[row latent]`."""
        from scipy.sparse import csr_matrix

        row, latent = (np.concatenate(column) for column in zip(*self._found, strict=True))
        ones = np.ones(len(row), np.float32)
        return csr_matrix((ones, (row, latent)), shape=(self.count, n_latents))[:, latents]


def neighbours(
    directions: Float[torch.Tensor, "latent d_out"], fires: Any, number: Int[np.ndarray, " latent"], top: int
) -> pl.DataFrame:
    """The nearest latents of each, by both measures.

    Args:
        directions: decoder rows.
        fires: `Together.matrix` of the same latents.
        number: of each latent.
        top: how many of each kind; those that never fire together are not listed.

    Returns:
        Rows `latent neighbour kind rank cosine together together_low together_high both either`.
    """
    unit = torch.nn.functional.normalize(directions.detach().double(), dim=1)
    counts = np.asarray(fires.sum(0)).ravel()
    found: dict[str, list[np.ndarray]] = {
        name: [] for name in ("latent", "neighbour", "kind", "rank", "cosine", "both")
    }
    n = len(number)
    for start in range(0, n, max(1, BLOCK // max(n, 1))):
        stop = min(n, start + max(1, BLOCK // n))
        cosine = (unit[start:stop] @ unit.T).cpu().numpy()
        both = np.asarray((fires[:, start:stop].T @ fires).todense())
        jaccard = both / np.maximum(counts[start:stop, None] + counts - both, 1)
        own = np.arange(start, stop)
        for kind, near in (("decoder", cosine.copy()), ("together", jaccard)):
            near[np.arange(stop - start), own] = -np.inf
            order = _largest(near, top)
            kept = np.isfinite(np.take_along_axis(near, order, 1))
            if kind == "together":
                kept &= np.take_along_axis(near, order, 1) > 0
            row, rank = np.nonzero(kept)
            other = order[row, rank]
            found["latent"].append(row + start)
            found["neighbour"].append(other)
            found["kind"].append(np.full(len(row), kind))
            found["rank"].append(rank)
            found["cosine"].append(cosine[row, other])
            found["both"].append(both[row, other])
    columns = {name: np.concatenate(parts) for name, parts in found.items()}
    first, second, both = columns["latent"], columns["neighbour"], columns["both"].astype(np.int64)
    either = (counts[first] + counts[second]).astype(np.int64) - both
    share, low, high = wilson(both, either)
    table = pl.DataFrame(
        {
            "latent": number[first],
            "neighbour": number[second],
            "kind": columns["kind"].astype(object),
            "rank": columns["rank"],
            "cosine": columns["cosine"],
            "together": share,
            "together_low": low,
            "together_high": high,
            "both": both,
            "either": either,
        },
        schema_overrides={"kind": pl.String},
    )
    return table.with_columns(pl.col("together", "together_low", "together_high").fill_nan(None)).sort(
        "latent", "kind", "rank", maintain_order=True
    )


def _largest(values: np.ndarray, top: int) -> np.ndarray:
    """Columns of the largest values of each row, descending."""
    top = min(top, values.shape[1])
    if top == 0:
        return np.zeros((len(values), 0), np.int64)
    # A partition first: sorting thousands of columns for eight of them would be most of the work.
    part = np.sort(np.argpartition(-values, top - 1, axis=1)[:, :top], axis=1)
    order = np.argsort(-np.take_along_axis(values, part, 1), axis=1, kind="stable")
    return np.take_along_axis(part, order, 1)
