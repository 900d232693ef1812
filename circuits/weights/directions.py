"""Singular directions of what writes to the stream: what a head (or MLP) reads, what it writes for it, how strongly.

    W = sum_k gain_k  read_k^T write_k,        W = W_V W_O of a head, W_O of a head, or W_out of an MLP

The left singular vectors are read, the right ones are written, the singular values are gains (SITH, methods.md 2.7
**N**). Data-free: what the directions *are* is asked of images (:func:`circuits.weights.read_as_images`) and of classes
or texts (:func:`circuits.weights.read_as_words`).

For W_V W_O the norm's gain is folded into the reading side by default (2.7 **X**: unfolded directions are distorted by
it). With `final=True` the last norm's centring and gain are folded into the writing side too, as SITH does it before
its decomposition; the written directions then live behind that gain, and only a head's direct effect is meant.

The sign of a pair is arbitrary (`-read, -write` is the same), so both signs are to be explained. Here the largest entry
of the written direction is positive, so that two runs agree. Directions of nearly equal gain are not single ones: any
rotation of them fits as well.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.weights.exact import block_of, head_of, require_ov
from circuits.weights.folding import at_least_single, fold
from circuits.weights.ov_qk import ov
from mechvis.errors import BadData, NotFinite, OutOfRange, RefusedMethod, unknown

SOURCES = ("ov", "o", "mlp")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Directions:
    """Singular directions of one head or MLP, strongest first. Made by :func:`directions`."""

    of: Literal["ov", "o", "mlp"]
    """W_V W_O, W_O, or the MLP's W_out."""
    layer: int
    """Block."""
    head: int | None
    """Head; None for an MLP."""
    gains: Float[Tensor, " direction"] = field()
    """Singular values."""
    shares: Float[Tensor, " direction"] = field()
    """Squared singular values as shares of the sum of all of them."""
    reads: Float[Tensor, "direction d_read"] = field()
    """Unit vectors that are read: of the stream (`ov`), of z (`o`), of the neurons (`mlp`)."""
    writes: Float[Tensor, "direction d_model"] = field()
    """Unit vectors that are written for them: of the stream, or of what lies behind the last norm's gain (`final`)."""
    folded: bool
    """`ov`: directions that are read are of the centred and divided stream before the norm's gain; False: behind it."""
    final: bool
    """Directions that are written are taken behind the last norm's gain."""

    @property
    def name(self) -> str:
        """`L1H2`, or `L1MLP`."""
        return f"L{self.layer}MLP" if self.head is None else f"L{self.layer}H{self.head}"

    def __len__(self) -> int:
        return len(self.gains)

    def __repr__(self) -> str:
        some = ", ".join(f"{gain:.3g} ({share:.0%})" for gain, share in zip(self.gains[:4], self.shares, strict=False))
        more = " ..." if len(self) > 4 else ""
        return f"Directions({self.name} {self.of}, {len(self)} directions, gains {some}{more})"


def directions(
    model: Any,
    layer: int,
    head: int | None = None,
    *,
    of: Literal["ov", "o", "mlp"] | None = None,
    top: int | None = None,
    folded: bool = True,
    final: bool = False,
) -> Directions:
    """Singular directions of a head's W_V W_O (or W_O), or of an MLP's W_out.

    Args:
        model: a wrapped tower.
        layer: block; negative counts from the end.
        head: head; None for the MLP.
        of: `ov` (default with a head), `o`, or `mlp` (default without).
        top: keep so many; all by default. The shares stay those among all.
        folded: see :class:`Directions`; says nothing about `o` and `mlp`, which read no norm's output.
        final: see :class:`Directions`.

    Returns:
        Directions: in float32 at least; decomposed in float64.

    Raises:
        UnknownName: another source.
        BadData: a head of the MLP, or a head's matrix without a head.
        OutOfRange: no such layer or head, or `top` below 1.
        RefusedMethod: the matrix is not what the head or MLP does.
        NotFinite: NaN or Inf in the weights.

    Example:
        >>> directions(mechvis.load("scenes-vit"), 3, 1, top=3)                                    # doctest: +SKIP
        Directions(L3H1 ov, 3 directions, gains 2.51 (41%), ...
    """
    of = of or ("mlp" if head is None else "ov")
    if of not in SOURCES:
        raise unknown("source of directions", of, SOURCES)
    if (of == "mlp") != (head is None):
        raise BadData(f"of={of!r} with head={head}: an MLP has no heads, and {SOURCES[:2]} are of one head.")
    if top is not None and top < 1:
        raise OutOfRange(f"top must be at least 1, got {top}.")
    block = block_of(model, layer)
    left, right = _factors(model, layer, head, of, folded)
    if final:
        right = right @ fold(model.parts.ln_final, torch.eye(right.shape[1]).to(right))
    if not (torch.isfinite(right).all() and (left is None or torch.isfinite(left).all())):
        raise NotFinite(f"NaN or Inf in the weights of layer {layer} ({of}).")
    u, s, v = _svd(left, right)
    sign = v.gather(0, v.abs().argmax(0, keepdim=True)).sign()
    squares = s.square()
    kept = slice(0, top)
    dtype = right.dtype
    return Directions(
        of=of,
        layer=layer % len(model.parts.blocks),
        head=None if head is None else head_of(block.attn, head),
        gains=s[kept].to(dtype),
        shares=(squares / squares.sum().clamp(min=1e-300))[kept].to(dtype),
        reads=(u * sign).T[kept].to(dtype).contiguous(),
        writes=(v * sign).T[kept].to(dtype).contiguous(),
        folded=folded,
        final=final,
    )


def _factors(model: Any, layer: int, head: int | None, of: str, folded: bool) -> tuple[Tensor | None, Tensor]:
    """A (None for a matrix of its own) and B, whose product is decomposed."""
    if of == "ov":
        circuit = ov(model, layer, head, folded=folded)
        return circuit.A, circuit.B
    if of == "o":
        block = require_ov(model, layer)
        return None, at_least_single(model.blocks[layer].attn.W_O)[head_of(block.attn, head)]
    if not block_of(model, layer).linear_writes:
        raise RefusedMethod(
            f"{model.parts.family}, layer {layer}: a norm lies between the MLP and the stream, so the stream is no sum "
            "of what its neurons write. Look at effects instead (mechvis.sweep)."
        )
    return None, at_least_single(model.blocks[layer].mlp.W_out)


def _svd(left: Tensor | None, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U `[d_read direction]`, gains, V `[d_model direction]`, in double precision."""
    if left is None:
        u, s, vh = torch.linalg.svd(right.double(), full_matrices=False)
        return u, s, vh.T
    from transformer_lens import FactoredMatrix

    return FactoredMatrix(left.double(), right.double()).svd()
