"""How well an interchange works: interchange-intervention accuracy, and how far the logits moved (methods2.md 16.1).

    IIA          mean 1[argmax f(b; h*) = y*]
    must change  the same where y* differs from Y(b): doing nothing scores 0 there
    neither      the same where y* also differs from Y(s): copying the source scores 0 there
    chance       share of the most frequent y*
    destroyed    1 - sum ld* / sum ld_b,                 ld = logit of Y(b) minus logit of y*  (FLDD, K)
    recovered    (sum ld_b - sum ld*) / (sum ld_b - sum ld_s)      the logit difference of the sources recovered (C)

The graded numbers are over the pairs that must change, as ratios of sums: accuracy saturates, they do not. Intervals
come from resampling base images, each with all of its pairs; sources are taken as given.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.subspace.draws import Draws
from circuits.subspace.interchange import Rows, checked_rows, interchange
from circuits.subspace.tail import Tail, in_chunks
from circuits.subspace.variable import Variable
from mechvis import stats
from mechvis.errors import OutOfRange

Change = Callable[[Float[Tensor, "pair width"], Float[Tensor, "pair width"]], Float[Tensor, "pair width"]]
"""(base activations, source activations) -> changed base activations."""

NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What came of some interchanges; shares between 0 and 1, NaN where there is no such pair."""

    iia: float
    """Interchange-intervention accuracy over all pairs."""
    low: float
    """Lower end of its 95 % interval over base images."""
    high: float
    """Upper end."""
    n: int
    """Pairs."""
    must_change: float
    """Accuracy where the answer has to change."""
    n_must_change: int
    """Such pairs."""
    neither: float
    """Accuracy where the right answer is neither the base's nor the source's."""
    n_neither: int
    """Such pairs."""
    chance: float
    """Share of the most frequent right answer."""
    destroyed: float
    """Fraction of the base's logit difference destroyed; 1 = at the tie, 2 = mirrored."""
    recovered: float
    """Fraction of the sources' logit difference recovered; 1 = as if the source had been shown."""

    def row(self) -> dict[str, float | int]:
        """As a table row."""
        return {name.name: getattr(self, name.name) for name in fields(self)}


def patched(tail: Tail, pairs: Draws, change: Change) -> Float[Tensor, "pair class"]:
    """Logits of the bases with changed activations."""
    return in_chunks(tail.logits_of, changed(tail, pairs, change), pairs.base)


@torch.no_grad()
def changed(tail: Tail, pairs: Draws, change: Change) -> Float[Tensor, "pair width"]:
    """The changed activations themselves."""
    return change(tail.h[pairs.base], tail.h[pairs.source])


def by_rows(rows: Rows) -> Change:
    """The interchange of a subspace."""
    return lambda base, source: interchange(base, source, rows)


def accuracy_of(tail: Tail, variable: Variable, pairs: Draws, rows: Rows, *, seed: int = 0) -> Accuracy:
    """Interchange a subspace on pairs and judge the answers.

    Args:
        tail: activations and the model behind them.
        variable: what the interchange should swap.
        pairs: which.
        rows: orthonormal `[k width]`; none at all is the edit that does nothing.
        seed: of the bootstrap.

    Raises:
        ShapeMismatch, NotFinite, OutOfRange.

    Example:
        >>> accuracy_of(tail, variable, Drawer(splits.test).rounds(1000), rows).iia       # doctest: +SKIP
        0.98
    """
    rows = checked_rows(rows, tail.width)
    return judge(tail, variable, pairs, patched(tail, pairs, by_rows(rows)), seed=seed)


def judge(tail: Tail, variable: Variable, pairs: Draws, logits: Float[Tensor, "pair class"], *, seed: int = 0):
    """The accuracy of given logits of interchanges; see :func:`accuracy_of`."""
    right = variable.answer(pairs.base, pairs.source)
    own, other = variable.labels[pairs.base], variable.labels[pairs.source]
    n_classes = logits.shape[1]
    if int(torch.maximum(right, own).max()) >= n_classes or int(right.min()) < 0:
        raise OutOfRange(
            f"{variable.name!r} asks for class {int(right.max())}, the model has {n_classes} (0 to {n_classes - 1})."
        )
    logits, clean = logits.cpu().double(), tail.clean.cpu().double()
    hit = (logits.argmax(1) == right).double()
    must, neither = right != own, (right != own) & (right != other)
    low, high = _interval(hit, pairs.base, seed)
    destroyed, recovered = _graded(logits, clean, pairs, own, right, must)
    return Accuracy(
        iia=float(hit.mean()),
        low=low,
        high=high,
        n=len(pairs),
        must_change=_mean(hit[must]),
        n_must_change=int(must.sum()),
        neither=_mean(hit[neither]),
        n_neither=int(neither.sum()),
        chance=float(right.bincount().max() / len(right)),
        destroyed=destroyed,
        recovered=recovered,
    )


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else NAN


def _interval(hit: Tensor, base: Int[Tensor, " pair"], seed: int) -> tuple[float, float]:
    _, place = base.unique(return_inverse=True)
    count = place.bincount()
    per_image = torch.zeros(len(count), dtype=torch.float64).index_add_(0, place, hit) / count
    found = stats.bootstrap(per_image.numpy()[None], seed=seed)
    return float(found.low[0]), float(found.high[0])


def _graded(
    logits: Tensor, clean: Tensor, pairs: Draws, own: Tensor, right: Tensor, must: Tensor
) -> tuple[float, float]:
    if not must.any():
        return NAN, NAN

    def difference(of: Tensor) -> float:
        return float((of.gather(1, own[must, None]) - of.gather(1, right[must, None])).sum())

    before, after = difference(clean[pairs.base[must]]), difference(logits[must])
    goal = difference(clean[pairs.source[must]])
    with np.errstate(divide="ignore", invalid="ignore"):
        destroyed = 1 - np.divide(after, before)
        recovered = np.divide(before - after, before - goal)
    return tuple(float(x) if np.isfinite(x) else NAN for x in (destroyed, recovered))
