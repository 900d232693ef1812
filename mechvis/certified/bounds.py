"""How far from the mean of all images can the mean of those drawn so far lie? One interval per unit, three ways.

What each way assumes is in `TAILS`. The images are drawn without replacement, so every interval shrinks to nothing as
they run out.
"""

import numpy as np

from mechvis.errors import NotFinite, ShapeMismatch

FIRST = 64
"""Images of the first round, and the fewest on which anything is decided."""

TAILS = {
    "student": "means of 64 and more images follow Student's t (no single image dominates a unit's mean)",
    "guarded": "means follow Student's t, and no effect on an image not seen yet lies farther from its unit's mean "
    "than the farthest seen so far in any unit that is still undecided",
    "bernstein": "no two effects of a unit differ by more than the given range (else: twice the farthest seen)",
}
"""How a mean is bounded, and what that assumes."""


def bounds(
    values: np.ndarray,
    n_images: int,
    alpha: float,
    *,
    tails: str = "guarded",
    z: float | None = None,
    largest: float | None = None,
    value_range: float | None = None,
    control: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each unit and the half-width of its interval at level 1 - alpha, from images drawn without replacement.

    `student`: the quantile of Student's t times the standard error, which shrinks to 0 as the images run out (finite
    population). `guarded` adds `largest x ln(2 / alpha) / n` for what was not seen yet: with probability 1 - alpha / 2
    the images of a kind that is absent from n draws are at most this share of all. Without it a unit that matters on
    one image in a hundred looks like a unit that never matters. `bernstein`: the empirical Bernstein-Serfling bound
    (Bardenet and Maillard 2015, theorem 4).

    Args:
        values: effects `[unit image]` of the first images of the order; NaN = left out.
        n_images: all images.
        alpha: probability with which one interval may miss.
        tails: see `TAILS`.
        z: instead of the quantile.
        largest: largest distance of an effect from its unit's mean seen so far; default: in `values`.
        value_range: for `bernstein`; default: twice `largest`.
        control: see :func:`mechvis.certified.elimination.eliminate`.

    Returns:
        Mean `[unit]` and half-width `[unit]`; infinite where fewer than 64 images are defined and not all are drawn.
        The mean is NaN where all are drawn and none is defined.
    """
    from scipy.special import stdtrit

    drawn = values.shape[1]
    valid = ~np.isnan(values)
    count = valid.sum(1)
    some = np.maximum(count, 1)
    used, variance = values, None
    if control is not None and drawn < control.shape[1]:
        used, variance = _controlled(values, valid, control, n_images)
    mean = np.where(valid, used, 0.0).sum(1) / some
    deviation = np.where(valid, used - mean[:, None], 0.0)
    if drawn == n_images:
        return np.where(count > 0, mean, np.nan), np.zeros(len(values))
    left = 1 - drawn / n_images
    if variance is None:
        variance = (deviation**2).sum(1) / np.maximum(count - 1, 1) / some * left
    largest = largest_deviation(values) if largest is None else largest
    if tails == "bernstein":
        # Both sides, and the theorem's five events each.
        log = np.log(2 * 5 / alpha)
        rho = (1 - (some - 1) / n_images) if drawn <= n_images / 2 else left * (1 + 1 / some)
        span = 2 * largest if value_range is None else value_range
        factor = np.sqrt(2 * log) if z is None else z
        half = factor * np.sqrt(variance / left * rho) + (7 / 3 + 3 / np.sqrt(2)) * span * log / some
    else:
        guarded = tails == "guarded" and z is None
        side = alpha / 4 if guarded else alpha / 2  # the guard takes the other half of alpha
        half = (stdtrit(np.maximum(count - 1.0, 1.0), 1 - side) if z is None else z) * np.sqrt(variance)
        if guarded:
            half = half + largest * np.log(2 / alpha) / some * left
    return mean, np.where(count < FIRST, np.inf, half)


def _controlled(
    values: np.ndarray, valid: np.ndarray, control: np.ndarray, n_images: int
) -> tuple[np.ndarray, np.ndarray]:
    """Effects with what the control explains taken out, and the variance of their mean (double sampling: the control
    is known on more images than the effects; Cochran 1977, section 12.6)."""
    drawn, known = values.shape[1], control.shape[1]
    here = control[:, :drawn] - control.mean(1, keepdims=True)
    adjusted = np.empty_like(values)
    for half in (0, 1):
        # The slope comes from the other half of the images: fitted on the same ones it would bias the mean.
        other = valid.copy()
        other[:, half::2] = False
        count = np.maximum(other.sum(1, keepdims=True), 1)
        x = np.where(other, values, 0.0)
        a = np.where(other, here, 0.0)
        a_mean = a.sum(1, keepdims=True) / count
        spread = np.where(other, (here - a_mean) ** 2, 0.0).sum(1)
        joint = (x * np.where(other, here - a_mean, 0.0)).sum(1)
        slope = np.divide(joint, spread, out=np.zeros_like(joint), where=spread > 0)
        adjusted[:, half::2] = values[:, half::2] - slope[:, None] * here[:, half::2]
    count = np.maximum(valid.sum(1), 1)

    def scatter(of: np.ndarray) -> np.ndarray:
        mean = np.where(valid, of, 0.0).sum(1, keepdims=True) / count[:, None]
        return np.where(valid, (of - mean) ** 2, 0.0).sum(1) / np.maximum(count - 1, 1)

    variance = scatter(adjusted) / count * (1 - drawn / known) + scatter(values) * (1 / known - 1 / n_images)
    return adjusted, variance


def largest_deviation(values: np.ndarray) -> float:
    """Largest distance of an effect from its unit's mean."""
    valid = ~np.isnan(values)
    mean = np.where(valid, values, 0.0).sum(1, keepdims=True) / np.maximum(valid.sum(1, keepdims=True), 1)
    return float(np.abs(np.where(valid, values - mean, 0.0)).max(initial=0.0))


def checked_control(control: np.ndarray, n_units: int, n_images: int) -> np.ndarray:
    """A control variate `[unit image]`, refused where it does not fit."""
    control = np.asarray(control, dtype=np.float64)
    if control.ndim != 2 or len(control) != n_units or not 0 < control.shape[1] <= n_images:
        raise ShapeMismatch(
            f"the control has the shape {list(control.shape)}; {n_units} units need [{n_units}, images]."
        )
    if not np.isfinite(control).all():
        raise NotFinite("the control holds NaN or Inf.")
    return control
