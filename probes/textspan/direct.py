"""TextSpan as it is published: every image and every text at every pick. The slow twin of the covariance form.

What is picked, and how this differs from the released code, is in :mod:`probes.textspan.greedy`.
"""

import numpy as np
from jaxtyping import Float

from probes.textspan.greedy import STOP, Score, Span, check_settings, checked, packed, prepared, strongest


def span_direct(
    vectors: Float[np.ndarray, "image d_embed"],
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
    """The published form: every image and every text at every pick. The slow twin of :func:`span_covariance`.

    Args:
        vectors: what the head writes for each image.
        pool: embeddings of the texts.
        m: texts to pick, at most.
        rank: directions that the texts are projected onto; None for all. The width of the head (`d_head`) in a model.
        svd_center: are they those of the centred vectors?
        score: see the module.
        unit_pool: bring texts to unit length first?
        center_pool: take the mean of the texts off?
        stop: share of variance that is too little to go on.

    Returns:
        A :class:`Span`; with fewer than `m` picks where the variance was used up.

    Raises:
        ShapeMismatch, NotFinite, OutOfRange, UnknownName, BadData.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> span_direct(rng.normal(size=(50, 3)) * [1, 9, 3], np.eye(3), m=3).picks
        array([1, 2, 0])
    """
    vectors, pool = checked(vectors, "vectors"), prepared(pool, unit_pool, center_pool)
    check_settings(vectors.shape[1], pool, m, rank, score)
    mean = vectors.mean(0)
    left = vectors - mean
    _, _, right = np.linalg.svd(left if svd_center else vectors, full_matrices=False)
    keep = right[: min(rank or len(right), len(right))]
    texts = pool @ keep.T @ keep
    total = float(left.var(0).sum())
    picks, explained, basis = [], [], []
    # What lies outside the kept directions no text can explain, so it does not count as left.
    while len(picks) < m and total > 0 and (left @ keep.T).var(0).sum() > stop * total:
        scores = (left @ texts.T).var(0)
        pick, length = strongest(scores, np.square(texts).sum(1), score)
        if pick is None:
            break
        u = texts[pick] / length
        picks.append(pick)
        basis.append(u)
        explained.append(float((left @ u).var()) / total)
        left = left - np.outer(left @ u, u)
        texts = texts - np.outer(texts @ u, u)
    return packed(picks, explained, basis, mean, total)
