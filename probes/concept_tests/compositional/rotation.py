"""One subspace in which images fall into clusters: the step that CCE repeats.

Maximise over orthonormal columns R `[d m]` (Adam on a free matrix whose QR factor is R):

    Silhouette(Z R, clusters) + (10 / K) sum_j cos( mean of Z over cluster j, mean of Z R R^T over cluster j )

The clusters are k-means of Z R, made again at every step from where they were; no gradient goes through them. The
second term asks that clusters differ in nothing but what R sees. The best step is kept.

Source: CCE (Stein et al. 2024), methods2.md 17.2 (**C**). Steps, rate and the k-means that goes on from its last
centres are ours (X).
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch

ALIGNMENT = 10.0
"""Weight of the second term (**C**)."""


def silhouette(points: Float[Tensor, "image m"], labels: Int[Tensor, " image"]) -> Float[Tensor, ""]:
    """Mean silhouette, with gradients in the points.

    `(b - a) / max(a, b)` per image: a its mean distance to its own cluster, b to the nearest other one; 0 for an image
    that is a cluster by itself.

    Raises:
        BadData: fewer than two clusters.

    Example:
        >>> round(float(silhouette(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), torch.tensor([0, 0, 1, 1]))), 4)
        0.8997
    """
    _, labels = labels.unique(return_inverse=True)
    member = torch.nn.functional.one_hot(labels).to(points)
    if member.shape[1] < 2:
        raise BadData("a silhouette needs at least two clusters.")
    # The matrix-product form of the distance has no gradient at 0, which every point is from itself.
    apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    sizes, sums = member.sum(0), apart @ member
    own = member.bool()
    alone = sizes[labels] == 1
    a = sums[own] / (sizes[labels] - 1).clamp_min(1)
    b = (sums / sizes).masked_fill(own, torch.inf).min(1).values
    value = (b - a) / torch.maximum(a, b).clamp_min(torch.finfo(points.dtype).tiny)
    return torch.where(alone, torch.zeros_like(value), value).mean()


def alignment(
    z: Float[Tensor, "image d"], rotation: Float[Tensor, "d m"], labels: Int[Tensor, " image"]
) -> Float[Tensor, ""]:
    """Mean over clusters of the cosine between their mean and its part in the subspace."""
    _, labels = labels.unique(return_inverse=True)
    member = torch.nn.functional.one_hot(labels).to(z)
    means = (member.T @ z) / member.sum(0)[:, None]
    return torch.cosine_similarity(means, means @ rotation @ rotation.T, dim=1).mean()


def learn_rotation(
    z: Float[np.ndarray, "image d"],
    m: int,
    clusters: int,
    *,
    epochs: int = 300,
    rate: float = 0.02,
    batch: int = 1000,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "d m"], Float[np.ndarray, "cluster m"], float]:
    """Learn one subspace and its clusters.

    Args:
        z: centred representations.
        m: width of the subspace.
        clusters: how many.
        epochs: steps of Adam (**C**).
        rate: of Adam (X).
        batch: at most so many images per step: the silhouette costs their square.
        seed: of the start and the batches.

    Returns:
        R with orthonormal columns, centres of the clusters in it, and the value of the objective at the best step.

    Raises:
        ShapeMismatch, NotFinite: no `[image d]` of finite numbers.
        OutOfRange: m or clusters that do not fit.

    Example:
        >>> from mechvis.testing.concept_worlds import two_attributes
        >>> rotation, centres, _ = learn_rotation(two_attributes(60).z, 2, 3, epochs=2)
        >>> rotation.shape, centres.shape
        ((16, 2), (3, 2))
    """
    points = matrix(z)
    n, d = points.shape
    if not 1 <= m <= d:
        raise OutOfRange(f"m={m}: a subspace of representations of width {d} has from 1 to {d} dimensions.")
    if not 2 <= clusters < n:
        raise OutOfRange(f"clusters={clusters}: from 2 to fewer than the {n} images.")
    if epochs < 1 or batch < clusters + 1:
        raise OutOfRange(f"epochs={epochs} is at least 1, batch={batch} more than the {clusters} clusters.")
    generator = torch.Generator().manual_seed(seed)
    free = torch.randn(d, m, generator=generator, dtype=points.dtype).requires_grad_()
    optimiser = torch.optim.Adam([free], lr=rate)
    best, kept, labels = -np.inf, None, None
    for _ in range(epochs):
        with torch.enable_grad():
            rotation = torch.linalg.qr(free).Q
            projected = points @ rotation
            labels = _clusters(projected.detach(), clusters, labels, seed)
            rows = torch.randperm(n, generator=generator)[:batch] if n > batch else slice(None)
            chosen = labels[rows]
            if len(chosen.unique()) < 2:
                continue
            value = silhouette(projected[rows], chosen) + ALIGNMENT * alignment(points[rows], rotation, chosen)
            (gradient,) = torch.autograd.grad(-value, free)
        if (reached := float(value.detach())) > best:
            best, kept = reached, (rotation.detach().clone(), labels)
        free.grad = gradient
        optimiser.step()
    if kept is None:
        raise BadData("all images fell into one cluster at every step; are they all alike?")
    rotation, labels = kept
    inside = (points @ rotation).numpy()
    centres = np.stack([inside[(labels == j).numpy()].mean(0) for j in range(clusters)])
    return rotation.numpy(), centres, best


def _clusters(points: Tensor, clusters: int, before: Tensor | None, seed: int) -> Int[Tensor, " image"]:
    from sklearn.cluster import KMeans

    array = points.numpy()
    start = "k-means++"
    if before is not None and len(before.unique()) == clusters:
        # From the clusters as they were: the subspace has hardly moved, so few steps are needed.
        start = np.stack([array[(before == j).numpy()].mean(0) for j in range(clusters)])
    found = KMeans(clusters, init=start, n_init=1, max_iter=50, random_state=seed).fit(array)
    return torch.from_numpy(found.labels_).long()


def matrix(z: np.ndarray) -> Float[Tensor, "image d"]:
    """Representations as float64, or an error that says why not.

    Raises:
        ShapeMismatch: not `[image d]`.
        NotFinite: NaN or Inf.
    """
    z = np.asarray(z, dtype=np.float64)
    if z.ndim != 2 or not z.size:
        raise ShapeMismatch(f"representations are [image d], got {list(z.shape)}.")
    if not np.isfinite(z).all():
        raise NotFinite(f"image {int((~np.isfinite(z)).any(1).argmax())} holds NaN or Inf.")
    return torch.from_numpy(z)
