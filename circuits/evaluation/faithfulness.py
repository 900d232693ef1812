"""Is a circuit enough, and is it needed? Two shares of what the model does over having every edge cut.

    faithfulness  F = (m(C) - m(0)) / (m(M) - m(0))        the circuit alone, everything else replaced by the base
    necessity     N = (m(M) - m(M without C)) / (m(M) - m(0))                  everything but the circuit

with M the whole model and 0 the empty one (methods.md 5.7, faithfulness.md 2.4, **C**). F = 1: the circuit does what
the model does. F above 1: it does more, what was left out works against it. Redundant mechanisms (OR) have F near 1 and
N near 0, conjunctions (AND) N near 1 for parts whose F is near 0: look at both.

Two orders to average in, always both, since conclusions have been seen to flip between them: the ratio of means over
images (the headline; interval by a bootstrap that draws both means from the same images), and the mean of ratios
per image, where images with a tiny denominator are left out and counted.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuits.circuit import Circuit
from circuits.evaluation.measured import check, measured, without
from circuits.evaluation.resampled import interval, ratio, resampled_means
from circuits.patching import ratios
from circuits.task import Task
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch

TINY = 0.05
"""Images whose m(M) - m(0) is below this share of the mean |m(M) - m(0)| are left out of the mean of ratios; and a mean
difference below this share of the metric itself is called weak."""

_SAME = 1e-6
"""A mean difference below this share of the metric's size is no difference."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Share:
    """One share, in both orders of averaging."""

    value: float
    """Ratio of means over images."""
    low: float | None
    """Lower end of its 95 % interval; None with one image, or where the denominator changes its sign between draws."""
    high: float | None
    """Upper end."""
    n: int
    """Images."""
    mean_of_ratios: float | None
    """Mean over images of each image's own share; None where every image is left out."""
    mean_low: float | None
    """Lower end of its 95 % interval."""
    mean_high: float | None
    """Upper end."""
    tiny: int
    """Images left out of the mean of ratios, since their denominator is tiny."""

    def __repr__(self) -> str:
        ends = "no interval" if self.low is None else f"{self.low:.3f}, {self.high:.3f}"
        other = "undefined" if self.mean_of_ratios is None else f"{self.mean_of_ratios:.3f}"
        return f"{self.value:.3f} [{ends}] n={self.n}; mean of ratios {other}, {self.tiny} tiny"


@dataclass(frozen=True, kw_only=True)
class Denominator:
    """What shares are shares of: m(M) - m(0)."""

    full: float
    """Mean metric of the whole model."""
    empty: float
    """Mean metric with every edge cut."""
    value: float
    """Mean difference."""
    low: float | None
    """Lower end of its 95 % interval over images."""
    high: float | None
    """Upper end."""
    tiny: int
    """Images whose own difference is tiny."""
    reversed: int
    """Images whose own difference has the other sign."""
    weak: str
    """Why shares of it are not to be trusted; empty: nothing against it."""


def denominator(task: Task, *, seed: int = 0) -> Denominator:
    """Is there something to explain, and how much?

    Args:
        task: images, ablation, metric.
        seed: of the bootstrap.

    Raises:
        BadData: the metric is constant: the same, on average, with every edge cut.

    Example:
        >>> denominator(task).value                                                                # doctest: +SKIP
        17.2
    """
    full, empty = task.full, task.empty
    total = full - empty
    size = max(abs(full).mean(), abs(empty).mean())
    value = float(full.mean() - empty.mean())
    if not abs(value) > _SAME * size:
        raise BadData(
            f"{task.metric_name} is {full.mean():.6g} with all edges and {empty.mean():.6g} with every edge cut "
            f"({task.ablation}), on average over {len(task)} images: a constant metric, and shares of it mean nothing. "
            "Choose another metric, ablation or images."
        )
    low, high = interval(resampled_means(total[None], seed=seed)[:, 0], len(total))
    reasons = []
    if np.isfinite(low) and low <= 0 <= high:
        reasons.append(f"its interval over images holds 0 ([{low:.3g}, {high:.3g}])")
    if abs(value) <= TINY * size:
        reasons.append(f"it is {abs(value) / size:.1%} of the metric: the empty circuit is nearly as good")
    if value < 0:
        reasons.append("it is negative: cutting every edge helps")
    return Denominator(
        full=float(full.mean()),
        empty=float(empty.mean()),
        value=value,
        low=known(low),
        high=known(high),
        tiny=int(ratios.is_tiny(total, TINY).sum()),
        reversed=int((total * np.sign(value) < 0).sum()),
        weak="; ".join(reasons),
    )


def share(
    values: Float[np.ndarray, " image"],
    zero: Float[np.ndarray, " image"],
    one: Float[np.ndarray, " image"],
    *,
    tiny: float = TINY,
    seed: int = 0,
) -> Share:
    """Where values lie between those that count as 0 and those that count as 1.

    Args:
        values: the metric per image.
        zero: where the share is 0.
        one: where it is 1.
        tiny: images with |one - zero| up to this share of its mean are left out of the mean of ratios.
        seed: of the bootstrap.

    Raises:
        ShapeMismatch: arrays of different lengths.
        NotFinite: NaN or Inf.
        BadData: `zero` and `one` have the same mean.
        OutOfRange: `tiny` is no share.

    Example:
        >>> share(np.array([1.0, 2.0]), np.zeros(2), np.array([2.0, 2.0])).value
        0.75
    """
    if not 0 <= tiny < 1:
        raise OutOfRange(f"tiny={tiny!r}: it is a share of the mean difference, from 0 to below 1.")
    rows = [np.asarray(row, dtype=np.float64) for row in (values, zero, one)]
    if len({row.shape for row in rows}) != 1 or rows[0].ndim != 1 or not len(rows[0]):
        raise ShapeMismatch(f"a share needs one number per image three times, got {[list(row.shape) for row in rows]}.")
    if not all(np.isfinite(row).all() for row in rows):
        raise NotFinite("the values that a share is made of hold NaN or Inf.")
    values, zero, one = rows
    n = len(values)
    below = one.mean() - zero.mean()
    if below == 0:
        raise BadData("what counts as 0 and what counts as 1 have the same mean: there is no share between them.")
    means = resampled_means(np.stack(rows), seed=seed)
    low, high = interval(ratio(means[:, 0] - means[:, 1], means[:, 2] - means[:, 1], below), n)
    each, _ = ratios.mean_of_ratios((values - zero)[None], one - zero, tiny=tiny, seed=seed)
    return Share(
        # The same steps for all three: values equal to `one` give exactly 1, equal to `zero` exactly 0.
        value=float((values.mean() - zero.mean()) / below),
        low=known(low),
        high=known(high),
        n=n,
        mean_of_ratios=known(each.effect[0]),
        mean_low=known(each.low[0]),
        mean_high=known(each.high[0]),
        tiny=int(each.excluded[0]),
    )


def faithfulness(task: Task, circuit: Circuit, *, seed: int = 0) -> Share:
    """F: what the circuit alone keeps. All edges: exactly 1; none: exactly 0.

    Args:
        task: images, ablation, metric.
        circuit: as it is, nothing is pruned.
        seed: of the bootstrap.

    Raises:
        ResultMismatch: a circuit of another architecture.
        BadData: a constant metric.

    Example:
        >>> faithfulness(task, circuit)                                                            # doctest: +SKIP
        0.930 [no interval] n=1; mean of ratios 0.930, 0 tiny
    """
    check(task, circuit)
    denominator(task, seed=seed)
    (values,) = measured(task, circuit.kept[None])
    return share(values, task.empty, task.full, seed=seed)


def necessity(task: Task, circuit: Circuit, *, seed: int = 0) -> Share:
    """N: what is lost when only the circuit is cut. All edges: exactly 1; none: exactly 0.

    Args, errors: as for :func:`faithfulness`.
    """
    check(task, circuit)
    denominator(task, seed=seed)
    (values,) = measured(task, without(task.graph, circuit.kept)[None])
    return share(values, task.full, task.empty, seed=seed)


def known(value: float | np.ndarray) -> float | None:
    """A number, or None for NaN: what tables and JSON can hold."""
    return float(value) if np.isfinite(value) else None
