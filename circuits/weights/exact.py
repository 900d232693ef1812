"""When may two projections of a head be multiplied into one matrix? Checked on the live modules, never assumed.

`W_V W_O` is what a head writes per unit of what it reads only if values are an affine map of the normalised stream, and
only the output projection comes after the mixing. `W_Q W_K^T` is what scores are made of only if queries and keys are
affine maps and nothing acts on them before their product. Rotary positions and q-norm break the second (methods.md
0.2: *patterns are fine; folding W_Q W_K into one matrix is not*).

The weights are compared with the modules numerically, on random streams of two sizes: a norm of queries or values makes
another number of each of them, whatever it is called upstream.
"""

from typing import Any, Literal

import torch
from einops import einsum
from torch import Tensor

from mechvis.errors import BadData, OutOfRange, RefusedMethod
from mechvis.models.parts import AttentionParts, BlockParts

Projection = Literal["q", "k", "v"]


def block_of(model: Any, layer: int) -> BlockParts:
    """The parts of a block of a wrapped tower; negative layers count from the end.

    Raises:
        BadData: a model of two towers.
        OutOfRange: no such layer.

    Example:
        >>> block_of(mechvis.load("scenes-vit"), -1).attn.n_heads                                  # doctest: +SKIP
        4
    """
    blocks = model_of_one_tower(model).parts.blocks
    if not isinstance(layer, int) or isinstance(layer, bool) or not -len(blocks) <= layer < len(blocks):
        raise OutOfRange(f"layer {layer!r}: this model has layers 0 to {len(blocks) - 1}.")
    return blocks[layer]


def head_of(attn: AttentionParts, head: int) -> int:
    """A head's index, checked.

    Raises:
        OutOfRange: no such head.
    """
    if not isinstance(head, int) or isinstance(head, bool) or not 0 <= head < attn.n_heads:
        raise OutOfRange(f"head {head!r}: this layer has heads 0 to {attn.n_heads - 1}.")
    return head


def model_of_one_tower(model: Any) -> Any:
    """The model, unless it has two towers.

    Raises:
        BadData: says which towers there are.
    """
    if hasattr(model, "vision") and hasattr(model, "text"):
        raise BadData("this model has two towers, each with its own heads: pass clip.vision or clip.text.")
    return model


def chosen_layers(model: Any, layers: Any) -> list[int]:
    """Layers as sorted indices; None means all.

    Raises:
        OutOfRange: no such layer.
        BadData: none is left.
    """
    n = len(model_of_one_tower(model).parts.blocks)
    if layers is None:
        return list(range(n))
    found = []
    for layer in layers:
        block_of(model, layer)
        found.append(layer % n)
    if not found:
        raise BadData("layers=[] leaves no layer to look at; leave it out for all.")
    return sorted(set(found))


def deviation(attn: AttentionParts, which: Projection) -> float:
    """How far a projection is from `x W + b` with the weights it names: largest difference, relative to its values.

    Zero up to rounding for a linear layer, of the order of one where a norm acts on the queries, keys or values.
    """
    weight, bias = attn.in_weights()["qkv".index(which)], attn.in_biases()["qkv".index(which)]
    noise = torch.randn(1, 8, weight.shape[1], generator=torch.Generator().manual_seed(0))
    x = torch.cat([noise, 5 * noise], dim=1).to(weight)
    with torch.no_grad():
        seen = attn.q(x) if which == "q" else attn.kv(x)[which == "v"]
        expected = einsum(x, weight, "row token d, head d e -> row token head e")
        expected = expected if bias is None else expected + bias
        size = float(expected.abs().max())
        return float((seen - expected).abs().max()) / size if size else float(seen.abs().max())


def allowed(like: Tensor) -> float:
    """Largest relative difference that rounding explains in a type."""
    return min(100 * torch.finfo(like.dtype).eps ** 0.75, 0.05)


def require_ov(model: Any, layer: int) -> BlockParts:
    """The block, if `W_V W_O` is what its heads do.

    Raises:
        RefusedMethod: says what comes between values and stream.
    """
    block, family = block_of(model, layer), model.parts.family
    if block.attn.after is not None:
        raise RefusedMethod(
            f"{family}, layer {layer}: something acts on the mixed values before the output projection (a norm, a gain "
            "per head), so W_V W_O is not what a head does. Look at hook_result, or at effects (mechvis.sweep)."
        )
    if not block.linear_writes:
        raise RefusedMethod(
            f"{family}, layer {layer}: a norm lies between the heads and the stream, so the stream is no sum of what "
            "they write and W_V W_O is not what a head does. Look at effects instead (mechvis.sweep)."
        )
    _require_affine(block.attn, "v", "values", "W_V W_O", family, layer)
    return block


def require_qk(model: Any, layer: int) -> BlockParts:
    """The block, if `W_Q W_K^T` is what its scores are made of.

    Raises:
        RefusedMethod: rotary positions, or a norm on queries or keys.
    """
    block, family = block_of(model, layer), model.parts.family
    if block.attn.rotate is not None:
        raise RefusedMethod(
            f"{family}, layer {layer}: queries and keys are turned by their positions (rotary), another product for "
            "every pair of tokens. Patterns are fine (hook_pattern, circuits.weights.head_roles); folding W_Q W_K into "
            "one matrix is not."
        )
    for which, what in (("q", "queries"), ("k", "keys")):
        _require_affine(block.attn, which, what, "W_Q W_K^T", family, layer)
    return block


def _require_affine(attn: AttentionParts, which: Projection, what: str, product: str, family: str, layer: int) -> None:
    found = deviation(attn, which)
    if not found <= allowed(attn.in_weights()["qkv".index(which)]):
        raise RefusedMethod(
            f"{family}, layer {layer}: {what} are not W x + b of the weights (they differ by {found:.2g} of their size "
            f"on random streams: a norm on {what}?), so {product} is not what the head computes. Patterns are fine; "
            "folding the weights into one matrix is not."
        )
