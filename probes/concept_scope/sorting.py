"""Target, context or bias: what a concept is to a class (ConceptScope; methods.md 12, **N**).

For concept c with mask m_c and class y, over images x of the class that hold the concept:

    necessity   = mean P(y | x) / P(y | x (1 - m_c))      how much is lost without it
    sufficiency = mean P(y | x m_c) / P(y | x)            how much is kept by it alone
    alignment   = (necessity + sufficiency) / 2

    target    alignment >= mean + alpha sd over the class's concepts
    context   the others
    bias      context whose mean activation is >= mean + sd: it is nearly always there, and should not matter

Denominators are clipped at 1e-3 (**X**): a probability of 1e-6 would otherwise outweigh all other images together.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, unknown

Over = Literal["all", "context"]
OVERS = ("all", "context")
KINDS = ("target", "context", "bias")


@dataclass(frozen=True, kw_only=True, eq=False)
class Ratios:
    """Necessity and sufficiency of one concept for one class, per image."""

    necessity: Float[np.ndarray, " image"]
    """P(y|x) over P(y|x without the concept)."""
    sufficiency: Float[np.ndarray, " image"]
    """P(y|x with nothing but the concept) over P(y|x)."""
    clipped: int
    """Denominators that were below the clip."""


def ratios(
    whole: Float[np.ndarray, " image"],
    without: Float[np.ndarray, " image"],
    alone: Float[np.ndarray, " image"],
    *,
    clip: float = 1e-3,
) -> Ratios:
    """Necessity and sufficiency per image from the probability of the class.

    Args:
        whole: P(y|x).
        without: P(y|x (1 - m)).
        alone: P(y|x m).
        clip: smallest denominator (**X**).

    Raises:
        ShapeMismatch: other lengths.
        NotFinite, OutOfRange: values that are no probabilities, or a clip that is not in (0, 1].

    Example:
        >>> found = ratios(np.array([0.9]), np.array([0.3]), np.array([0.45]))
        >>> found.necessity.round(6), found.sufficiency
        (array([3.]), array([0.5]))
    """
    given = [np.asarray(p, np.float64) for p in (whole, without, alone)]
    if len({p.shape for p in given}) > 1 or given[0].ndim != 1:
        raise ShapeMismatch(f"three probabilities per image are needed, got {[list(p.shape) for p in given]}.")
    for p in given:
        if not np.isfinite(p).all():
            raise NotFinite("a probability is NaN or Inf.")
        if p.size and (p.min() < -1e-9 or p.max() > 1 + 1e-9):
            raise OutOfRange(f"probabilities lie between 0 and 1, got {p.min():.3g} to {p.max():.3g}.")
    if not 0 < clip <= 1:
        raise OutOfRange(f"clip={clip}: the smallest denominator lies in (0, 1].")
    whole, without, alone = given
    return Ratios(
        necessity=whole / np.maximum(without, clip),
        sufficiency=alone / np.maximum(whole, clip),
        clipped=int((without < clip).sum() + (whole < clip).sum()),
    )


def sort_concepts(
    alignment: Float[np.ndarray, " concept"],
    activation: Float[np.ndarray, " concept"],
    *,
    alpha: float = 0.5,
    over: Over = "all",
) -> list[str | None]:
    """What each concept is to one class.

    Args:
        alignment: mean of necessity and sufficiency; NaN where the concept was not measured.
        activation: mean activation over the images of the class.
        alpha: standard deviations above the mean that make a target (**X**).
        over: activations that the mean and the deviation for a bias are taken over: all concepts of the class, or its
            context only (**X**; a lone context concept would then always be a bias).

    Returns:
        `target`, `context`, `bias`, or None where alignment is NaN.

    Raises:
        ShapeMismatch: not one activation per concept.
        BadData: fewer than two concepts were measured: there is nothing to compare with.
        UnknownName: `over` is none of the two.

    Example:
        >>> sort_concepts(np.array([1.5, 0.8, 0.7]), np.array([0.3, 0.6, 0.02]))
        ['target', 'bias', 'context']
    """
    if over not in OVERS:
        raise unknown("population", over, OVERS)
    alignment, activation = np.asarray(alignment, np.float64), np.asarray(activation, np.float64)
    if alignment.shape != activation.shape or alignment.ndim != 1:
        raise ShapeMismatch(f"{list(alignment.shape)} alignments and {list(activation.shape)} activations: one each.")
    known = ~np.isnan(alignment)
    if known.sum() < 2:
        raise BadData(f"{int(known.sum())} concept was measured for this class: sorting needs at least two.")
    # Sums of equal numbers round differently; a concept at the limit counts.
    slack = 1e-9 * np.abs(alignment[known]).max()
    target = known & (alignment >= alignment[known].mean() + alpha * alignment[known].std() - slack)
    context = known & ~target
    population = activation[known if over == "all" else context]
    bias = context & False
    if population.size:
        slack = 1e-9 * np.abs(population).max()
        bias = context & (activation >= population.mean() + population.std() - slack)
    return [
        None if not known[i] else "target" if target[i] else "bias" if bias[i] else "context"
        for i in range(len(alignment))
    ]
