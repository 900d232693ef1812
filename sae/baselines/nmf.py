"""NMF as a dictionary: non-negative activations as non-negative sums of non-negative directions (CRAFT's method).

For activations after a ReLU, or otherwise never negative. A ViT's residual stream is not so: take `semi_nmf`, or
`shift=True`, which takes the least value of every column off first (and then says nothing about where zero was).
"""

import warnings
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import BadData, MechvisWarning
from sae.baselines.fitted import Rows, made, read_rows, require_count
from sae.baselines.non_negative import NonNegative

if TYPE_CHECKING:
    from sae.dictionary import Dictionary


def nmf(
    rows: Rows,
    n_latents: int,
    *,
    k: int | None = None,
    shift: bool = False,
    seed: int = 0,
    steps: int = 400,
    tolerance: float = 1e-4,
) -> "Dictionary":
    """Non-negative matrix factorisation (scikit-learn's `NMF`, coordinate descent).

    Args:
        rows: activations `[row d]`, none of them negative, or several by site.
        n_latents: directions.
        k: active latents per row at most; None: no limit.
        shift: take the least value of each column off first.
        seed: of the start.
        steps: at most.
        tolerance: change at which it stops.

    Raises:
        BadData: negative activations; more directions than rows or columns.
        ShapeMismatch, NotFinite: rows that cannot be read.

    Warns:
        MechvisWarning: it did not settle within `steps`.

    Example:
        >>> import torch
        >>> x = torch.rand(60, 5, generator=torch.Generator().manual_seed(0))
        >>> bool((nmf(x, 3).W_dec >= 0).all())
        True
    """
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    ends, x, dtype = read_rows(rows)
    require_count(n_latents, min(x.shape), "NMF")
    floor = x.min(0) if shift else np.zeros(x.shape[1])
    if (x < floor).any():
        row, column = np.argwhere(x < floor)[0]
        raise BadData(
            f"NMF needs activations that are never negative; row {row}, column {column} is {x[row, column]:.3g}. Use "
            "semi_nmf, or shift=True to take the least value of each column off."
        )
    method = NMF(n_latents, init="nndsvda", max_iter=steps, tol=tolerance, random_state=seed)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        method.fit(x - floor)
    settled = not any(issubclass(w.category, ConvergenceWarning) for w in said)
    if not settled:
        warnings.warn(
            f"NMF did not settle in {steps} steps: take more steps or fewer latents.", MechvisWarning, stacklevel=2
        )
    tensors = directions(method.components_, floor)
    architecture = NonNegative(n_latents=n_latents, k=k)
    return made(architecture, ends, dtype, tensors, baseline="nmf", rows=len(x), seed=seed, settled=settled)


def directions(found: np.ndarray, centre: np.ndarray) -> dict[str, np.ndarray]:
    """Parameters of directions of any length `[latent d]`; one of length zero becomes a direction nobody uses."""
    length = np.linalg.norm(found, axis=1, keepdims=True)
    unit = np.where(length > 0, found, 0.0) / np.where(length > 0, length, 1.0)
    # A row of zeros has no norm to be one; its code is zero whatever the row, since it can explain nothing.
    return {"W_enc": unit, "W_dec": unit, "b_enc": np.zeros(len(unit)), "b_dec": centre}
