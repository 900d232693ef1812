"""PCA as a dictionary: orthogonal directions of most variance; what a linear subspace of the same size explains.

With all latents active, no other linear map of that rank has a smaller FVU: the bar for "as many numbers per row". With
`k`, a row keeps its k largest coefficients, so that L0 is that of a sparse dictionary: the bar for "as sparse".
"""

from typing import TYPE_CHECKING

from sae.baselines.fitted import Rows, made, read_rows, require_count
from sae.baselines.linear import Linear, parameters

if TYPE_CHECKING:
    from sae.dictionary import Dictionary


def pca(rows: Rows, n_latents: int | None = None, *, k: int | None = None, signed: bool = True) -> "Dictionary":
    """Principal directions of activations (scikit-learn's `PCA`, exact solver).

    Args:
        rows: activations `[row d]`, or several by site.
        n_latents: directions; None: as many as there are.
        k: coefficients that a row keeps, the largest by size; None: all.
        signed: coefficients have signs; False: two latents per direction, without signs.

    Returns:
        A dictionary; its provenance holds `fit.explained`, the share of variance of each direction.

    Raises:
        BadData: more directions than rows or columns; a k that cannot be.
        ShapeMismatch, NotFinite: rows that cannot be read.

    Example:
        >>> import torch
        >>> x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
        >>> round(float((pca(x)(x) - x).detach().abs().max()), 4)
        0.0
    """
    from sklearn.decomposition import PCA

    ends, x, dtype = read_rows(rows)
    most = min(x.shape)
    n_latents = most if n_latents is None else n_latents
    require_count(n_latents, most, "PCA")
    found = PCA(n_latents, svd_solver="full").fit(x)
    tensors = parameters(found.components_, found.components_, found.mean_, signed=signed)
    architecture = Linear(n_latents=len(tensors["W_enc"]), k=k, rectify=not signed)
    explained = [round(float(share), 8) for share in found.explained_variance_ratio_]
    return made(architecture, ends, dtype, tensors, baseline="pca", rows=len(x), explained=explained)
