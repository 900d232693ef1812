"""ICA as a dictionary: directions along which activations are independent (FastICA), which need not be orthogonal.

What "find the non-Gaussian directions" gives without sparse coding: at most as many as there are columns.
"""

import warnings
from typing import TYPE_CHECKING

from mechvis.errors import MechvisWarning
from sae.baselines.fitted import Rows, made, read_rows, require_count
from sae.baselines.linear import Linear, parameters

if TYPE_CHECKING:
    from sae.dictionary import Dictionary


def ica(
    rows: Rows,
    n_latents: int | None = None,
    *,
    k: int | None = None,
    signed: bool = True,
    seed: int = 0,
    steps: int = 400,
    tolerance: float = 1e-4,
) -> "Dictionary":
    """Independent directions of activations (scikit-learn's `FastICA`).

    Args:
        rows: activations `[row d]`, or several by site.
        n_latents: directions; None: as many as there are.
        k: codes that a row keeps, the largest by size of what they write; None: all.
        signed: codes have signs; False: two latents per direction, without signs.
        seed: of the start.
        steps: at most.
        tolerance: change at which it stops.

    Raises:
        BadData: more directions than rows or columns; a k that cannot be.
        ShapeMismatch, NotFinite: rows that cannot be read.

    Warns:
        MechvisWarning: it did not settle within `steps`; the provenance says so too (`fit.settled`).

    Example:
        >>> import torch
        >>> x = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0))
        >>> round(float((ica(x)(x) - x).detach().abs().max()), 4)
        0.0
    """
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    ends, x, dtype = read_rows(rows)
    most = min(x.shape)
    n_latents = most if n_latents is None else n_latents
    require_count(n_latents, most, "ICA")
    method = FastICA(n_latents, whiten="unit-variance", max_iter=steps, tol=tolerance, random_state=seed)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        method.fit(x)
    settled = not any(issubclass(w.category, ConvergenceWarning) for w in said)
    if not settled:
        warnings.warn(
            f"ICA did not settle in {steps} steps: take more steps, more rows or fewer latents.",
            MechvisWarning,
            stacklevel=2,
        )
    tensors = parameters(method.components_, method.mixing_.T, method.mean_, signed=signed)
    architecture = Linear(n_latents=len(tensors["W_enc"]), k=k, rectify=not signed)
    return made(architecture, ends, dtype, tensors, baseline="ica", rows=len(x), seed=seed, settled=settled)
