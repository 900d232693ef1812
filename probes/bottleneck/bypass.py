"""Can the classifier undo the concepts? A linear layer behind linear scores can, whenever the words span the features.

`c = z T^T` and `y = c W^T` make one matrix `W T`. If `T` has the rank of the features, every linear classifier of the
features is such a chain, with *any* vocabulary: high accuracy then says nothing about the words (CBM-Suite, **N**;
methods2.md 17.5 step 3). The check:

1. linear probe on the features, and on the scores; both regularised in whitened coordinates, where a fit depends on
   the span of the columns only (**X**): if the spans are equal the predictions are, to rounding;
2. the rank of the scores beside the rank of the features;
3. the linear probe on random vocabularies of equal size.

Bypassed: the ranks are equal, or random words do as well (the interval of the difference, whose width counts images
*and* draws of random words, reaches zero).
"""

from typing import Any

import numpy as np
import polars as pl
from scipy.special import softmax

from mechvis.errors import BadData, OutOfRange
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import bootstrap
from probes.bottleneck.concepts import Concepts, random_concepts
from probes.bottleneck.entropy import train_and_test

EQUAL = 1e-6
"""Predictions that differ by less are the same classifier."""


def bypass(
    train: Any,
    test: Any,
    concepts: Concepts,
    *,
    name: str | None = None,
    target: str | None = None,
    words: Concepts | None = None,
    draws: int = 10,
    ridge: float = 1e-3,
    seed: int = 0,
) -> Record:
    """Does a linear chain through these concepts equal the linear probe, and do random words do as well?

    Args:
        train, test: `Features` of different images.
        concepts: the set.
        name: which features, where there are several.
        target: what is predicted; None: the labels.
        words: a pool of random words; None: random directions.
        draws: random vocabularies.
        ridge: strength of the l2 penalty per image, in whitened coordinates.
        seed: of the draws.

    Returns:
        A record with one row per vocabulary: `accuracy` with its interval, `rank` of its scores, `from_probe`: largest
        difference of predicted probabilities from the linear probe's. `facts["bypassed"]` and `facts["why"]`.

    Raises:
        SplitOverlap: training images among the test images.
        OutOfRange: fewer than two draws, or a ridge that is not positive.

    Example:
        >>> bypass(train, test, random_concepts(64, 64, orthonormal=True)).facts["bypassed"]   # doctest: +SKIP
        True
    """
    if draws < 2 or not ridge > 0:
        raise OutOfRange(f"draws={draws}, ridge={ridge}: at least two random vocabularies and a positive penalty.")
    z, y, z_test, y_test = train_and_test(train, test, name, target)
    z, z_test = concepts.seen(z), concepts.seen(z_test)
    pool = {"words": words} if words is not None else {"d": z.shape[1], "normalise": concepts.normalise}
    probe, full = linear_probabilities(z, y, z_test, ridge=ridge)

    def chain(set_: Concepts) -> tuple[np.ndarray, int]:
        return linear_probabilities(z @ set_.directions.T, y, z_test @ set_.directions.T, ridge=ridge)

    own, rank = chain(concepts)
    random = [chain(random_concepts(len(concepts), seed=seed + draw, **pool)) for draw in range(draws)]

    def right(probabilities: np.ndarray) -> np.ndarray:
        return (probabilities.argmax(1) == y_test).astype(float)

    each = np.stack([right(p) for p, _ in random])
    hits = each.mean(0)
    better = right(own) - hits
    # One set of random words may be lucky: how far they differ from each other counts, not only how far images do.
    error = np.hypot(better.std(ddof=1) / np.sqrt(len(better)), each.mean(1).std(ddof=1) * np.sqrt(1 + 1 / draws))
    over = float(better.mean())
    low, high = over - 1.96 * float(error), over + 1.96 * float(error)
    spans, no_better = rank >= full, low <= 0
    rows = [
        _row("features (linear probe)", right(probe), full, 0.0),
        _row("concepts", right(own), rank, float(np.abs(own - probe).max())),
        _row("random words", hits, int(np.median([r for _, r in random])), float(np.abs(random[0][0] - probe).max())),
    ]
    why = []
    if spans:
        why.append(f"the scores have the rank of the features ({rank}), so the classifier can undo them")
    if no_better:
        why.append(
            f"random words do as well (difference {over:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}, "
            f"n = {len(y_test)}, {draws} draws)"
        )
    return Record(
        kind="concept_bypass",
        title="Can a linear classifier undo the concepts?",
        tables={"vocabularies": pl.DataFrame(rows)},
        facts={
            "bypassed": bool(spans or no_better),
            "why": "; ".join(why) or "the concepts do not span the features and beat random words",
            "rank": rank,
            "feature_rank": full,
            "equals_probe": bool(np.abs(own - probe).max() <= EQUAL),
            "over_random": over,
            "over_random_low": low,
            "over_random_high": high,
        },
        words={
            "accuracy": "of a linear classifier on the scores, test images",
            "rank": "of the scores of the training images",
            "from_probe": f"largest difference of probabilities from the linear probe; below {EQUAL:g} is the same",
            "over_random": "accuracy of the concepts minus that of random words; interval from images and draws",
        },
        caveats=(
            "A bypassed set needs a layer that cannot be merged with the scores: use the non-linear head.",
            "Not bypassed by this check does not mean that the names are right.",
        ),
        provenance=provenance(seed=seed, features=train.provenance, settings={"ridge": ridge, "draws": draws}),
    )


def linear_probabilities(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, n_classes: int | None = None, ridge: float = 1e-3
) -> tuple[np.ndarray, int]:
    """Class probabilities of test rows by multinomial logistic regression in whitened coordinates, and the rank.

    Centred training rows `U S V^T` become `sqrt(n) U` (columns with a singular value below 1e-10 of the first are
    dropped). An invertible linear map of the columns rotates these coordinates only, and an l2 penalty does not see
    rotations: so the answer depends on the span.

    Raises:
        BadData: constant rows.
    """
    from sklearn.linear_model import LogisticRegression

    mean = train.mean(0)
    _, s, vt = np.linalg.svd(train - mean, full_matrices=False)
    rank = int((s > 1e-10 * s[0]).sum()) if s[0] > 0 else 0
    if rank == 0:
        raise BadData("all training rows are equal: nothing can be read from them.")
    turn = vt[:rank].T / s[:rank] * np.sqrt(len(train))
    fit = LogisticRegression(C=1 / (ridge * len(train)), solver="newton-cholesky", tol=1e-12, max_iter=200)
    fit.fit((train - mean) @ turn, labels)
    found = fit.predict_proba((test - mean) @ turn)
    probabilities = np.zeros((len(test), n_classes or int(labels.max()) + 1))
    probabilities[:, fit.classes_] = found
    return probabilities, rank


def linear_logits(
    train: np.ndarray, labels: np.ndarray, rows: np.ndarray, *, n_classes: int | None = None, ridge: float = 1e-3
) -> np.ndarray:
    """Log-probabilities of the same probe: a teacher's logits. A class without training images gets next to nothing."""
    probabilities, _ = linear_probabilities(train, labels, rows, n_classes=n_classes, ridge=ridge)
    return np.log(np.maximum(probabilities, 1e-12))


def teacher_probabilities(logits: np.ndarray, tau: float) -> np.ndarray:
    """Probabilities at a temperature."""
    return softmax(np.asarray(logits, dtype=np.float64) / tau, axis=1)


def _row(what: str, hits: np.ndarray, rank: int, far: float) -> dict[str, Any]:
    found = bootstrap(hits)
    ends = {"low": float(found.low[0]), "high": float(found.high[0]), "n": int(found.n[0])}
    return {"vocabulary": what, "accuracy": float(found.effect[0]), **ends, "rank": rank, "from_probe": far}
