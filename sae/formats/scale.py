"""A dictionary that takes rows as the model has them, made of one that scales them with constant factors.

Other formats have no place for the factor, so it goes into the weights. For rows divided by c (the s = 1/c of SAELens):

1. W_enc is divided by c, so that it sees the same numbers.
2. Biases and thresholds of latents stay: they are in the units of codes, which do not change.
3. W_dec and b_dec (and what a skip connection writes) are multiplied with c.
4. A threshold in units of f·‖W_dec‖ (BatchTopK with a free decoder) is multiplied with c, for the rows of W_dec are c
   times as long. SAELens left that out at first (its issue 763): the folded dictionary had another L0.

A matching pursuit encodes with its own unit atoms, which cannot hold a factor: there the codes themselves come out c
times as large, and b_dec and the residual's threshold with them.
"""

import dataclasses
from typing import TYPE_CHECKING

import torch

from mechvis.errors import RefusedMethod
from sae.normaliser import OF_ROWS

if TYPE_CHECKING:
    from sae.dictionary import Dictionary


def unscaled(d: "Dictionary") -> "Dictionary":
    """The same codes (of a pursuit: c times as large) and the same output, with `normalise='none'`; a new object.

    Args:
        d: a dictionary with a constant scale ('mean_square', 'mean_norm', or 'none' already).

    Raises:
        RefusedMethod: rows are scaled by their own norm, which no weight can do; or the architecture's rule depends on
            the scale in another way.

    Example:
        >>> import torch, sae
        >>> rows = 3 * torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
        >>> d = sae.start(sae.TopK(n_latents=16, k=2, normalise="mean_square"), {"site": rows})
        >>> bool(torch.allclose(unscaled(d)(rows), d(rows), atol=1e-5)), unscaled(d).architecture.normalise
        (True, 'none')
    """
    from sae.dictionary import Dictionary
    from sae.formats.express import kind_of, plainly_ranked

    if d.architecture.normalise == "none":
        return d
    if d.architecture.normalise in OF_ROWS:
        raise RefusedMethod(
            f"normalise={d.architecture.normalise!r} scales every row by its own "
            "norm; that cannot be folded into weights."
        )
    kind = kind_of(d)
    if kind is None:
        raise RefusedMethod(f"the scale of {d.architecture.NAME!r} cannot be folded into its weights.")
    if d.architecture.NAME == "archetypal":  # its atoms follow from other parameters
        d = plainly_ranked(d)
    found = {name: tensor.detach().clone() for name, tensor in d.state_dict().items()}
    read, written = found["scale_in"], found["scale_out"]
    changes: dict[str, object] = {"normalise": "none"}
    found["b_dec"] *= written
    if kind == "matching_pursuit":
        changes["residual_threshold"] = d.architecture.residual_threshold * float(written[0])
    else:
        found["W_enc"] /= read
        found["W_dec"] *= written
    if "W_skip" in found:
        found["W_skip"] *= written[:, None] / read
    if kind == "batch_topk" and d.architecture.decoder == "free":
        if not torch.allclose(written, written[:1].expand_as(written)):
            raise RefusedMethod(
                "a threshold over rows of several scales cannot be folded; fold the rows first: folded()."
            )
        known = found["threshold"] >= 0
        found["threshold"] = torch.where(known, found["threshold"] * written[0], found["threshold"])
    found["scale_in"], found["scale_out"] = torch.ones_like(read), torch.ones_like(written)
    names = {name for name, _ in d.named_parameters()}
    return Dictionary(
        dataclasses.replace(d.architecture, **changes),
        d.ends,
        {name: tensor for name, tensor in found.items() if name in names},
        {name: tensor for name, tensor in found.items() if name not in names},
        provenance=d.provenance,
    )
