"""Random directions as a dictionary: what sparsity and many directions give without any learning.

The k directions that a row projects on most are active, with the best non-negative codes for them. So it is as good as
random directions can be with that choice, and what a trained dictionary has above it was learned.

`like="covariance"` draws directions with the covariance of the activations: they lie where the data vary, as learned
ones do. `like="rows"` takes rows themselves, centred: the bar for archetypes, and for directions that were only copied.
"""

from typing import TYPE_CHECKING, Literal

import numpy as np

from mechvis.errors import BadData, unknown
from sae.baselines.fitted import Rows, made, read_rows
from sae.baselines.non_negative import NonNegative

if TYPE_CHECKING:
    from sae.dictionary import Dictionary

KINDS = ("isotropic", "covariance", "rows")


def random_dictionary(
    rows: Rows,
    n_latents: int,
    *,
    k: int,
    like: Literal["isotropic", "covariance", "rows"] = "isotropic",
    seed: int = 0,
) -> "Dictionary":
    """Random directions around the mean of the rows.

    Args:
        rows: activations `[row d]`, or several by site.
        n_latents: directions.
        k: active latents per row at most.
        like: where directions come from: every way alike, with the rows' covariance, or rows.
        seed: of the draw.

    Raises:
        BadData: a k that cannot be, more directions than rows (`like="rows"`), no latents.
        UnknownName: another `like`.
        ShapeMismatch, NotFinite: rows that cannot be read.

    Example:
        >>> import torch
        >>> x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
        >>> int(random_dictionary(x, 32, k=4).encode(x).count_nonzero(1).max()) <= 4
        True
    """
    if like not in KINDS:
        raise unknown("kind of random directions", like, KINDS)
    architecture = NonNegative(n_latents=n_latents, k=k, choose="project")
    ends, x, dtype = read_rows(rows)
    mean = x.mean(0)
    generator = np.random.default_rng(seed)
    if like == "rows":
        if n_latents > len(x):
            raise BadData(f"n_latents={n_latents} directions from {len(x)} rows: give more rows, or fewer latents.")
        drawn = (x - mean)[generator.choice(len(x), n_latents, replace=False)]
        if not np.linalg.norm(drawn, axis=1).all():
            raise BadData("a row equals the mean, so it has no direction: take like='covariance'.")
    else:
        drawn = generator.normal(size=(n_latents, x.shape[1]))
        if like == "covariance":
            values, vectors = np.linalg.eigh(np.cov(x.T).reshape(x.shape[1], x.shape[1]))
            drawn = drawn * np.sqrt(np.maximum(values, 0)) @ vectors.T
    unit = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    tensors = {"W_enc": unit, "W_dec": unit, "b_enc": np.zeros(n_latents), "b_dec": mean}
    return made(architecture, ends, dtype, tensors, baseline="random", like=like, rows=len(x), seed=seed)
