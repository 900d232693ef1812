"""The ends of every scale: a dictionary that writes what it reads, one that writes nothing, one that writes the mean.

An evaluation that does not give the identity FVU 0 and "all recovered", and the other two "nothing recovered", compares
things that cannot be compared: scaled with unscaled activations, one head with all (SAELens #518, #150, #163).
"""

from typing import TYPE_CHECKING

import numpy as np

from sae.baselines.fitted import Rows, made, read_rows
from sae.baselines.linear import Linear

if TYPE_CHECKING:
    from sae.dictionary import Dictionary


def identity(rows: Rows) -> "Dictionary":
    """One latent per column, which writes it back.

    Args:
        rows: some activations `[row d]`, or several by site: for widths and types only.

    Raises:
        ShapeMismatch, NotFinite, BadData: rows that cannot be read.

    Example:
        >>> import torch
        >>> x = torch.randn(3, 4)
        >>> bool((identity(x)(x) == x).all())
        True
    """
    ends, x, dtype = read_rows(rows, least=1)
    eye = np.eye(x.shape[1])
    tensors = {"W_enc": eye, "W_dec": eye, "b_enc": np.zeros(len(eye)), "b_dec": np.zeros(len(eye))}
    return made(Linear(n_latents=len(eye)), ends, dtype, tensors, baseline="identity")


def zero(rows: Rows) -> "Dictionary":
    """Writes zero whatever it reads: what "ablated to zero" is.

    Args:
        rows: some activations, for widths and types only.

    Raises:
        ShapeMismatch, NotFinite, BadData: rows that cannot be read.
    """
    ends, x, dtype = read_rows(rows, least=1)
    return made(Linear(n_latents=1), ends, dtype, _silent(np.zeros(x.shape[1])), baseline="zero")


def mean(rows: Rows) -> "Dictionary":
    """Writes the mean of the rows whatever it reads: FVU 1 on these rows.

    Args:
        rows: activations `[row d]`, or several by site.

    Raises:
        ShapeMismatch, NotFinite, BadData: rows that cannot be read.
    """
    ends, x, dtype = read_rows(rows, least=1)
    return made(Linear(n_latents=1), ends, dtype, _silent(x.mean(0)), baseline="mean", rows=len(x))


def _silent(centre: np.ndarray) -> dict[str, np.ndarray]:
    direction = np.full((1, len(centre)), len(centre) ** -0.5)
    return {"W_enc": 0 * direction, "W_dec": direction, "b_enc": np.zeros(1), "b_dec": centre}
