"""k-sparse probing: how well do the k best latents tell a concept, beside all of the activation and random latents?

For each concept (has it / has it not):

1. On training images the k latents with the largest standardised difference of means are chosen (SAEBench takes the
   plain difference of means [S], which favours latents with large codes).
2. Logistic regression on those k, balanced classes, standardised by the training images (scikit-learn).
3. Balanced accuracy on held-out images, with an interval over images: .5 is chance, whatever the share of positives.

The dense probe sees the activation itself: what there is to be found. The same number of latents at random says what
any k latents tell. A dictionary that has a latent for the concept is near the dense probe at k = 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from mechvis.errors import BadData, NotFinite, ShapeMismatch
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import RESAMPLES
from sae.evaluation.intervals import Interval, columns

KS = (1, 2, 4, 8, 16)

WORDS = {
    "concept": "what is told: has it or has it not; 'mean' is the mean over concepts",
    "features": "chosen latents, random latents (mean over draws), or the dense activation",
    "k": "how many latents the probe sees; none: all columns of the activation",
    "accuracy": "balanced accuracy on held-out images, .5 is chance, with its interval over images",
    "positives": "held-out images that have the concept",
    "images": "held-out images",
}


class SparseProbing(Record):
    """Balanced accuracy by concept, features and k; the first table is the mean over concepts."""

    KIND = "sparse_probing"

    def accuracy(self, features: str, k: int | None = None) -> Interval:
        """The mean over concepts."""
        rows = self.table.filter(pl.col("features") == features)
        rows = rows.filter(pl.col("k").is_null() if k is None else pl.col("k") == k)
        if rows.height != 1:
            raise BadData(f"no probe on {features} with k={k} here.")
        row = rows.row(0, named=True)
        return row["accuracy"], row["accuracy_low"], row["accuracy_high"]


def sparse_probing(
    train: Float[np.ndarray, "image latent"],
    train_concepts: Mapping[str, Bool[np.ndarray, " image"]],
    test: Float[np.ndarray, "other_image latent"],
    test_concepts: Mapping[str, Bool[np.ndarray, " other_image"]],
    *,
    dense: tuple[np.ndarray, np.ndarray] | None = None,
    ks: Sequence[int] = KS,
    draws: int = 2,
    seed: int = 0,
) -> SparseProbing:
    """Probe concepts from k latents.

    Args:
        train: codes of training images, one number per image and latent.
        train_concepts: by name, which of them have it.
        test: codes of held-out images.
        test_concepts: by name, which of them have it.
        dense: activations of the same training and held-out images, for the dense probe.
        ks: numbers of latents; those above the number of latents that vary are left out.
        draws: of random latents.
        seed: of the draws and resamples.

    Raises:
        BadData: no concept, other concepts, one that all or no images have.
        ShapeMismatch: tensors that do not belong together.
        NotFinite: NaN or Inf.

    Example:
        >>> codes = np.eye(2)[np.arange(40) % 2]
        >>> odd = np.arange(40) % 2 == 1
        >>> found = sparse_probing(codes[:20], {"odd": odd[:20]}, codes[20:], {"odd": odd[20:]})
        >>> found.accuracy("chosen", 1)
        (1.0, 1.0, 1.0)
    """
    train, test = (_matrix(a, name) for a, name in ((train, "train"), (test, "test")))
    y, z = _labels(train_concepts, len(train)), _labels(test_concepts, len(test))
    if not y or set(y) != set(z):
        raise BadData(
            f"the same concepts, at least one, for training and held-out images; got {list(y)} and {list(z)}."
        )
    varies = np.flatnonzero(train.std(0) > 0)
    ks = sorted({int(k) for k in ks if 1 <= k <= len(varies)})
    if not ks:
        raise BadData(f"{len(varies)} latents vary on the training images, too few for any k.")
    generator = np.random.default_rng(seed)
    drawn = {k: [generator.choice(varies, k, replace=False) for _ in range(draws)] for k in ks}
    hits: dict[tuple[str, int | None], list[np.ndarray]] = {}
    for concept in y:
        gap = np.abs(train[y[concept]].mean(0) - train[~y[concept]].mean(0))
        order = np.argsort(-np.divide(gap, train.std(0), out=np.zeros_like(gap), where=train.std(0) > 0), kind="stable")
        for k in ks:
            at = order[:k]
            hits.setdefault(("chosen", k), []).append(_right(train[:, at], y[concept], test[:, at], z[concept]))
            some = [_right(train[:, r], y[concept], test[:, r], z[concept]) for r in drawn[k]]
            hits.setdefault(("random", k), []).append(np.mean(some, axis=0))
        if dense is not None:
            a, b = (_matrix(d, name) for d, name in zip(dense, ("dense train", "dense test"), strict=True))
            hits.setdefault(("dense", None), []).append(_right(a, y[concept], b, z[concept]))
    return _record(hits, z, seed)


def _right(x: np.ndarray, y: np.ndarray, test: np.ndarray, truth: np.ndarray) -> Float[np.ndarray, " other_image"]:
    """1 where a probe that was fitted on x, y is right on the held-out images."""
    import sklearn
    from sklearn.linear_model import LogisticRegression

    if len(x) != len(y) or len(test) != len(truth):
        raise ShapeMismatch(f"features of {len(x)} and {len(test)} images, concepts of {len(y)} and {len(truth)}.")
    centre, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    # Balanced classes, as class_weight="balanced" has them; checks of every call would cost more than small fits.
    weight = np.where(y, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        probe = LogisticRegression(max_iter=2000).fit((x - centre) / scale, y, sample_weight=weight)
    above = ((test - centre) / scale) @ probe.coef_[0] + probe.intercept_[0] > 0
    return (above == truth).astype(np.float64)


def _record(
    hits: Mapping[tuple[str, int | None], list[np.ndarray]], truth: Mapping[str, np.ndarray], seed: int
) -> SparseProbing:
    n = len(next(iter(truth.values())))
    rows = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    weights = np.stack([np.ones(n), *(np.bincount(row, minlength=n) for row in rows)])
    means, each = [], []
    for (features, k), by_concept in hits.items():
        balanced = []
        for concept, right in zip(truth, by_concept, strict=True):
            with np.errstate(invalid="ignore", divide="ignore"):
                halves = [
                    weights @ (right * has) / (weights @ has.astype(float)) for has in (truth[concept], ~truth[concept])
                ]
            balanced.append((halves[0] + halves[1]) / 2)
            known = {"concept": concept, "features": features, "k": k}
            each.append({**known, **columns("accuracy", _ends(balanced[-1])), "positives": int(truth[concept].sum())})
        together = np.mean(balanced, axis=0)
        means.append(
            {"concept": "mean", "features": features, "k": k, **columns("accuracy", _ends(together)), "images": n}
        )
    kinds = {"k": pl.Int64}
    return SparseProbing(
        title=f"Sparse probing of {len(truth)} concepts",
        tables={
            "means": pl.DataFrame(means, schema_overrides=kinds),
            "concepts": pl.DataFrame(each, schema_overrides=kinds),
        },
        words=WORDS,
        caveats=("Latents and probes were chosen on the training images, and judged on the others.",),
        provenance=provenance(seed=seed),
    )


def _ends(values: np.ndarray) -> Interval:
    """The first is of the images as they are, the others of resamples."""
    draws = values[1:][np.isfinite(values[1:])]
    if len(draws) < 0.95 * (len(values) - 1):
        return float(values[0]), float("nan"), float("nan")
    return float(values[0]), *(float(end) for end in np.quantile(draws, [0.025, 0.975]))


def _matrix(a: Any, name: str) -> np.ndarray:
    a = np.asarray(a, dtype=np.float64)
    if a.ndim != 2 or 0 in a.shape:
        raise ShapeMismatch(f"{name} is [image latent]; got {list(a.shape)}.")
    if not np.isfinite(a).all():
        raise NotFinite(f"{name} holds NaN or Inf.")
    return a


def _labels(concepts: Mapping[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    found = {name: np.asarray(has) for name, has in concepts.items()}
    for name, has in found.items():
        if has.dtype != bool or has.shape != (n,):
            raise ShapeMismatch(f"concept {name!r} is bool [image], {n} long; got {has.dtype} {list(has.shape)}.")
        if has.all() or not has.any():
            raise BadData(f"concept {name!r}: some images must have it and some not.")
    return found


def concepts_of(images: Any, most: int = 32) -> dict[str, Bool[np.ndarray, " image"]]:
    """What is known of images as concepts: their class, and every column of text with few values.

    Args:
        images: an `ImageSet`.
        most: columns with more values are left out.

    Returns:
        By `column=value`.

    Example:
        >>> import mechvis
        >>> sorted(concepts_of(mechvis.data.scenes(64, seed=1)))[:2]
        ['background=barred', 'background=brick']
    """
    known = {} if images.labels is None else {"class": _named(images)}
    known |= {name: np.asarray(c) for name, c in images.columns.items() if np.asarray(c).dtype.kind in "US"}
    return {
        f"{name}={value}": column == value
        for name, column in known.items()
        if len(np.unique(column)) <= most
        for value in np.unique(column)
        if 0 < (column == value).sum() < len(column)
    }


def _named(images: Any) -> np.ndarray:
    return np.array(images.class_names)[images.labels] if images.class_names else np.asarray(images.labels).astype(str)
