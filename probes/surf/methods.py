"""Concept methods on the head's input, so that their faithfulness can be compared.

Each is scikit-learn's (PCA: a plain SVD; semi-NMF: :mod:`probes.concepts`), on the embeddings of all images (one
dictionary) or of each class (`per_class`, as in the paper). What differs is the projection that belongs to the method:

==========  ===================================================  ============================================
method      concepts                                             projection
==========  ===================================================  ============================================
`pca`       principal directions, about the mean                 inner product
`nmf`       non-negative parts, about the minimum per dimension  non-negative codes (the method's own transform)
`semi_nmf`  signed directions, about the mean                    non-negative least-squares codes
`kmeans`    centres, about the mean                              inner product with the own cluster's centre only
`cav`       normals of linear classifiers of known factors       inner product
`random`    random directions                                    inner product
==========  ===================================================  ============================================

Transformer activations are signed, so NMF gets an offset: the smallest value of each dimension among the images that it
was fitted to. What falls below it on other images is lost, as it is for NMF itself. Offsets are those of all images
also where concepts are made per class: an offset per class would give every image that class's own mean logit.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData, OutOfRange, unknown
from probes.null_space.head import LinearHead, rows_of
from probes.surf.explanation import Explanation, Project, dot, shared, unit_rows

METHODS = ("pca", "nmf", "semi_nmf", "kmeans", "random")


def explain(
    method: str,
    head: LinearHead,
    embeddings: Float[np.ndarray, "image d"],
    *,
    n_concepts: int = 5,
    per_class: bool = True,
    seed: int = 0,
) -> Explanation:
    """Concepts of a head's input by one method, with importances `v_k . F_i` (**X**).

    Args:
        method: one of :data:`METHODS`.
        head: what reads the embeddings; its predictions say which images are of a class.
        embeddings: of images that will not be used to judge.
        n_concepts: per class (5 in the paper), or in all with one dictionary.
        per_class: concepts of each class from the images that the head calls so; False: one dictionary of all images.
        seed: of the method.

    Raises:
        UnknownName: no such method.
        BadData: a class with fewer images than concepts.
        OutOfRange: no concept.

    Example:
        >>> explain("pca", head, embeddings, n_concepts=5)                                         # doctest: +SKIP
    """
    if method not in METHODS:
        raise unknown("concept method", method, METHODS)
    if n_concepts < 1:
        raise OutOfRange(f"n_concepts={n_concepts}: at least one concept.")
    rows = rows_of(embeddings, head.weight.shape[1], "embeddings")
    start, find = _FINDERS[method]
    offset = start(rows)
    if not per_class:
        concepts, project = find(_enough(rows, n_concepts, "all classes") - offset, n_concepts, seed)
        return shared(method, concepts, head, project=project, offset=offset)
    predicted = head(rows).argmax(1)
    found = [
        find(_enough(rows[predicted == index], n_concepts, repr(name)) - offset, n_concepts, seed + index)
        for index, name in enumerate(head.class_names)
    ]
    vectors = tuple(unit_rows(method, concepts) for concepts, _ in found)
    return Explanation(
        name=method,
        concepts=vectors,
        importances=tuple(v @ row for v, row in zip(vectors, head.weight, strict=True)),
        project=tuple(project for _, project in found),
        offset=offset,
    )


def cav(
    head: LinearHead,
    embeddings: Float[np.ndarray, "image d"],
    factors: Mapping[str, np.ndarray | Sequence[Any]],
    *,
    strength: float = 1.0,
) -> Explanation:
    """Concept activation vectors: the normal of a logistic regression for each value of known factors (**K**).

    Args:
        head: what reads the embeddings.
        embeddings: `[image d]`.
        factors: name -> value per image, e.g. `images.columns["background"]`; each value becomes a concept.
        strength: inverse of the penalty (scikit-learn's `C`).

    Raises:
        BadData: no factor, not one value per image, or a factor with a single value.

    Example:
        >>> cav(head, embeddings, {"background": images.columns["background"]})                    # doctest: +SKIP
    """
    from sklearn.linear_model import LogisticRegression

    rows = rows_of(embeddings, head.weight.shape[1], "embeddings")
    if not factors:
        raise BadData("no factors: give at least one, e.g. {'background': images.columns['background']}.")
    mean, normals = rows.mean(0), []
    for name, values in factors.items():
        values = np.asarray(values)
        if len(values) != len(rows):
            raise BadData(f"the factor {name!r} has {len(values)} values for {len(rows)} images.")
        kinds = np.unique(values)
        if len(kinds) < 2:
            raise BadData(f"the factor {name!r} has one value only ({kinds[0]!r}): nothing to tell apart.")
        for kind in kinds:
            fitted = LogisticRegression(C=strength, max_iter=1000).fit(rows - mean, values == kind)
            normals.append(fitted.coef_[0])
    return shared("cav", np.stack(normals), head, offset=mean)


def _enough(rows: np.ndarray, n_concepts: int, what: str) -> np.ndarray:
    if len(rows) <= n_concepts:
        raise BadData(f"{what}: {len(rows)} images for {n_concepts} concepts. Use more images, or per_class=False.")
    return rows


Found = tuple[np.ndarray, Project]


def _pca(rows: np.ndarray, n: int, seed: int) -> Found:
    # Rows of one class are not centred again: the direction of the class's own mean is its first concept.
    return np.linalg.svd(rows, full_matrices=False)[2][:n], dot


def _nmf(rows: np.ndarray, n: int, seed: int) -> Found:
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = NMF(n, init="nndsvda", max_iter=400, random_state=seed).fit(rows)
    length = np.linalg.norm(fitted.components_, axis=1)
    if not (length > 0).all():
        raise BadData(f"NMF found only {int((length > 0).sum())} of {n} parts: ask for fewer concepts.")

    def project(some: np.ndarray, concepts: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            # Codes are for parts of their own length; in units of unit vectors they are that much larger.
            return fitted.transform(np.maximum(some, 0.0)) * length

    return fitted.components_, project


def _semi_nmf(rows: np.ndarray, n: int, seed: int) -> Found:
    from probes.concepts.coding import nonnegative_code
    from probes.concepts.semi_nmf import semi_nmf

    return semi_nmf(rows, n, seed=seed).directions.T, nonnegative_code


def _kmeans(rows: np.ndarray, n: int, seed: int) -> Found:
    from sklearn.cluster import KMeans

    fitted = KMeans(n, n_init=4, random_state=seed).fit(rows)

    def project(some: np.ndarray, concepts: np.ndarray) -> np.ndarray:
        own = np.eye(n)[fitted.predict(np.ascontiguousarray(some))]
        return own * (some @ concepts.T)

    return fitted.cluster_centers_, project


def _random(rows: np.ndarray, n: int, seed: int) -> Found:
    return np.random.default_rng(seed).normal(size=(n, rows.shape[1])), dot


def _mean(rows: np.ndarray) -> np.ndarray:
    return rows.mean(0)


def _smallest(rows: np.ndarray) -> np.ndarray:
    return rows.min(0)


_FINDERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray, int, int], Found]]] = {
    "pca": (_mean, _pca),
    "nmf": (_smallest, _nmf),
    "semi_nmf": (_mean, _semi_nmf),
    "kmeans": (_mean, _kmeans),
    "random": (_mean, _random),
}
"""Per method: the offset, from all images, and what finds concepts in rows without it."""
