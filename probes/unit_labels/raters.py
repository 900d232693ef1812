"""BRAgg: what several noisy yes-or-no answers say together.

Of m votes v say yes; a rater errs with probability eta; before any vote the concept is there with probability pi. By
Bayes (**N**, methods.md 9.4)

    P = (1-eta)^v eta^(m-v) pi / [(1-eta)^v eta^(m-v) pi + eta^v (1-eta)^(m-v) (1-pi)].

With eta = 0.23 and pi = 0.05 three out of three votes make it 0.66 likely: rare concepts need many votes. Raters can be
people, or several models of images and texts; eta is estimated on items whose answer is known. Few rated images and
noisy raters go together: hand `lambda images: posterior(votes[images], m, prior=cheap[images])` to
:func:`probes.unit_labels.importance.correlation`.
"""

import numpy as np
from jaxtyping import Float, Int

from mechvis.errors import BadData, OutOfRange, ShapeMismatch

ERROR, PRIOR = 0.23, 0.05


def posterior(
    votes: Int[np.ndarray, " item"] | int,
    raters: Int[np.ndarray, " item"] | int,
    *,
    error: float = ERROR,
    prior: Float[np.ndarray, " item"] | float = PRIOR,
    clip: tuple[float, float] = (0.001, 0.999),
) -> Float[np.ndarray, " item"] | np.floating:
    """Probability that the concept is there.

    Args:
        votes: how many said yes.
        raters: out of how many.
        error: probability that a rater errs (**N**: 0.23, measured there); estimate it with :func:`error_rate`.
        prior: probability before the votes (**N**: 0.05), or one per item, e.g. a cheap model's.
        clip: the prior is kept inside (**N**).

    Raises:
        OutOfRange: more votes than raters; an error outside (0, 0.5): worse raters vote against themselves.

    Example:
        >>> posterior(np.arange(4), 3).round(4)
        array([0.0014, 0.0155, 0.1498, 0.6638])
    """
    votes, raters = np.asarray(votes), np.asarray(raters)
    if (votes < 0).any() or (votes > raters).any():
        raise OutOfRange("votes lie between 0 and the number of raters.")
    if not 0 < error < 0.5:
        raise OutOfRange(f"error={error}: a rater errs with a probability between 0 and 0.5.")
    if not (np.isfinite(prior).all() and (np.asarray(prior) >= 0).all() and (np.asarray(prior) <= 1).all()):
        raise OutOfRange("a prior is a probability.")
    pi = np.clip(np.asarray(prior, dtype=np.float64), *clip)
    # As log-odds, so that hundreds of votes do not underflow.
    odds = np.log(pi / (1 - pi)) + (2 * votes - raters) * np.log((1 - error) / error)
    return 1 / (1 + np.exp(-np.clip(odds, -700, 700)))


def error_rate(votes: Float[np.ndarray, "item rater"], truth: Float[np.ndarray, " item"]) -> float:
    """Share of single votes that are wrong, on items whose answer is known.

    Args:
        votes: 0 or 1; NaN where a rater did not answer.
        truth: 0 or 1.

    Raises:
        ShapeMismatch: not one truth per item.
        BadData: no vote, or other values than 0 and 1.
    """
    votes, truth = np.asarray(votes, np.float64), np.asarray(truth, np.float64)
    if votes.ndim != 2 or len(votes) != len(truth):
        raise ShapeMismatch(f"votes [item rater] and one truth per item are needed: {votes.shape}, {truth.shape}.")
    given = ~np.isnan(votes)
    if not given.any() or not np.isin(votes[given], (0, 1)).all() or not np.isin(truth, (0, 1)).all():
        raise BadData("votes and truths are 0 or 1, at least one.")
    return float((votes != truth[:, None])[given].mean())
