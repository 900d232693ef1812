"""How well concepts combine: whether an image is the sum of its concepts, and whether combinations can be read.

`compositionality`: the mean over images of `min_{c >= 0} | z - sum_j c_j l_j v_j |`, l_j whether the image has concept
j. Lower is better; it stands beside what random vectors and no vectors reach. `compositional_ap`: a logistic regression
on the cosines to the component concepts predicts whether an image has *all* of a combination; average precision on
other images, beside its chance, the share of such images.

Source: CCE, methods2.md 17.2 (**C**).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from mechvis import stats
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, SplitOverlap
from mechvis.provenance import provenance
from mechvis.record import Record
from probes.concept_tests.compositional.rotation import matrix


def purity(clusters: Int[np.ndarray, " image"], values: Int[np.ndarray, " image"]) -> float:
    """Share of images that have their cluster's most frequent value.

    Raises:
        ShapeMismatch: not one of each per image.

    Example:
        >>> purity(np.array([0, 0, 1, 1]), np.array([5, 5, 5, 6]))
        0.75
    """
    clusters, values = np.asarray(clusters), np.asarray(values)
    if clusters.shape != values.shape or clusters.ndim != 1 or not len(clusters):
        raise ShapeMismatch(
            f"one cluster and one value per image; got {list(clusters.shape)} and {list(values.shape)}."
        )
    best = [np.unique(values[clusters == one], return_counts=True)[1].max() for one in np.unique(clusters)]
    return float(np.sum(best) / len(values))


def compositionality(
    z: Float[np.ndarray, "image d"],
    labels: Bool[np.ndarray, "image concept"],
    concepts: Float[np.ndarray, "concept d"],
    *,
    mean: Float[np.ndarray, " d"] | None = None,
    random_draws: int = 5,
    seed: int = 0,
    model: Any = None,
    images: Any = None,
) -> Record:
    """How far images are from non-negative sums of the concepts that they have.

    Args:
        z: representations.
        labels: which image has which concept.
        concepts: vectors.
        mean: taken off the representations first; default: their mean.
        random_draws: sets of random vectors of the same lengths, with the same labels.
        seed: of those.
        model: whose name goes into the record.
        images: likewise.

    Returns:
        A Record of kind `compositionality`: `set` (`concepts`, `random`, `none`), `distance`, `low`, `high`, `relative`
        (to none), `n`.

    Raises:
        ShapeMismatch, NotFinite, OutOfRange.

    Example:
        >>> found = compositionality(z, labels, concepts)                                          # doctest: +SKIP
        >>> found.pick(set="concepts")["distance"]                                                 # doctest: +SKIP
    """
    points = matrix(z).numpy()
    vectors, has = matrix(concepts).numpy(), np.asarray(labels)
    if has.shape != (len(points), len(vectors)) or vectors.shape[1] != points.shape[1]:
        raise ShapeMismatch(
            f"labels are [image concept]: got {list(has.shape)} for {len(points)} images of width {points.shape[1]} "
            f"and concepts {list(vectors.shape)}."
        )
    if has.dtype != bool and not np.isin(has, (0, 1)).all():
        raise ShapeMismatch("labels say whether an image has a concept: True or False, 1 or 0.")
    if random_draws < 1:
        raise OutOfRange(f"random_draws={random_draws}: at least 1.")
    has = has.astype(bool)
    centred = points - (points.mean(0) if mean is None else np.asarray(mean))
    generator = np.random.default_rng(seed)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    drawn = []
    for _ in range(random_draws):
        some = generator.normal(size=vectors.shape)
        drawn.append(_distances(centred, has, some / np.linalg.norm(some, axis=1, keepdims=True) * lengths))
    per_image = {
        "concepts": _distances(centred, has, vectors),
        "random": np.mean(drawn, axis=0),
        "none": np.linalg.norm(centred, axis=1),
    }
    whole = per_image["none"].mean()
    rows = []
    for name, values in per_image.items():
        found = stats.bootstrap(values, seed=seed)
        rows.append(
            {
                "set": name,
                "distance": float(found.effect[0]),
                "low": float(found.low[0]),
                "high": float(found.high[0]),
                "relative": float(values.mean() / whole),
                "n": len(values),
            }
        )
    return Record(
        kind="compositionality",
        title=f"Distance of {len(points)} images from sums of their concepts",
        tables={"distances": pl.DataFrame(rows)},
        arrays={"per_image": np.stack(list(per_image.values()))},
        facts={"concepts": len(vectors), "random draws": random_draws},
        words={
            "distance": "mean over images of the distance to the nearest non-negative sum of their concepts",
            "relative": "the same as a share of the distance from no concepts at all",
            "low": "lower end of the 95 % interval over images",
            "high": "upper end",
            "n": "images",
        },
        provenance=provenance(model=model, images=images, seed=seed),
    )


def _distances(points: np.ndarray, has: np.ndarray, vectors: np.ndarray) -> Float[np.ndarray, " image"]:
    from scipy.optimize import nnls

    return np.array(
        [
            nnls(vectors[own].T, point)[1] if own.any() else np.linalg.norm(point)
            for point, own in zip(points, has, strict=True)
        ]
    )


def compositional_ap(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    concepts: Float[np.ndarray, "concept d"],
    combinations: Sequence[Sequence[int]],
    *,
    mean: Float[np.ndarray, " d"] | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """Average precision of reading combinations from the cosines to their component concepts.

    Args:
        train: representations `[image d]` and labels `[image concept]` to fit on.
        test: the same of other images.
        concepts: vectors.
        combinations: concepts that an image must have together, by index.
        mean: taken off the representations first; default: that of the training images.
        seed: of the bootstrap.

    Returns:
        One row per combination: `combination`, `ap`, `low`, `high`, `chance`, `n`, `n_positive`.

    Raises:
        ShapeMismatch, NotFinite.
        SplitOverlap: the same images on both sides.
        BadData: a combination that no image, or every image, has on either side.
        OutOfRange: a concept that does not exist.

    Example:
        >>> compositional_ap((z, labels), (z2, labels2), concepts, [(0, 3)])                       # doctest: +SKIP
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score

    (first, first_has), (second, second_has) = (
        (matrix(z).numpy(), np.asarray(has).astype(bool)) for z, has in (train, test)
    )
    if first.shape == second.shape and np.array_equal(first, second):
        raise SplitOverlap("the training and the test images are the same; precision there would say nothing.")
    vectors = matrix(concepts).numpy()
    centre = first.mean(0) if mean is None else np.asarray(mean)
    rows = []
    for combination in combinations:
        parts = list(combination)
        if not parts or min(parts) < 0 or max(parts) >= len(vectors):
            raise OutOfRange(f"combination {parts} of concepts 0 to {len(vectors) - 1}.")
        wanted = [has[:, parts].all(1) for has in (first_has, second_has)]
        for side, truth in zip(("training", "test"), wanted, strict=True):
            if truth.all() or not truth.any():
                raise BadData(
                    f"{int(truth.sum())} of {len(truth)} {side} images have the combination {parts}; some must."
                )
        cosines = [_cosines(z - centre, vectors[parts]) for z in (first, second)]
        fitted = LogisticRegression(C=100.0, max_iter=1000).fit(cosines[0], wanted[0])
        scores = fitted.decision_function(cosines[1])

        def precision(truth: np.ndarray, score: np.ndarray) -> float:
            return float(average_precision_score(truth, score)) if truth.any() else float("nan")

        ap, low, high = stats.interval_of(precision, wanted[1], scores, resamples=200, seed=seed)
        rows.append(
            {
                "combination": parts,
                "ap": ap,
                "low": low,
                "high": high,
                "chance": float(wanted[1].mean()),
                "n": len(wanted[1]),
                "n_positive": int(wanted[1].sum()),
            }
        )
    return pl.DataFrame(rows)


def _cosines(points: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(points, axis=1, keepdims=True) * np.linalg.norm(vectors, axis=1)
    return points @ vectors.T / np.maximum(lengths, np.finfo(float).tiny)
