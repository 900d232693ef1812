"""How activations are scaled before a dictionary sees them; kept in its file, applied by it, never by hand.

============== ============================================================= =======================================
kind           what is done to a row x of one site                           known as
============== ============================================================= =======================================
none           nothing
mean_square    one factor, so that the mean of ‖x‖² is 1                     Gemma Scope, dictionary_learning
mean_norm      one factor, so that the mean of ‖x‖ is √d                     Anthropic, SAELens expected_average_only_in
token_norm     each row to norm √d                                           SAELens constant_norm_rescale
layer_norm     each row minus its mean, over its standard deviation          SAELens and Prisma layer_norm
input_norm     the same, also undone on what a transcoder writes             Prisma's transcoders; files only
============== ============================================================= =======================================

Sparsity coefficients and thresholds only mean something for one scaling, so it travels with them. The last two give
every token the same say whatever its norm (registers and artefact tokens of a ViT are ten times as long); what is
written is scaled back with the row's own norm, so decoding needs the row that was read (`like=`). They are refused for
what a transcoder writes, whose norm nobody knows when it is used.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, NotFinite, RefusedMethod, unknown
from sae.ends import Ends

KINDS = ("none", "mean_square", "mean_norm", "token_norm", "layer_norm", "input_norm")
Kind = Literal["none", "mean_square", "mean_norm", "token_norm", "layer_norm", "input_norm"]
OF_ROWS = ("token_norm", "layer_norm", "input_norm")
"""Kinds whose factor is another one for every row."""
EPSILON = 1e-5
"""Added to the standard deviation of `layer_norm` on the way in, not on the way back, as SAELens and Prisma do."""


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """Rows as the dictionary sees them, and what turns them back."""

    x: Float[Tensor, "*row d"]
    """The rows."""
    shift: Float[Tensor, "*row d"] | float
    """What is added on the way back."""
    scale: Float[Tensor, "*row d"] | Float[Tensor, " d"] | float
    """What they are multiplied with on the way back."""


def factors(rows: Float[Tensor, "row d"], widths: list[int], kind: Kind) -> Float[Tensor, " d"]:
    """What rows are divided by, per column: constant over the columns of a site, measured on these rows.

    Raises:
        UnknownName: not a kind.
        RefusedMethod: a kind that nothing can be trained with.
        NotFinite: the rows hold NaN or Inf.
        BadData: a site is zero on all rows.
    """
    if kind not in KINDS:
        raise unknown("normaliser", kind, KINDS)
    if kind == "input_norm":
        raise RefusedMethod(
            "normalise='input_norm' gives what is written the mean and norm of what was read. It is here so that "
            "Prisma's transcoders can be used; train with 'mean_square' or 'mean_norm'."
        )
    if not torch.isfinite(rows).all():
        raise NotFinite("the rows that the normaliser is measured on hold NaN or Inf.")
    found = []
    for part in rows.double().split(widths, dim=1):
        squares, width = part.square().sum(1), part.shape[1]
        if kind == "mean_square":
            factor = squares.mean().sqrt()
        elif kind == "mean_norm":
            factor = squares.sqrt().mean() / width**0.5
        else:
            factor = torch.ones((), dtype=torch.float64)
        if not factor > 0:
            raise BadData("all rows of a site are zero, so nothing can be learned from them.")
        found.append(factor.to(rows.device).expand(width))
    return torch.cat(found).to(rows.dtype)


def scaled(x: Float[Tensor, "*row d"], widths: list[int], kind: Kind, factor: Float[Tensor, " d"]) -> Scaled:
    """Rows as the dictionary sees them."""
    if kind == "none":
        return Scaled(x=x, shift=0.0, scale=1.0)
    if kind not in OF_ROWS:
        return Scaled(x=x / factor, shift=0.0, scale=factor)
    parts, shifts, scales = [], [], []
    for part in x.split(widths, dim=-1):
        if kind in ("layer_norm", "input_norm"):
            shift = part.mean(-1, keepdim=True)
            scale = part.std(-1, keepdim=True)
            parts.append((part - shift) / (scale + EPSILON))
        else:
            shift = torch.zeros_like(part[..., :1])
            # A row of zeros stays one.
            scale = (part.norm(dim=-1, keepdim=True) / part.shape[-1] ** 0.5).clamp_min(EPSILON)
            parts.append(part / scale)
        shifts.append(shift.expand_as(part))
        scales.append(scale.expand_as(part))
    return Scaled(x=torch.cat(parts, -1), shift=torch.cat(shifts, -1), scale=torch.cat(scales, -1))


def require_possible(kind: Kind, ends: Ends) -> None:
    """Refuse what cannot be undone.

    Raises:
        UnknownName, RefusedMethod.
    """
    if kind not in KINDS:
        raise unknown("normaliser", kind, KINDS)
    if kind == "input_norm" and not (ends.transcodes and len(ends.reads) == len(ends.writes) == 1):
        raise RefusedMethod("normalise='input_norm' is for a transcoder from one site to one site.")
    if kind == "input_norm" and ends.d_in != ends.d_out:
        raise RefusedMethod(f"normalise='input_norm' needs one width; this reads {ends.d_in} and writes {ends.d_out}.")
    if kind in ("token_norm", "layer_norm") and ends.transcodes:
        raise RefusedMethod(
            f"normalise={kind!r} scales every row by its own norm, and the norm of what a transcoder has to write is "
            "not known when it is used. Take 'mean_square' or 'mean_norm'."
        )
