"""What a claim about a *method* rests on: models, seeds and images, each with its own luck.

* :func:`rank_agreement`: do two conditions (operators, scores) put methods in the same order? Kendall's tau of all
  pairs of conditions.
* :func:`hierarchical`: mean over (model seed, explainer seed, image) with an interval that draws all three anew: models
  with replacement, within each its explainer seeds, and images, which are the same for all. The shape is the
  bootstrap's; its width is mended, since means of few draws lie too close together and the normal quantile is too small
  for them: standard error from the variances of model means and image means, Student's t with Satterthwaite's degrees
  of freedom. (Three models and the plain bootstrap: 95 % intervals that hold the truth in about 75 % of the cases.)
* :func:`variance_shares`: how much of the variance of single values is the model, the explainer seed, the image.

Source: faithfulness.md 2.7; the correction for few seeds is ours [X].
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch


def rank_agreement(scores: Float[np.ndarray, "condition method"]) -> Float[np.ndarray, "condition condition"]:
    """Kendall's tau (b: ties are allowed) between the orders of methods under each pair of conditions.

    NaN where a condition has the same score for all methods: then there is no order.

    Raises:
        ShapeMismatch: fewer than two methods.
        NotFinite: NaN in the scores.

    Example:
        >>> rank_agreement(np.array([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]])).round(3).tolist()
        [[1.0, 0.333], [0.333, 1.0]]
    """
    from scipy.stats import kendalltau

    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ShapeMismatch(f"scores are [condition method] of at least two methods, got {list(scores.shape)}.")
    if not np.isfinite(scores).all():
        raise NotFinite("scores hold NaN: an order of methods needs a number for each.")
    n = len(scores)
    found = np.full((n, n), np.nan)
    for a in range(n):
        for b in range(a, n):
            if np.ptp(scores[a]) and np.ptp(scores[b]):
                found[a, b] = found[b, a] = 1.0 if a == b else float(kendalltau(scores[a], scores[b]).statistic)
    return found


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over models, explainer seeds and images."""

    mean: float
    """Of all values."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    sizes: tuple[int, int, int]
    """Model seeds, explainer seeds, images."""
    undefined: int
    """Values that are NaN and were left out."""


def hierarchical(
    values: Float[np.ndarray, "model explainer image"],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean with an interval over all three.

    Args:
        values: `[model explainer image]`: explainer seeds belong to their model; images are the same everywhere. NaN =
            undefined, left out and counted.
        resamples: of the bootstrap.
        level: coverage, e.g. 0.95.
        seed: fixes the resamples.

    Raises:
        ShapeMismatch, NotFinite (Inf), OutOfRange.

    Example:
        >>> hierarchical(np.ones((3, 2, 5))).mean
        1.0
    """
    from scipy.stats import norm, t

    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 3 or not values.size:
        raise ShapeMismatch(f"values are [model explainer image], got {list(values.shape)}.")
    if np.isinf(values).any():
        raise NotFinite("a value is infinite; NaN marks what is undefined.")
    if not 0 < level < 1 or resamples < 1:
        raise OutOfRange(f"level={level}, resamples={resamples}: give a level between 0 and 1 and at least 1 resample.")
    known = ~np.isnan(values)
    if not known.any():
        raise BadData("every value is undefined.")
    models, explainers, images = values.shape
    filled = np.where(known, values, 0.0)
    mean = float(filled.sum() / known.sum())
    generator = np.random.default_rng(seed)
    image = generator.multinomial(images, np.full(images, 1 / images), size=resamples)
    model = generator.multinomial(models, np.full(models, 1 / models), size=resamples)
    # A model that is drawn k times draws its explainer seeds anew each time: k draws of all of them.
    seeds = generator.multinomial(explainers * model, np.full(explainers, 1 / explainers))
    weights = seeds.reshape(resamples, -1).astype(np.float64)
    tops, totals = (((weights @ one.reshape(-1, images).astype(np.float64)) * image).sum(1) for one in (filled, known))
    drawn = tops[totals > 0] / totals[totals > 0]
    error, freedom = _standard_error(values)
    undefined = int((~known).sum())
    if not freedom:
        return Interval(mean=mean, low=np.nan, high=np.nan, sizes=values.shape, undefined=undefined)
    side = (1 + level) / 2
    spread = drawn.std()
    wider = error * t.ppf(side, freedom) / (spread * norm.ppf(side)) if spread > 0 else 1.0
    low, high = mean + wider * (np.quantile(drawn, [1 - side, side]) - mean)
    return Interval(mean=mean, low=float(low), high=float(high), sizes=values.shape, undefined=undefined)


def _standard_error(values: Float[np.ndarray, "model explainer image"]) -> tuple[float, float]:
    """Standard error of the mean without the bias of few draws, and its degrees of freedom (Satterthwaite): the
    variance of the means of models (of seeds, if there is one model) and that of the means of images, each over its
    number."""
    models = len(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a model or an image without any value: NaN, left out below
        upper = np.nanmean(values, (1, 2)) if models > 1 else np.nanmean(values, (0, 2))
        lower = np.nanmean(values, (0, 1))
    parts = []
    for means in (upper, lower):
        means = means[~np.isnan(means)]
        if len(means) > 1:
            parts.append((means.var(ddof=1) / len(means), len(means) - 1))
    total = sum(part for part, _ in parts)
    bottom = sum(part**2 / freedom for part, freedom in parts)
    if not parts:
        return 0.0, 0.0
    return float(np.sqrt(total)), total**2 / bottom if bottom > 0 else float(max(freedom for _, freedom in parts))


def variance_shares(values: Float[np.ndarray, "model explainer image"]) -> dict[str, float]:
    """How much of the variance of single values each level brings: estimated components, as shares of their sum.

    Components of a balanced design with explainer seeds inside models, and images crossed with both, by the method of
    moments (negative estimates count as 0). `rest` is what one image does under one model and seed alone.

    Args:
        values: no NaN; at least two of every level that is to have a share (a level with one gets 0).

    Returns:
        `model`, `explainer`, `image`, `model x image`, `rest`; they add up to 1 (all 0 for constant values).

    Example:
        >>> round(variance_shares(np.tile(np.arange(4.0), (3, 2, 1)))["image"], 6)
        1.0
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 3 or not values.size:
        raise ShapeMismatch(f"values are [model explainer image], got {list(values.shape)}.")
    if not np.isfinite(values).all():
        raise NotFinite("values hold NaN or Inf; leave these images out for all models and seeds.")
    m, e, n = values.shape
    grand = values.mean()
    by_model, by_image = values.mean((1, 2)), values.mean((0, 1))
    by_seed, by_both = values.mean(2), values.mean(1)
    squares = {
        "model": e * n * ((by_model - grand) ** 2).sum(),
        "explainer": n * ((by_seed - by_model[:, None]) ** 2).sum(),
        "image": m * e * ((by_image - grand) ** 2).sum(),
        "model x image": e * ((by_both - by_model[:, None] - by_image + grand) ** 2).sum(),
    }
    squares["rest"] = ((values - by_seed[..., None] - by_both[:, None] + by_model[:, None, None]) ** 2).sum()
    freedom = {
        "model": m - 1,
        "explainer": m * (e - 1),
        "image": n - 1,
        "model x image": (m - 1) * (n - 1),
        "rest": m * (e - 1) * (n - 1),
    }
    mean = {name: squares[name] / freedom[name] if freedom[name] else 0.0 for name in squares}
    # Expected mean squares: what each holds beside its own component.
    found = {
        "rest": mean["rest"],
        "model x image": (mean["model x image"] - mean["rest"]) / e,
        "explainer": (mean["explainer"] - mean["rest"]) / n,
        "image": (mean["image"] - mean["model x image" if m > 1 else "rest"]) / (m * e),
        "model": (mean["model"] - mean["explainer"] - mean["model x image"] + mean["rest"]) / (e * n),
    }
    found = {name: max(0.0, found[name]) if freedom[name] else 0.0 for name in squares}
    total = sum(found.values())
    scale = max(1e-300, float(np.abs(values).max()) ** 2 * 1e-20)
    return {name: float(value / total) if total > scale else 0.0 for name, value in found.items()}


def reliable(excluded: int, n: int, *, limit: float = 0.05) -> bool:
    """At most 5 % of the images are undefined, and not all of them.

    Example:
        >>> reliable(5, 100), reliable(6, 100)
        (True, False)
    """
    if n < 1 or not 0 <= excluded <= n:
        raise OutOfRange(f"{excluded} of {n} images excluded: give counts that fit.")
    return excluded < n and excluded <= limit * n


def excluded_of(columns: Sequence[Float[np.ndarray, " image"]]) -> list[int]:
    """How many images are undefined in each column."""
    return [int(np.isnan(np.asarray(column, dtype=np.float64)).sum()) for column in columns]
