"""Tensors of a file, by our names, become a :class:`sae.Dictionary`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mechvis.errors import BadData, NotFinite, ShapeMismatch
from sae.architecture import Architecture
from sae.ends import Ends

if TYPE_CHECKING:
    from sae.dictionary import Dictionary


def built(
    architecture: Architecture,
    ends: Ends,
    tensors: Mapping[str, Tensor],
    *,
    where: str,
    provenance: Mapping[str, Any],
    scale: float = 1.0,
) -> "Dictionary":
    """A dictionary from the tensors of a file, by our names.

    Args:
        architecture: settings.
        ends: what is read and written.
        tensors: parameters, and the state that the architecture keeps.
        where: the file, for errors.
        provenance: kept in the dictionary.
        scale: what rows are divided by, where the scale is constant.

    Raises:
        ShapeMismatch, NotFinite: a tensor that cannot be.
    """
    from sae.dictionary import Dictionary

    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors.values()) else torch.float32
    state = architecture.state(ends)
    for name, default in state.items():
        if name in tensors and tensors[name].shape != default.shape:
            raise ShapeMismatch(f"{name} of {where} is {list(tensors[name].shape)}, not {list(default.shape)}.")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise NotFinite(f"{name} of {where} holds NaN or Inf. It is not loaded.")
    return Dictionary(
        architecture,
        ends,
        {name: tensor.to(dtype) for name, tensor in tensors.items() if name not in state},
        {
            "scale_in": torch.full((ends.d_in,), scale, dtype=dtype),
            "scale_out": torch.full((ends.d_out,), scale, dtype=dtype),
            **{name: tensors.get(name, default).to(default.dtype) for name, default in state.items()},
        },
        provenance=provenance,
    )


def sites(reads: str, writes: str | None, d_in: int, d_out: int) -> Ends:
    """One site that is read, and one that is written (None: the same)."""
    if writes is None:
        if d_in != d_out:
            raise ShapeMismatch(f"an autoencoder reads and writes one width; here {d_in} is read and {d_out} written.")
        return Ends(reads={reads: d_in})
    if writes == reads:  # a transcoder all the same
        writes = f"{writes} (written)"
    return Ends(reads={reads: d_in}, writes={writes: d_out})


def rows_of_norm_one(W_dec: Tensor) -> str:
    """`decoder` of an architecture whose rule does not ask for the rows' norms: what the rows are."""
    norms = W_dec.norm(dim=1)
    return "unit" if bool((norms - 1).abs().max() < 1e-3) else "free"


def thresholds_as_they_are(n: int) -> dict[str, Any]:
    """Settings of a JumpReLU whose file holds the thresholds themselves."""
    return {"log_threshold": False, "l0": float(min(20, n))}


def fits_k(k: int, n: int, where: str) -> int:
    """k, if there are as many latents.

    Raises:
        BadData: there are not.
    """
    if not 1 <= k <= n:
        raise BadData(f"k={k} in {where}, which has {n} latents.")
    return k
