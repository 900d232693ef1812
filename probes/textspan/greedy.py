"""TextSpan: which texts span what a head writes (Gandelsman, Efros and Steinhardt, ICLR 2024; methods.md 2.2).

For one head with vectors `C [image D]` and a pool of texts `R [text D]`:

1. Bring every text to length one, keep the `rank` strongest right singular vectors of C, project the texts onto them.
2. Centre C. Pick the text along which C varies most: `argmax_j sd(C r_j)`.
3. Take that direction out of C and out of all texts (Gram-Schmidt), and pick again, `m` times.
4. Reconstruction: the mean of C, plus C's components along the picked directions.

Everything depends on C through its covariance S only: `sd(C r_j)^2 = r_j' S r_j`, and taking a direction u out is
`S <- (I - uu') S (I - uu')`. So :func:`span_covariance` never sees an image: after one product of texts and S, every
pick costs `O(text x rank)`. :mod:`probes.textspan.direct` is the published loop over images, and picks the same.

Where this differs from the released code, always by a named argument:

* `unit_pool=True`: texts get unit length first (**X**). The score is not divided by the length, so one text that is
  eight times as long would be picked whatever it says.
* `center_pool=False`: True takes the mean of the texts off and brings them to unit length again (**X**). Embeddings of
  texts share a large part, and a text that names two things has less of it than one that names a single thing: it then
  wins by its length within the head's directions. With the mean off, plain texts win, and picks depend less on which
  other texts the bank holds. Off by default because the published method does not do it.
* `svd_center=True`: the singular vectors of step 1 are those of the centred C (**X**; the code does not centre, **C**,
  and so spends one of the `rank` directions on the mean).
* `score="deviation"` is the published score (**C**): a text that has lost length by deflation loses score.
  `"normalised"` divides by the length that is left (**X**), and skips texts with less than 1e-6 of it.
* `stop=1e-6`: no more picks once less than this share of the variance is left in the kept directions: they would name
  rounding errors (**P**).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from mechvis.data.text_encoding import unit
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.record import finite
from probes.textspan.moments import Moments, moments_of

Score = Literal["deviation", "normalised"]
SCORES = ("deviation", "normalised")
STOP = 1e-6
_SHORT = 1e-6
"""A text with less length left than this has no direction of its own any more."""
_TIE = 1e-9
"""Scores that differ by less, as a share, are equal."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Span:
    """The texts that span one head, strongest first."""

    picks: Int[np.ndarray, " pick"]
    """Positions of the texts in the pool."""
    explained: Float[np.ndarray, " pick"]
    """Share of the head's variance that each pick adds."""
    basis: Float[np.ndarray, "pick d_embed"]
    """Orthonormal: what each text adds to those before it."""
    mean: Float[np.ndarray, " d_embed"]
    """Mean of the head's vectors."""
    variance: float
    """Variance of the head's vectors, summed over directions."""

    @property
    def cumulative(self) -> Float[np.ndarray, " pick"]:
        """Share of the variance that the picks up to here explain."""
        return self.explained.cumsum()

    def __len__(self) -> int:
        return len(self.picks)

    def first(self, k: int) -> "Span":
        """The first `k` picks."""
        return replace(self, picks=self.picks[:k], explained=self.explained[:k], basis=self.basis[:k])

    def reconstruct(self, vectors: Float[np.ndarray, "image d_embed"]) -> Float[np.ndarray, "image d_embed"]:
        """The mean, plus the part of each vector's deviation that lies in the span."""
        return self.mean + (vectors - self.mean) @ self.basis.T @ self.basis


def span_covariance(
    mean: Float[np.ndarray, " d_embed"],
    covariance: Float[np.ndarray, "d_embed d_embed"],
    pool: Float[np.ndarray, "text d_embed"],
    *,
    m: int = 20,
    rank: int | None = None,
    svd_center: bool = True,
    score: Score = "deviation",
    unit_pool: bool = True,
    center_pool: bool = False,
    stop: float = STOP,
) -> Span:
    """The same picks from mean and covariance alone.

    In the coordinates of the `rank` kept directions, with `G = R S`, scores are the row sums of `G * R`; a pick changes
    both by one outer product.

    Args:
        mean: of the head's vectors.
        covariance: of the head's vectors, divided by the number of images.
        pool, m, rank, svd_center, score, unit_pool, center_pool, stop: as in
            :func:`probes.textspan.direct.span_direct`.

    Returns:
        A :class:`Span`.

    Raises:
        ShapeMismatch, NotFinite, OutOfRange, UnknownName, BadData.

    Example:
        >>> span_covariance(np.zeros(3), np.diag([1.0, 9.0, 4.0]), np.eye(3), m=2).explained.round(3)
        array([0.643, 0.286])
    """
    settings = {"svd_center": svd_center, "score": score, "unit_pool": unit_pool, "center_pool": center_pool}
    return spans_of_pools(mean, covariance, [pool], m=m, rank=rank, stop=stop, **settings)[0]


def spans_of_pools(
    mean: Float[np.ndarray, " d_embed"],
    covariance: Float[np.ndarray, "d_embed d_embed"],
    pools: Sequence[Float[np.ndarray, "text d_embed"]],
    *,
    m: int = 20,
    rank: int | None = None,
    svd_center: bool = True,
    score: Score = "deviation",
    unit_pool: bool = True,
    center_pool: bool = False,
    stop: float = STOP,
) -> list[Span]:
    """:func:`span_covariance` with several pools of texts, whose head's directions are found once."""
    mean, covariance = finite("the mean", np.asarray(mean, float)), checked(covariance, "the covariance")
    if covariance.shape != (len(mean), len(mean)):
        raise ShapeMismatch(f"a mean of {len(mean)} numbers and a covariance of {list(covariance.shape)}.")
    seen = covariance if svd_center else covariance + np.outer(mean, mean)
    _, vectors = np.linalg.eigh((seen + seen.T) / 2)
    found = []
    for pool in pools:
        pool = prepared(pool, unit_pool, center_pool)
        check_settings(len(mean), pool, m, rank, score)
        keep = vectors[:, ::-1][:, : min(rank or len(mean), len(mean))].T
        found.append(_greedy(mean, covariance, pool, keep, m, score, stop))
    return found


def _greedy(
    mean: np.ndarray, covariance: np.ndarray, pool: np.ndarray, keep: np.ndarray, m: int, score: Score, stop: float
) -> Span:
    """Picks in the coordinates of the kept directions."""
    total = float(np.trace(covariance))
    texts, spread = pool @ keep.T, keep @ covariance @ keep.T
    inside = float(np.trace(spread))
    seen_by = texts @ spread
    picks, explained, basis = [], [], []
    while len(picks) < m and total > 0 and inside > stop * total:
        pick, length = strongest((seen_by * texts).sum(1), np.square(texts).sum(1), score)
        if pick is None:
            break
        u = texts[pick] / length
        picks.append(pick)
        basis.append(u @ keep)
        along = spread @ u
        gain = float(u @ along)
        explained.append(gain / total)
        inside -= gain
        # (I - uu') S (I - uu'), and the texts' products with it, without a product of matrices.
        spread = spread - np.outer(u, along) - np.outer(along, u) + gain * np.outer(u, u)
        parts = texts @ u
        texts = texts - np.outer(parts, u)
        seen_by = texts @ spread if len(picks) % _REFRESH == 0 else _deflated(seen_by, parts, along, u)
    return packed(picks, explained, basis, mean, total)


_REFRESH = 16
"""Picks after which the products are computed anew, so that rounding errors do not add up."""


def span_moments(moments: Moments, head: int, pool: Float[np.ndarray, "text d_embed"], **settings: object) -> Span:
    """:func:`span_covariance` of one of the heads of :class:`Moments`."""
    if not 0 <= head < len(moments.mean):
        raise OutOfRange(f"head number {head} of {len(moments.mean)}.")
    return span_covariance(moments.mean[head], moments.scatter[head] / moments.n, pool, **settings)


def span_of(vectors: Float[np.ndarray, "image d_embed"], pool: Float[np.ndarray, "text d_embed"], **settings) -> Span:
    """:func:`span_covariance` of vectors that are at hand."""
    return span_moments(moments_of(checked(vectors, "vectors")[:, None]), 0, pool, **settings)


def _deflated(seen_by: np.ndarray, parts: np.ndarray, along: np.ndarray, u: np.ndarray) -> np.ndarray:
    """`(R - parts u') (I - uu') S (I - uu')` from `R S`."""
    # R' S' with R' orthogonal to u: (R - parts u') S (I - uu').
    rows = seen_by - np.outer(parts, along)
    return rows - np.outer(rows @ u, u)


def strongest(scores: np.ndarray, squares: np.ndarray, score: Score) -> tuple[int | None, float]:
    """Position and length of the text with the largest score; None where no text has any length left."""
    lengths = np.sqrt(squares)
    usable = lengths > _SHORT
    if not usable.any():
        return None, 0.0
    if score == "normalised":
        scores = scores / np.where(usable, squares, 1.0)
    scores = np.where(usable, scores, -np.inf)
    # Of texts that are equal but for rounding (all are, once one direction is left), the first: in both forms.
    best = scores.max()
    pick = int((scores >= best - _TIE * abs(best)).argmax())
    return pick, float(lengths[pick])


def packed(picks: list, explained: list, basis: list, mean: np.ndarray, total: float) -> Span:
    return Span(
        picks=np.array(picks, dtype=np.int64),
        explained=np.array(explained, dtype=float),
        basis=np.stack(basis) if basis else np.zeros((0, len(mean))),
        mean=mean,
        variance=total,
    )


def checked(values: object, what: str) -> np.ndarray:
    found = np.asarray(values, dtype=float)
    if found.ndim != 2 or 0 in found.shape:
        raise ShapeMismatch(f"{what} need two axes that are not empty, got the shape {list(found.shape)}.")
    return finite(what, found)


def prepared(pool: object, unit_pool: bool, center_pool: bool) -> np.ndarray:
    found = checked(pool, "the pool of texts")
    found = unit(found) if unit_pool else found
    if not center_pool:
        return found
    found = found - found.mean(0)
    return unit(found) if unit_pool else found


def check_settings(width: int, pool: np.ndarray, m: int, rank: int | None, score: str) -> None:
    if pool.shape[1] != width:
        raise ShapeMismatch(f"the head writes {width} numbers and the texts have {pool.shape[1]}.")
    if score not in SCORES:
        raise unknown("score", score, SCORES)
    if m < 1:
        raise OutOfRange(f"m={m}: pick at least one text.")
    if rank is not None and rank < 1:
        raise OutOfRange(f"rank={rank}: keep at least one direction, or None for all.")
    if len(pool) < 2:
        raise BadData("a pool of one text leaves nothing to choose.")
