"""Semi-NMF as a dictionary: non-negative codes, directions with signs (Ding, Li and Jordan 2010, section 3 [K]).

X ≈ Z W with Z ≥ 0, for data of either sign. From a start by k-means (a row's own cluster 1, the others .2) two steps
alternate, and neither can raise ‖X - Z W‖²:

1. W = (Z'Z)⁻¹ Z'X: least squares;
2. Z ← Z · √( ([XW']⁺ + Z [WW']⁻) / ([XW']⁻ + Z [WW']⁺) ), where [A]⁺ = (|A| + A)/2 and [A]⁻ = (|A| - A)/2.

A dictionary of the same form as an SAE (non-negative codes, free directions), without sparsity and without an encoder:
what is left if only these two are given up.
"""

from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import BadData
from sae.baselines.fitted import Rows, made, read_rows, require_count
from sae.baselines.nmf import directions
from sae.baselines.non_negative import NonNegative

if TYPE_CHECKING:
    from sae.dictionary import Dictionary


def semi_nmf(
    rows: Rows,
    n_latents: int,
    *,
    k: int | None = None,
    centre: bool = True,
    seed: int = 0,
    steps: int = 200,
    tolerance: float = 1e-5,
) -> "Dictionary":
    """Semi-non-negative matrix factorisation.

    Args:
        rows: activations `[row d]`, or several by site.
        n_latents: directions.
        k: active latents per row at most; None: no limit.
        centre: take the mean off first, as other dictionaries do (the paper does not).
        seed: of k-means.
        steps: at most.
        tolerance: relative fall of the error at which it stops.

    Returns:
        A dictionary; its provenance holds `fit.error`, ‖X - ZW‖² over the sum of squares, at the end of the fit.

    Raises:
        BadData: more directions than rows; settings that cannot be.
        ShapeMismatch, NotFinite: rows that cannot be read.

    Example:
        >>> import torch
        >>> x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
        >>> bool((semi_nmf(x, 3).encode(x) >= 0).all())
        True
    """
    ends, x, dtype = read_rows(rows)
    require_count(n_latents, len(x), "semi-NMF")
    if steps < 1:
        raise BadData(f"steps={steps}: at least 1.")
    mean = x.mean(0) if centre else np.zeros(x.shape[1])
    _, W, errors = factorised(x - mean, n_latents, seed=seed, steps=steps, tolerance=tolerance)
    total = float(np.square(x - mean).sum())
    architecture = NonNegative(n_latents=n_latents, k=k)
    known = {"rows": len(x), "seed": seed, "steps": len(errors), "error": errors[-1] / total if total else 0.0}
    return made(architecture, ends, dtype, directions(W, mean), baseline="semi_nmf", **known)


def factorised(
    x: np.ndarray, n_latents: int, *, seed: int = 0, steps: int = 200, tolerance: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Codes `[row latent]`, directions `[latent d]`, and the squared error after every step.

    Args:
        x: float64 `[row d]`.
        n_latents: directions.
        seed: of k-means.
        steps: at most.
        tolerance: relative fall of the error at which it stops.
    """
    from sklearn.cluster import KMeans

    cluster = KMeans(n_latents, n_init=1, random_state=seed).fit(x).labels_
    Z = np.full((len(x), n_latents), 0.2)
    Z[np.arange(len(x)), cluster] += 1
    errors: list[float] = []
    for _ in range(steps):
        # The pseudo-inverse: a latent that is zero on all rows gets no direction instead of an infinite one.
        W = np.linalg.pinv(Z.T @ Z, hermitian=True) @ (Z.T @ x)
        XW, WW = x @ W.T, W @ W.T
        above = (np.abs(XW) + XW) / 2 + Z @ ((np.abs(WW) - WW) / 2)
        below = (np.abs(XW) - XW) / 2 + Z @ ((np.abs(WW) + WW) / 2)
        Z = Z * np.sqrt(above / np.maximum(below, np.finfo(float).tiny))
        errors.append(float(np.square(x - Z @ W).sum()))
        if len(errors) > 1 and errors[-2] - errors[-1] <= tolerance * errors[-2]:
            break
    return Z, W, errors
