"""The same dictionary with decoder rows of norm one.

A free decoder leaves it open how long a code and its row are; what counts is their product. Saved dictionaries have
unit rows, so that codes can be compared: W_enc, b_enc and thresholds of a latent are multiplied with its row's norm.
A row of zeros stays as it is: nothing that its latent does can be seen.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sae.dictionary import Dictionary

PER_LATENT = ("b_enc", "threshold", "b_gate", "b_mag")
"""Parameters and states in units of the pre-activation, `[latent]`."""


def unit_rows(d: "Dictionary") -> dict[str, Tensor]:
    """Parameters and state after folding; new tensors."""
    found = {name: tensor.detach().clone() for name, tensor in d.state_dict().items()}
    norms = found["W_dec"].norm(dim=1)
    norms = torch.where(norms > 0, norms, 1.0)
    found["W_dec"] /= norms[:, None]
    found["W_enc"] *= norms[:, None]
    for name in PER_LATENT:
        if name in found and found[name].ndim == 1 and len(found[name]) == len(norms):
            found[name] *= norms
    return found
