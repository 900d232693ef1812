"""k-means as a dictionary: one active latent per row, the nearest centroid.

The sparsest dictionary there is (L0 = 1). A centroid is written as mean + length · direction, so that a code is how far
the centroid is from the mean, and decoder rows have norm one as everywhere.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from sae.baselines.fitted import Fitted, Rows, made, read_rows, require_count

if TYPE_CHECKING:
    from sae.dictionary import Dictionary
    from sae.ends import Ends


@dataclass(frozen=True, kw_only=True)
class NearestCentroid(Fitted):
    """The code of the nearest centroid is its distance from the mean; all others are zero."""

    NAME: ClassVar[str] = "nearest_centroid"

    def state(self, ends: "Ends") -> dict[str, Tensor]:
        """Distance of each centroid from the mean."""
        return {"length": torch.zeros(self.n_latents)}

    def encode(self, d: "Dictionary", x: Tensor) -> Tensor:
        """See the module."""
        centroids = d.length[:, None] * d.W_dec
        # ‖x - c‖² without its term ‖x‖², which is the same for all.
        distance = centroids.square().sum(1) - 2 * (x - d.b_dec) @ centroids.T
        nearest = distance.argmin(1)
        return torch.zeros_like(distance).scatter(1, nearest[:, None], d.length[nearest][:, None])


def kmeans(rows: Rows, n_latents: int, *, seed: int = 0, starts: int = 1) -> "Dictionary":
    """Centroids of activations (scikit-learn's `KMeans`).

    Args:
        rows: activations `[row d]`, or several by site.
        n_latents: centroids.
        seed: of the starts.
        starts: how often to start anew; the best is kept.

    Raises:
        BadData: more centroids than rows.
        ShapeMismatch, NotFinite: rows that cannot be read.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 0.1], [5.0, 5.0], [5.0, 5.1]])
        >>> kmeans(x, 2).encode(x).count_nonzero(1).tolist()
        [1, 1, 1, 1]
    """
    from sklearn.cluster import KMeans

    ends, x, dtype = read_rows(rows)
    require_count(n_latents, len(x), "k-means")
    mean = x.mean(0)
    # Found on centred rows: squared distances lose no digits to a large mean then.
    centroids = KMeans(n_latents, n_init=starts, random_state=seed).fit(x - mean).cluster_centers_
    length = np.linalg.norm(centroids, axis=1)
    # A centroid on the mean has no direction; any will do, with length zero.
    direction = np.where(length[:, None] > 0, centroids, 1.0)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    tensors = {"W_enc": direction, "W_dec": direction, "b_enc": np.zeros(n_latents), "b_dec": mean}
    architecture = NearestCentroid(n_latents=n_latents)
    return made(architecture, ends, dtype, tensors, {"length": length}, baseline="kmeans", rows=len(x), seed=seed)
