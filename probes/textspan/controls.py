"""What the shares of variance of a text span have to be compared with (faithfulness.md 2.5, row "Text-span").

* :func:`pca_bound`: no `k` directions explain more than the first `k` principal components.
* :func:`random_pools`: as many random directions as there are texts. With enough of them to choose from, random
  directions explain a lot: a text span that is not above them says nothing about texts.
* :func:`crossed`: the span of one head, applied to another. If all heads write along the same directions, a span says
  nothing about its head.
* :func:`agreement`: does the other half of the images give the same texts, and do those of one half explain the other?
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechvis.errors import OutOfRange, ShapeMismatch
from probes.textspan.greedy import Span, span_moments, spans_of_pools
from probes.textspan.moments import Moments


def principal(covariance: Float[np.ndarray, "d_embed d_embed"], m: int) -> Float[np.ndarray, "pick d_embed"]:
    """The first `m` principal directions, orthonormal, strongest first."""
    if m < 1:
        raise OutOfRange(f"m={m}: ask for at least one direction.")
    return np.linalg.eigh(covariance)[1][:, ::-1][:, :m].T


def pca_bound(covariance: Float[np.ndarray, "d_embed d_embed"], m: int) -> Float[np.ndarray, " pick"]:
    """Share of the variance that the first 1 .. `m` principal components explain: no span does better.

    Example:
        >>> pca_bound(np.diag([3.0, 1.0]), 2)
        array([0.75, 1.  ])
    """
    if m < 1:
        raise OutOfRange(f"m={m}: ask for at least one direction.")
    values = np.clip(np.linalg.eigvalsh(covariance)[::-1], 0, None)
    total = values.sum()
    found = values[:m].cumsum() / total if total > 0 else np.zeros(min(m, len(values)))
    return np.pad(found, (0, m - len(found)), mode="edge")


def random_pools(
    moments: Moments, n_texts: int, *, m: int, draws: int, seed: int = 0, **settings: object
) -> tuple[Float[np.ndarray, "draw head pick"], list[Span]]:
    """Cumulative shares with random unit directions in the place of the texts, and the spans of the first draw.

    Args:
        moments: of the heads.
        n_texts: size of each pool.
        m: picks.
        draws: pools, at least 1.
        seed: fixes them.
        settings: of :func:`probes.textspan.greedy.span_covariance`.

    Example:
        >>> from probes.textspan.moments import moments_of
        >>> moments = moments_of(np.random.default_rng(0).normal(size=(50, 2, 6)))
        >>> random_pools(moments, 30, m=3, draws=2)[0].shape
        (2, 2, 3)
    """
    if draws < 1:
        raise OutOfRange(f"draws={draws}: draw at least one random pool.")
    generator = np.random.default_rng(seed)
    n_heads, width = moments.mean.shape
    pools = [generator.normal(size=(n_texts, width)) for _ in range(draws)]
    found = np.empty((draws, n_heads, m))
    first: list[Span] = []
    for head in range(n_heads):
        # The head's directions are found once for all pools.
        spans = spans_of_pools(moments.mean[head], moments.scatter[head] / moments.n, pools, m=m, **settings)
        found[:, head] = [padded(span.cumulative, m) for span in spans]
        first.append(spans[0])
    return found, first


def explained_by(span: Span, covariance: Float[np.ndarray, "d_embed d_embed"], m: int) -> Float[np.ndarray, " pick"]:
    """Share of a covariance that the first 1 .. `m` directions of a span explain."""
    total = float(np.trace(covariance))
    along = ((span.basis @ covariance) * span.basis).sum(1)
    return padded(along.cumsum() / total if total > 0 else np.zeros(len(span)), m)


def crossed(spans: Sequence[Span], moments: Moments, m: int) -> Float[np.ndarray, "head head_of_span pick"]:
    """Share of each head's variance that each head's span explains; the diagonal holds the spans themselves.

    Raises:
        ShapeMismatch: not one span per head.
    """
    if len(spans) != len(moments.mean):
        raise ShapeMismatch(f"{len(spans)} spans for {len(moments.mean)} heads.")
    covariances = moments.covariance
    return np.stack([np.stack([explained_by(span, each, m) for span in spans]) for each in covariances])


@dataclass(frozen=True, kw_only=True, eq=False)
class Agreement:
    """Two halves of the images, each with its own spans."""

    overlap: Float[np.ndarray, " head"]
    """Texts that both halves picked, as a share of all that either picked."""
    subspace: Float[np.ndarray, " head"]
    """How much of one half's span lies in the other's: mean squared cosine, 1 for the same span."""
    held_out: Float[np.ndarray, " head"]
    """Share of the variance of one half that the other half's span explains; mean of both ways."""


def agreement(
    halves: tuple[Moments, Moments], pool: Float[np.ndarray, "text d_embed"], *, m: int, **settings: object
) -> Agreement:
    """Spans of two halves of the images against each other.

    Args:
        halves: moments of the heads over disjoint images.
        pool: embeddings of the texts.
        m: picks.
        settings: of :func:`probes.textspan.greedy.span_covariance`.
    """
    n_heads = len(halves[0].mean)
    overlap, subspace, held_out = (np.zeros(n_heads) for _ in range(3))
    for head in range(n_heads):
        one, two = (span_moments(half, head, pool, m=m, **settings) for half in halves)
        both = set(one.picks.tolist()) | set(two.picks.tolist())
        overlap[head] = len(set(one.picks.tolist()) & set(two.picks.tolist())) / len(both) if both else 1.0
        most = max(len(one), len(two))
        subspace[head] = np.square(one.basis @ two.basis.T).sum() / most if most else 1.0
        seen = (explained_by(one, halves[1].covariance[head], m), explained_by(two, halves[0].covariance[head], m))
        held_out[head] = np.mean([shares[-1] for shares in seen])
    return Agreement(overlap=overlap, subspace=subspace, held_out=held_out)


def padded(cumulative: Float[np.ndarray, " found"], m: int) -> Float[np.ndarray, " pick"]:
    """Cumulative shares of `m` picks: those that were not needed add nothing."""
    return np.pad(cumulative, (0, m - len(cumulative)), mode="edge") if len(cumulative) else np.zeros(m)
