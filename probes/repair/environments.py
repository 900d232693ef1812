"""Environments: groups of training images in which a shortcut holds more or less, found without labels for it.

Inside every class the features are clustered (DISC clusters inside classes, methods2.md 17.8 **C**): an image with the
usual background lies elsewhere than one without. Environment `e` is the `e`-th largest cluster of every class together
(**X**): the largest clusters are the majority, the smallest the exceptions, and every environment has all classes.
"""

import numpy as np
from jaxtyping import Float, Int

from mechvis.errors import BadData, OutOfRange
from probes.repair.linear_head import checked


def environments(
    features: Float[np.ndarray, "image d"],
    labels: Int[np.ndarray, " image"],
    *,
    n: int = 2,
    fewest: int = 2,
    seed: int = 0,
) -> Int[np.ndarray, " image"]:
    """An environment for every training image, 0 for the largest cluster of its class.

    Args:
        features: `[image d]`; clustered as they are.
        labels: class indices.
        n: how many.
        fewest: images that every cluster must have.
        seed: of k-means.

    Returns:
        int64 `[image]`, from 0 to n - 1.

    Raises:
        BadData: a class with too few images for its clusters.
        OutOfRange: fewer than two environments.

    Example:
        >>> x = np.array([[0.0]] * 6 + [[9.0]] * 5)
        >>> environments(x, np.zeros(11, int)).tolist()
        [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    """
    from sklearn.cluster import KMeans

    features, labels = checked(features, labels)
    if n < 2 or fewest < 1:
        raise OutOfRange(f"n={n}, fewest={fewest}: instability needs at least two environments of at least one image.")
    found = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        if len(own) < n * fewest:
            raise BadData(f"class {label} has {len(own)} images, too few for {n} clusters of at least {fewest}.")
        clusters = KMeans(n_clusters=n, n_init=4, random_state=seed).fit_predict(features[own])
        sizes = np.bincount(clusters, minlength=n)
        if sizes.min() < fewest:
            raise BadData(
                f"a cluster of class {label} has {sizes.min()} images, fewer than {fewest}. Use fewer environments "
                "(n), more images, or pass environments that you know."
            )
        rank = np.empty(n, dtype=np.int64)
        rank[np.argsort(-sizes, kind="stable")] = np.arange(n)
        found[own] = rank[clusters]
    return found
