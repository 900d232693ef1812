"""How much each latent writes, in the units of the model.

A dictionary that scales every row by its own norm (`normalise="token_norm"`, the default of BatchTopK) has codes in
units of that norm: the same code writes ten times as much on a token that is ten times as long. Whoever adds up what
latents write has to put the norm back:  x̂ = strengths @ directions + what is written without any latent.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData
from sae.normaliser import OF_ROWS, scaled


def strengths(dictionary: Any, rows: Float[Tensor, "*row d"]) -> Float[Tensor, "*row latent"]:
    """Codes in units of `dictionary.directions`, in float64.

    Args:
        dictionary: an autoencoder of one site.
        rows: activations.

    Raises:
        BadData: a crosscoder or transcoder.
        ShapeMismatch: rows of another width.

    Example:
        >>> import torch, sae
        >>> rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
        >>> d = sae.start(sae.TopK(n_latents=16, k=2, normalise="token_norm"), {"site": rows})
        >>> nothing = d.decode(torch.zeros(40, 16), like=rows)
        >>> bool(torch.allclose((strengths(d, rows) @ d.directions.double() + nothing).float(), d(rows), atol=1e-5))
        True
    """
    if dictionary.ends.kind != "autoencoder":
        raise BadData(
            f"what latents write is told for one site that is read and written, not a {dictionary.ends.kind}."
        )
    codes = dictionary.encode(rows).detach().double()
    if dictionary.architecture.normalise not in OF_ROWS:
        return codes
    x = dictionary.ends.read(rows).to(dictionary.scale_in)
    widths = list(dictionary.ends.reads.values())
    scale = scaled(x, widths, dictionary.architecture.normalise, dictionary.scale_in).scale
    return codes * scale[..., :1].double()
