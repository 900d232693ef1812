"""What the covariance form of TextSpan saves: the same picks by both forms, timed, with the memory that each holds."""

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mechvis.data.text_bank import TextBank
from mechvis.data.text_encoding import encode_bank
from mechvis.errors import FailedCheck, ShapeMismatch
from probes.textspan.direct import span_direct
from probes.textspan.greedy import Span, span_moments
from probes.textspan.moments import gather
from probes.textspan.reading import LAYERS, Layers, read, tower_of


def compare_forms(
    vectors: Float[np.ndarray, "image head d_embed"],
    pool: Float[np.ndarray, "text d_embed"],
    *,
    m: int = 20,
    rank: int | None = None,
    batch_size: int = 256,
) -> dict[str, Any]:
    """Time and memory of both forms over all heads; an error if they pick different texts.

    Args:
        vectors: what the heads write for each image. The direct form has to hold them; the covariance form gets them
            batch by batch, as a model gives them.
        pool: embeddings of the texts.
        m: picks per head.
        rank: directions that texts are projected onto.
        batch_size: images per batch of the covariance form.

    Returns:
        `direct_s`, `covariance_s` (of which `moments_s` for the pass over the images), `ratio`; `direct_bytes` (the
        vectors, and the most that the algorithm holds beside them), `covariance_bytes` (the moments, and beside them),
        `memory_ratio`; `n`, `heads`, `texts`, `m`.

    Raises:
        FailedCheck: the forms do not pick the same texts.
        ShapeMismatch: other axes.

    Example:
        >>> vectors = np.random.default_rng(0).normal(size=(300, 2, 16))
        >>> compare_forms(vectors, np.random.default_rng(1).normal(size=(40, 16)), m=4)["n"]
        300
    """
    vectors, pool = np.asarray(vectors, float), np.asarray(pool, float)
    if vectors.ndim != 3:
        raise ShapeMismatch(f"vectors need the axes [image head d_embed], got the shape {list(vectors.shape)}.")
    heads = range(vectors.shape[1])

    def direct() -> list[Span]:
        return [span_direct(vectors[:, head], pool, m=m, rank=rank) for head in heads]

    started = time.perf_counter()
    moments = gather(vectors[i : i + batch_size] for i in range(0, len(vectors), batch_size))
    moments_s = time.perf_counter() - started

    def covariance() -> list[Span]:
        return [span_moments(moments, head, pool, m=m, rank=rank) for head in heads]

    fast, fast_s, fast_peak = _measured(covariance)
    slow, slow_s, slow_peak = _measured(direct)
    if any(one.picks.tolist() != two.picks.tolist() for one, two in zip(fast, slow, strict=True)):
        raise FailedCheck("the two forms of TextSpan pick different texts.")
    fast_bytes = moments.scatter.nbytes + moments.mean.nbytes + vectors[:batch_size].nbytes + fast_peak
    slow_bytes = vectors.nbytes + slow_peak
    return {
        "n": len(vectors), "heads": len(heads), "texts": len(pool), "m": m,
        "direct_s": slow_s, "covariance_s": moments_s + fast_s, "moments_s": moments_s,
        "ratio": slow_s / (moments_s + fast_s),
        "direct_bytes": slow_bytes, "covariance_bytes": fast_bytes, "memory_ratio": slow_bytes / fast_bytes,
    }  # fmt: skip


def compare_on_model(
    clip: Any,
    images: Any,
    bank: str | Path | TextBank = "general",
    *,
    layers: Layers = LAYERS,
    m: int = 20,
    batch_size: int = 64,
    progress: bool = True,
) -> dict[str, Any]:
    """:func:`compare_forms` on the heads of a model; all their vectors are kept for it.

    Args:
        clip: a wrapped CLIP model.
        images: an `ImageSet`, or pixels.
        bank: the texts.
        layers: whose heads.
        m: picks per head.
        batch_size: images per forward pass.
        progress: show a progress bar.

    Returns:
        What :func:`compare_forms` returns, and `decompose_s`, the seconds of the forward passes and the decomposition.

    Example:
        >>> compare_on_model(clip, mechvis.data.scenes(5000, seed=1), "scenes")["ratio"]   # doctest: +SKIP
    """
    pool = encode_bank(clip, bank)
    started = time.perf_counter()
    readings = read(clip, images, layers=layers, batch_size=batch_size, progress=progress)
    vectors = np.concatenate([batch.heads for batch in readings])
    seconds = time.perf_counter() - started
    return compare_forms(vectors, pool, m=m, rank=tower_of(clip).cfg.d_head) | {"decompose_s": seconds}


def _measured(work: Callable[[], list[Span]]) -> tuple[list[Span], float, int]:
    """Result, seconds, and the most memory that was allocated; memory in a second run, which tracing slows down."""
    started = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - started
    tracemalloc.start()
    try:
        work()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return found, seconds, peak
