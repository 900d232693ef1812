"""Running a model from the stream after its embedding, with some tokens changed or gone.

`without` drops tokens for good: they are taken out of the sequence before block 0, after positions were added, so what
is left keeps its place. `without_keys` is its plain twin for models that read a prefix token: all tokens stay, but no
query may read a dropped one.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis import block as plain
from mechvis import edits
from mechvis.errors import RefusedMethod, ShapeMismatch

Stream = Float[Tensor, "row token d_model"]


def from_embedding(model: Any, stream: Stream, parts: Any) -> Float[Tensor, "row class"]:
    """The output for a given stream before block 0, however many tokens it has (all, for models whose attention knows
    the image's layout)."""
    model._check_mode()
    layout = None if parts.layout is None else parts.layout(parts.image_size)
    for one in parts.blocks:
        stream = plain.plain(one, stream, layout)
    return model._read_out(stream, stream, None)


def without(model: Any, stream: Stream, kept: Bool[Tensor, "row patch"], parts: Any) -> Float[Tensor, "row class"]:
    """The output with only the kept patches in the sequence; every row keeps equally many.

    Raises:
        ShapeMismatch: rows keep different numbers.
        RefusedMethod: attention of this model depends on the image's layout (rotary positions, position bias).
    """
    counts = kept.sum(1)
    if not bool((counts == counts[0]).all()):
        raise ShapeMismatch("rows of a batch keep different numbers of patches; batch those that keep equally many.")
    if parts.layout is not None:
        return without_keys(model, stream, kept, parts)
    if parts.reads is None and not int(counts[0]):
        raise RefusedMethod("this model pools its patches, and none is left to read. Use the operator mean_token.")
    keep = F.pad(kept, (len(parts.prefix), 0), value=True)
    rows, places = keep.nonzero(as_tuple=True)
    return from_embedding(model, stream[rows, places].unflatten(0, (len(stream), -1)), parts)


def without_keys(model: Any, stream: Stream, kept: Bool[Tensor, "row patch"], parts: Any) -> Float[Tensor, "row class"]:
    """The plain twin: all tokens stay in the sequence, and no query reads a dropped one.

    Raises:
        RefusedMethod: the read-out pools patches, so that dropped tokens would count.
    """
    if parts.reads is None or any(place >= len(parts.prefix) for place in parts.reads):
        raise RefusedMethod(
            "this model reads its patches at the end, and its attention depends on the image's layout: a token cannot "
            "be dropped from it. Use the operator mean_token."
        )
    gone = ~F.pad(kept, (len(parts.prefix), 0), value=True)
    n_edited = len(parts.blocks) if bool(gone.any()) else 0  # an edit that changes nothing would warn
    sites = [f"blocks.{layer}.attn.hook_attn_scores" for layer in range(n_edited)]

    def unread(scores: Tensor) -> Tensor:
        return scores.masked_fill(gone[:, None, None], torch.finfo(scores.dtype).min)

    asked = [edits.call(site, unread) for site in sites]
    return _run(model, stream, asked)


def _run(model: Any, stream: Stream, asked: list) -> Tensor:
    # The stream before block 0 replaces what the embedding of anything gives.
    first = edits.call("hook_embed", lambda own: stream)
    like = torch.zeros(len(stream), model.parts.channels, *model.parts.image_size, device=stream.device)
    return model.run(like.to(stream.dtype), [first, *asked]).output
