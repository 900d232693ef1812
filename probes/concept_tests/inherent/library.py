"""A library of concepts to read a representation with, and the few of them that speak for each image."""

import math
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, unknown

Kind = Literal["kmeans", "prototypes", "random"]


def concept_library(
    z: Float[np.ndarray, "image d"],
    k: int,
    kind: Kind = "kmeans",
    *,
    labels: Int[np.ndarray, " image"] | None = None,
    seed: int = 0,
) -> Float[np.ndarray, "concept d"]:
    """Unit vectors to read a representation with, from training images.

    Args:
        z: representations of training images (or of their patches: `[patch d]`).
        k: how many.
        kind: `kmeans`: centres of k clusters; `prototypes`: k images, spread over the classes where labels are given;
            `random`: Gaussian directions, the control. Texts of CLIP are a library as well: pass their embeddings to
            :func:`concept_activations` directly.
        labels: classes, for `prototypes`.
        seed: of clusters, images or directions.

    Raises:
        UnknownName: no such kind.
        OutOfRange: k not between 1 and the number of images.
        ShapeMismatch, NotFinite, BadData.

    Example:
        >>> concept_library(np.random.default_rng(0).normal(size=(50, 4)), 3).shape
        (3, 4)
    """
    if kind not in get_args(Kind):
        raise unknown("kind of library", kind, get_args(Kind))
    z = representations(z)
    if not 1 <= k <= len(z):
        raise OutOfRange(f"k={k}: from 1 to the {len(z)} images.")
    generator = np.random.default_rng(seed)
    if kind == "random":
        vectors = generator.normal(size=(k, z.shape[1]))
    elif kind == "kmeans":
        from sklearn.cluster import KMeans

        vectors = KMeans(k, n_init=3, random_state=seed).fit(z - z.mean(0)).cluster_centers_
    else:
        vectors = z[_spread(len(z), k, labels, generator)] - z.mean(0)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if (length == 0).any():
        raise BadData("a concept is the zero vector; are all images alike?")
    return vectors / length


def _spread(n: int, k: int, labels: np.ndarray | None, generator: np.random.Generator) -> Int[np.ndarray, " concept"]:
    """Images at random, one class after the other."""
    order = generator.permutation(n)
    if labels is None:
        return order[:k]
    if len(labels) != n:
        raise ShapeMismatch(f"{n} images but {len(labels)} labels.")
    drawn = np.asarray(labels)[order]
    # The how-manieth of its class each image is: all firsts come before all seconds.
    turn = np.zeros(n, int)
    for one in np.unique(drawn):
        turn[drawn == one] = np.arange((drawn == one).sum())
    return order[np.argsort(turn, kind="stable")[:k]]


def concept_activations(
    z: Float[np.ndarray, "image d"], library: Float[np.ndarray, "concept d"], *, mean: Float[np.ndarray, " d"]
) -> Float[np.ndarray, "image concept"]:
    """How much of each concept an image has: `(z - mean) . v`.

    Args:
        z: representations.
        library: vectors.
        mean: of the training images. Taking it off matters: else the concepts nearest to the mean are the largest for
            every image.

    Raises:
        ShapeMismatch, NotFinite: arrays that do not fit, or NaN.

    Example:
        >>> concept_activations(np.eye(2), np.eye(2), mean=np.zeros(2)).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    z, library, mean = representations(z), np.asarray(library, dtype=np.float64), np.asarray(mean, dtype=np.float64)
    if library.ndim != 2 or library.shape[1] != z.shape[1] or mean.shape != z.shape[1:]:
        raise ShapeMismatch(
            f"representations are {z.shape[1]} wide; the library is {list(library.shape)}, the mean {list(mean.shape)}."
        )
    return (z - mean) @ library.T


def sparsified(activations: Float[np.ndarray, "image concept"], sparsity: float) -> Float[np.ndarray, "image concept"]:
    """Activations of which only the largest `(1 - sparsity) K` of each image are left, by size; at least one.

    Raises:
        OutOfRange: a sparsity outside [0, 1).

    Example:
        >>> sparsified(np.array([[1.0, -3.0, 2.0, 0.5]]), 0.5).tolist()
        [[0.0, -3.0, 2.0, 0.0]]
    """
    if not 0 <= sparsity < 1:
        raise OutOfRange(f"sparsity={sparsity}: a share from 0 to below 1.")
    k = activations.shape[1]
    # Rounding first: (1 - 0.9) * 10 is 0.9999999999999998.
    kept = max(1, math.floor(round((1 - sparsity) * k, 9)))
    if kept == k:
        return activations.copy()
    places = np.argpartition(-np.abs(activations), kept - 1, axis=1)[:, :kept]
    sparse = np.zeros_like(activations)
    np.put_along_axis(sparse, places, np.take_along_axis(activations, places, axis=1), axis=1)
    return sparse


def representations(z: np.ndarray) -> Float[np.ndarray, "image d"]:
    """`[image d]` of finite numbers in float64, or an error that says why not."""
    z = np.asarray(z, dtype=np.float64)
    if z.ndim != 2 or not z.size:
        raise ShapeMismatch(f"representations are [image d], got {list(z.shape)}.")
    if not np.isfinite(z).all():
        raise NotFinite(f"row {int((~np.isfinite(z)).any(1).argmax())} of the representations holds NaN or Inf.")
    return z
