"""How well does a label describe a unit: the measures in use, in one place, with one convention.

A unit's activations `a` and a concept's presence `c` in [0, 1], over the same images. Activations are made binary by
their top share `alpha`, presence by c >= 0.5. In the convention of this literature (**C**)

* *recall*    = share of the highly activating images that have the concept ("the top images match the label"),
* *precision* = share of the concept's images that activate the unit highly,

which is the other way round than for a classifier of the concept. So are the two directions of balanced accuracy, AUC
and AUPRC: `balanced_accuracy`, `auc`, `auprc` take the unit as the detector and the concept as the truth, those named
`inverse_` the other way. Default: Pearson correlation over the full set (**N**).

A measure should fall when concept labels are missing at random and when labels are added at random.
:func:`meta_test` tries both. Recall does not notice additions, precision not omissions: alone, each can be had for
nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from scipy.stats import rankdata

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.record import finite

Values = Float[np.ndarray, " image"]
Numbers = Shaped[np.ndarray, " image"]
"""Of any type: labels may be whole numbers or bools."""

ALPHA = 0.05
"""Share of the images that count as highly activating (**X**)."""


@dataclass(frozen=True)
class _Table:
    """Counts of highly activating images with and without the concept."""

    tp: int
    fp: int
    fn: int
    tn: int


def _counts(a: Values, c: Values, alpha: float) -> _Table:
    if not 0 < alpha < 1:
        raise OutOfRange(f"alpha={alpha}: give the share of images that count as highly activating, e.g. {ALPHA}.")
    on = np.zeros(len(a), bool)
    on[np.argsort(-a, kind="stable")[: max(1, round(alpha * len(a)))]] = True
    there = c >= 0.5
    return _Table(
        int((on & there).sum()), int((on & ~there).sum()), int((~on & there).sum()), int((~on & ~there).sum())
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def recall(a: Values, c: Values, *, alpha: float = ALPHA) -> float:
    """Share of the top images that have the concept."""
    t = _counts(a, c, alpha)
    return _share(t.tp, t.tp + t.fp)


def precision(a: Values, c: Values, *, alpha: float = ALPHA) -> float:
    """Share of the concept's images that are top images."""
    t = _counts(a, c, alpha)
    return _share(t.tp, t.tp + t.fn)


def f1(a: Values, c: Values, *, alpha: float = ALPHA) -> float:
    """Harmonic mean of recall and precision."""
    t = _counts(a, c, alpha)
    return _share(2 * t.tp, 2 * t.tp + t.fp + t.fn)


def iou(a: Values, c: Values, *, alpha: float = ALPHA) -> float:
    """Top images with the concept, over top images or images with the concept."""
    t = _counts(a, c, alpha)
    return _share(t.tp, t.tp + t.fp + t.fn)


def accuracy(a: Values, c: Values, *, alpha: float = ALPHA) -> float:
    """Share of the images where "top" and "has the concept" agree."""
    t = _counts(a, c, alpha)
    return _share(t.tp + t.tn, len(a))


def balanced_accuracy(a: Values, c: Values, *, alpha: float = ALPHA) -> float:
    """Mean of the shares right among images with and without the concept: the unit detects the concept."""
    t = _counts(a, c, alpha)
    return (_share(t.tp, t.tp + t.fn) + _share(t.tn, t.tn + t.fp)) / 2


def inverse_balanced_accuracy(a: Values, c: Values, *, alpha: float = ALPHA) -> float:
    """Mean of the shares right among top images and the rest: the concept predicts the unit."""
    t = _counts(a, c, alpha)
    return (_share(t.tp, t.tp + t.fp) + _share(t.tn, t.tn + t.fn)) / 2


def auc(a: Values, c: Values) -> float:
    """Chance that an image with the concept activates the unit more than one without (ties count half)."""
    return area(a, c >= 0.5)


def inverse_auc(a: Values, c: Values, *, alpha: float = ALPHA) -> float:
    """Chance that a top image has more of the concept than another."""
    on = np.zeros(len(a), bool)
    on[np.argsort(-a, kind="stable")[: max(1, round(alpha * len(a)))]] = True
    return area(c, on)


def area(score: Values, truth: np.ndarray) -> float:
    """Area under the ROC curve from ranks; NaN where all are of one kind."""
    n = int(truth.sum())
    if not 0 < n < len(truth):
        return float("nan")
    return float((rankdata(score)[truth].sum() - n * (n + 1) / 2) / (n * (len(truth) - n)))


def auprc(a: Values, c: Values) -> float:
    """Average precision of the activation as a detector of the concept."""
    return _average_precision(a, c >= 0.5)


def inverse_auprc(a: Values, c: Values, *, alpha: float = ALPHA) -> float:
    """Average precision of the concept's presence as a predictor of top images."""
    on = np.zeros(len(a), bool)
    on[np.argsort(-a, kind="stable")[: max(1, round(alpha * len(a)))]] = True
    return _average_precision(c, on)


def _average_precision(score: Values, truth: np.ndarray) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, score)) if truth.any() else float("nan")


def pearson(a: Values, c: Values) -> float:
    """Correlation over the full set; NaN where one of them is constant."""
    a, c = a - a.mean(), c - c.mean()
    length = np.sqrt((a @ a) * (c @ c))
    return float(a @ c / length) if length > 0 else float("nan")


def spearman(a: Values, c: Values) -> float:
    """Correlation of the ranks."""
    return pearson(rankdata(a), rankdata(c))


def top_and_random(a: Values, *, top: int = 50, random: int = 50, seed: int = 0) -> np.ndarray:
    """Places of the top images and of as many random others: the subset that correlations are often taken on.

    Raises:
        OutOfRange: more than there are images.
    """
    if top < 1 or random < 1 or top + random > len(a):
        raise OutOfRange(f"{top} top and {random} random images of {len(a)}: give 1 or more of each, fewer than all.")
    order = np.argsort(-a, kind="stable")
    return np.concatenate([order[:top], np.random.default_rng(seed).choice(order[top:], random, replace=False)])


def pearson_top_and_random(a: Values, c: Values, *, top: int = 50, random: int = 50, seed: int = 0) -> float:
    """Pearson on top and random images; larger than on the full set where the unit is sparse."""
    rows = top_and_random(a, top=top, random=random, seed=seed)
    return pearson(a[rows], c[rows])


def spearman_top_and_random(a: Values, c: Values, *, top: int = 50, random: int = 50, seed: int = 0) -> float:
    """Spearman on top and random images."""
    rows = top_and_random(a, top=top, random=random, seed=seed)
    return spearman(a[rows], c[rows])


def cosine(a: Values, c: Values) -> float:
    """Cosine of both, not centred."""
    length = np.sqrt((a @ a) * (c @ c))
    return float(a @ c / length) if length > 0 else float("nan")


def wpmi(a: Values, c: Values, *, alpha: float = ALPHA, weight: float = 1.0, floor: float = 1e-3) -> float:
    """Mean log presence in the top images, minus `weight` times the log of its mean over all images; `floor` stands for
    an absent concept (**X**)."""
    top = np.argsort(-a, kind="stable")[: max(1, round(alpha * len(a)))]
    return float(np.log(np.maximum(c[top], floor)).mean() - weight * np.log(max(c.mean(), floor)))


def mean_difference(a: Values, c: Values) -> float:
    """Mean activation with the concept minus without, in standard deviations without; NaN where undefined."""
    with_it, without = a[c >= 0.5], a[c < 0.5]
    if not len(with_it) or len(without) < 2 or without.std() == 0:
        return float("nan")
    return float((with_it.mean() - without.mean()) / without.std())


MEASURES: dict[str, Callable[..., float]] = {
    "pearson": pearson,
    "spearman": spearman,
    "pearson_top_and_random": pearson_top_and_random,
    "spearman_top_and_random": spearman_top_and_random,
    "cosine": cosine,
    "recall": recall,
    "precision": precision,
    "f1": f1,
    "iou": iou,
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "inverse_balanced_accuracy": inverse_balanced_accuracy,
    "auc": auc,
    "inverse_auc": inverse_auc,
    "auprc": auprc,
    "inverse_auprc": inverse_auprc,
    "wpmi": wpmi,
    "mean_difference": mean_difference,
}
"""Every measure by name; each takes (activations, presence) of the same images."""


def measure(name: str, activations: Numbers, presence: Numbers, **settings: Any) -> float:
    """One measure by name, of checked input.

    Raises:
        UnknownName: no such measure.
        ShapeMismatch: other numbers of images.
        BadData: fewer than two images, or a presence outside [0, 1].
        NotFinite: NaN or Inf.

    Example:
        >>> measure("recall", np.array([3.0, 2.0, 1.0, 0.0]), np.array([1, 1, 0, 0]), alpha=0.5)
        1.0
    """
    if name not in MEASURES:
        raise unknown("measure", name, MEASURES)
    a, c = np.asarray(activations, np.float64), np.asarray(presence, np.float64)
    if a.ndim != 1 or a.shape != c.shape:
        raise ShapeMismatch(
            f"activations and presence of the same images are needed: {list(a.shape)}, {list(c.shape)}."
        )
    if len(a) < 2:
        raise BadData(f"{len(a)} image: a measure needs two or more.")
    finite("activations", a)
    if finite("presence", c).min() < 0 or c.max() > 1:
        raise BadData(f"presence lies in [0, 1], got {c.min():.3g} to {c.max():.3g}.")
    return MEASURES[name](a, c, **settings)


@dataclass(frozen=True, kw_only=True)
class MetaTest:
    """Does a measure notice that a label has become wrong?"""

    measure: str
    """Which measure."""
    clean: float
    """Its value for the right label."""
    missing: float
    """Mean value with half of the presences taken away at random."""
    extra: float
    """Mean value with as many again added at random."""
    fell_missing: float
    """Share of draws in which the first made it fall."""
    fell_extra: float
    """Share of draws in which the second made it fall."""
    least: float
    """Share of the clean value that a fall must exceed to count."""

    @property
    def passed(self) -> bool:
        """Both changes make it fall in nearly all draws."""
        return min(self.fell_missing, self.fell_extra) >= 0.95


def meta_test(
    name: str,
    activations: Numbers,
    presence: Numbers,
    *,
    share: float = 0.5,
    draws: int = 50,
    least: float = 0.05,
    seed: int = 0,
    **settings: Any,
) -> MetaTest:
    """Take presences away, and add some, and see whether a measure falls (**K**, after the sanity checks of neuron
    evaluation).

    Args:
        name: a measure.
        activations: of a unit that the concept describes.
        presence: 0 or 1.
        share: of the images with the concept that lose it; and that many others get it, times two (so that half of the
            labels are wrong).
        draws: random choices.
        least: a fall counts if it exceeds this share of the clean value (**X**): falls within rounding do not count.
        seed: of the choices.
        settings: of the measure.

    Raises:
        BadData: too few images with or without the concept.
        see :func:`measure`.
    """
    clean = measure(name, activations, presence, **settings)
    there = np.flatnonzero(np.asarray(presence) >= 0.5)
    absent = np.flatnonzero(np.asarray(presence) < 0.5)
    lost, gained = round(share * len(there)), round(2 * share * len(there))
    if not 0 < lost < len(there) or gained > len(absent):
        raise BadData(
            f"{len(there)} images with the concept and {len(absent)} without are too few to change {share:.0%}."
        )
    generator = np.random.default_rng(seed)
    missing, extra = np.empty(draws), np.empty(draws)
    for draw in range(draws):
        fewer, more = np.array(presence, np.float64), np.array(presence, np.float64)
        fewer[generator.choice(there, lost, replace=False)] = 0
        more[generator.choice(absent, gained, replace=False)] = 1
        missing[draw] = measure(name, activations, fewer, **settings)
        extra[draw] = measure(name, activations, more, **settings)
    bar = clean - least * abs(clean)
    return MetaTest(
        measure=name,
        clean=clean,
        missing=float(missing.mean()),
        extra=float(extra.mean()),
        fell_missing=float((missing < bar).mean()),
        fell_extra=float((extra < bar).mean()),
        least=least,
    )
