"""The two circuits of a head, as factored matrices: what it writes of what it reads, and what makes it look there.

    OV = W_V W_O        [d_model d_model], rank d_head: a token with direction u in it moves the reader by u OV
    QK = W_Q W_K^T      [d_model d_model], rank d_head: score = scale * x_query QK x_key (without biases)

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits" (**K**). Rows are vectors, as everywhere here
(`x W`). `model.blocks[l].attn.OV` and `.QK` are the same products without the checks and without folding; what is new
here: products that mean nothing are refused (:mod:`circuits.weights.exact`), and with `folded=True` the gain of the
norm before attention is part of every side that reads the stream (:mod:`circuits.weights.folding`). LayerScale is part
of W_O always.

Scores also have terms linear in the query's and the key's bias, and some families add a bias of relative positions
(BEiT): neither is in QK. :func:`biases` gives the former.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from circuits.weights.exact import head_of, require_ov, require_qk
from circuits.weights.folding import at_least_single, bias_behind, fold
from mechvis.models.parts import BlockParts


def ov(model: Any, layer: int, head: int | None = None, *, folded: bool = False) -> Any:
    """W_V W_O of one head, or of all heads of a layer.

    Args:
        model: a wrapped tower.
        layer: block; negative counts from the end.
        head: head; None for all, with a leading axis.
        folded: the reading side takes the stream before the norm's gain (centred, divided), not after it.

    Returns:
        A transformer_lens `FactoredMatrix` `[(head) d_model d_model]`, without graph.

    Raises:
        RefusedMethod: W_V W_O is not what the heads of this model do.
        OutOfRange: no such layer or head.

    Example:
        >>> ov(model, 1, 2, folded=True).svd()[1]                                                  # doctest: +SKIP
    """
    from transformer_lens import FactoredMatrix

    block = require_ov(model, layer)
    read = _reading(block, 2, folded)
    write = at_least_single(model.blocks[layer].attn.W_O).to(read)
    return FactoredMatrix(*_of_head(block, head, read, write))


def qk(model: Any, layer: int, head: int | None = None, *, folded: bool = False) -> Any:
    """W_Q W_K^T of one head, or of all heads of a layer; arguments and errors as for :func:`ov`.

    Both sides read the stream, so `folded=True` folds the gain into both. The factor on scores (`attn.scale`) is not in
    it.

    Raises:
        RefusedMethod: rotary positions, or a norm on queries or keys: there is no one matrix.

    Example:
        >>> qk(model, 1).shape                                                                     # doctest: +SKIP
        torch.Size([4, 128, 128])
    """
    from transformer_lens import FactoredMatrix

    block = require_qk(model, layer)
    query, key = _reading(block, 0, folded), _reading(block, 1, folded)
    return FactoredMatrix(*_of_head(block, head, query, key.transpose(-2, -1)))


def biases(
    model: Any, layer: int, *, folded: bool = False
) -> tuple[Float[Tensor, "head d_head"], Float[Tensor, "head d_head"], Float[Tensor, "head d_head"]]:
    """b_Q, b_K and b_V of a layer; with `folded=True`, what the norm's bias adds behind the weights is in them.

    Together with :func:`ov` and :func:`qk` they say everything: `(x W' / s + b')` is the query (key, value) of a token
    whose centred stream is x and whose scale is s.

    Example:
        >>> b_query, b_key, b_value = biases(model, 0, folded=True)                                # doctest: +SKIP
    """
    block = require_ov(model, layer)
    found = []
    for weight, bias in zip(block.attn.in_weights(), block.attn.in_biases(), strict=True):
        own = at_least_single(weight[:, 0]) * 0 if bias is None else at_least_single(bias)
        behind = bias_behind(block.ln1, weight) if folded else None
        found.append(own if behind is None else own + behind)
    return tuple(found)


def _reading(block: BlockParts, which: int, folded: bool) -> Float[Tensor, "head d_model d_head"]:
    """W_Q, W_K or W_V (`which` = 0, 1, 2)."""
    weight = block.attn.in_weights()[which]
    return fold(block.ln1, weight) if folded else at_least_single(weight)


def _of_head(block: BlockParts, head: int | None, *factors: Tensor) -> tuple[Tensor, ...]:
    return factors if head is None else tuple(factor[head_of(block.attn, head)] for factor in factors)
