"""The model's own read-out, applied where the model does not apply it: to an early stream, to one token, to a write.

    lens_l(x) = head(project(pool(LN_final(x))))

Two readings exist, and both call the user's own modules:

* `read_whole`: a whole stream `[row token d_model]` goes through norm, pooling and head exactly as the last one does.
  After the last block it is the model's answer.
* `read_tokens`: vectors `[row d_model]`, each read *as if every token that the read-out needs were this one*. What
  that means for each kind of read-out: CLS alone: head(LN(x)). Mean, maximum, or both of the patches: the same, since
  pooling equal vectors gives the vector back. CLS beside the mean (DINOv2) or beside a distillation token (DeiT): the
  vector stands in both places. Attention pooling (SigLIP): attention over equal values gives the value, so it is
  head(MLP(W_O W_V LN(x))). A zero-shot head gives cosines with its texts, times the logit scale.

Statistics of the last norm are those of what is read (`scale=None`: recomputed per layer), or given: the final
stream's own (`final_scale`). Frozen statistics make the lens linear in the stream, so that parts add up; recomputed
ones ask what the model would answer, and amplify what is small. Biases of norm and head take part in both.

Source: methods.md 3.3 (nostalgebraist's logit lens; Vilas et al. 2023, class embedding space **A**).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechvis import block as plain
from mechvis.axes import Residual
from mechvis.errors import BadData, ShapeMismatch
from mechvis.models.parts import TowerParts
from mechvis.norms import gain_and_bias, statistics

_AT_ONCE = 2**24
"""Numbers in the largest array of one reading (64 MB as float32): more tokens are read in pieces."""


def read_tokens(
    model: Any, vectors: Float[Tensor, "row d_model"], *, scale: Float[Tensor, "row 1"] | None = None
) -> Float[Tensor, "row class"]:
    """What the model would answer if all that it reads were one vector, for each of several.

    Args:
        model: a wrapped image tower.
        vectors: from any layer and token: a stream, or a write of attention or MLP.
        scale: what the last norm divides by, per vector; None: the vector's own.

    Returns:
        Logits; the embedding of a model without a head.

    Raises:
        ShapeMismatch: not `[row d_model]`, or one scale per vector is missing.
        BadData: a text tower.

    Example:
        >>> read_tokens(model, run.cache["blocks.2.hook_resid_post"][:, 0]).shape              # doctest: +SKIP
    """
    parts = _image_parts(model)
    if vectors.ndim != 2 or vectors.shape[1] != parts.d_model:
        raise ShapeMismatch(f"a lens reads vectors [row {parts.d_model}] of this model, got {list(vectors.shape)}.")
    if scale is not None and scale.shape != (len(vectors), 1):
        raise ShapeMismatch(f"{len(vectors)} vectors need a scale [{len(vectors)} 1], got {list(scale.shape)}.")
    length = _stand_ins(parts)
    step = max(1, _AT_ONCE // (length * parts.d_model))
    found = []
    for start in range(0, len(vectors), step):
        x, part = vectors[start : start + step, None], None if scale is None else scale[start : start + step, None]
        if parts.norm != "pooled":
            x = _normalised(parts.ln_final, x, part)
        x = _pooled(parts, x.expand(-1, length, -1))
        if parts.norm == "pooled":
            x = _normalised(parts.ln_final, x[:, None], part)[:, 0]
        found.append(_answer(parts, x))
    return torch.cat(found) if len(found) != 1 else found[0]


def read_whole(
    model: Any, stream: Residual, *, scale: Float[Tensor, "row scales 1"] | None = None
) -> Float[Tensor, "row class"]:
    """The model's read-out of a whole stream, as of the last one; after the last block it is the model's answer.

    Args:
        model: a wrapped image tower.
        stream: all tokens, of any layer.
        scale: what the last norm divides by, from :func:`final_scale`; None: the stream's own.

    Raises:
        ShapeMismatch: not `[row token d_model]`.
        BadData: a text tower.

    Example:
        >>> read_whole(model, run.cache["blocks.2.hook_resid_post"]).shape                     # doctest: +SKIP
    """
    parts = _image_parts(model)
    if stream.ndim != 3 or stream.shape[2] != parts.d_model:
        raise ShapeMismatch(f"expected a stream [row token {parts.d_model}], got {list(stream.shape)}.")
    x = stream if parts.reads is None else stream[:, list(parts.reads)]
    if parts.norm == "pooled":
        return _answer(parts, _normalised(parts.ln_final, _pooled(parts, x)[:, None], scale)[:, 0])
    if scale is not None and parts.reads is not None:
        scale = scale[:, list(parts.reads)]
    return _answer(parts, _pooled(parts, _normalised(parts.ln_final, x, scale)))


def final_scale(model: Any, stream: Residual) -> Float[Tensor, "row scales 1"]:
    """What the last norm divides the final stream by: per token; per image `[row 1 1]` where it acts on the mean."""
    parts = _image_parts(model)
    if parts.norm == "pooled":
        x = stream if parts.reads is None else stream[:, list(parts.reads)]
        stream = _pooled(parts, x)[:, None]
    return statistics(parts.ln_final, stream)[1]


def cosines(head: Any, logits: Float[Tensor, "*row class"]) -> Float[Tensor, "*row class"]:
    """Cosines with the texts of a zero-shot head, from its logits."""
    bare = logits if head.bias is None else logits - head.bias.to(logits)
    return bare / head.scale.to(logits)


def what_is_read(model: Any) -> str:
    """In words: what this model's read-out takes, and so what a lens on a single token means.

    Example:
        >>> what_is_read(model)                                                                # doctest: +SKIP
        'LayerNorm, then token 0 (cls), then the head'
    """
    parts = _image_parts(model)
    norm = "no norm" if not hasattr(parts.ln_final, "eps") else type(parts.ln_final).__name__
    if parts.reads is None:
        tokens = "attention pooling over the tokens" if parts.pooling is not None else "a pooling over the tokens"
    else:
        names = (*parts.prefix, "patch")
        named = [f"{i} ({names[min(i, len(parts.prefix))]})" for i in parts.reads]
        tokens = f"token {named[0]}" if len(named) == 1 else f"tokens {', '.join(named)} side by side"
    order = [tokens, norm] if parts.norm in ("read", "pooled") else [norm, tokens]
    ends = ["the projection"] * (parts.project is not None) + ["the head"] * (parts.head is not None)
    single = parts.reads is not None and len(parts.reads) == 1
    alone = "" if single else "; a single token is read as if all of them were this one"
    return ", then ".join([*order, *ends]) + alone


def _image_parts(model: Any) -> TowerParts:
    parts = getattr(model, "parts", None)
    if parts is None:
        raise BadData(
            f"a lens needs a wrapped image tower, got {type(model).__name__}. For CLIP: clip.classifier(texts), or "
            "texts= where it is taken."
        )
    if parts.modality != "image" or callable(parts.reads):
        raise BadData("lenses read image towers; this tower reads text.")
    return parts


def _stand_ins(parts: TowerParts) -> int:
    """How many copies of a vector the read-out needs to see."""
    if parts.pooling is not None:
        return parts.n_tokens  # its keys may have places
    return len(parts.reads) if parts.reads is not None else len(parts.prefix) + 1


def _normalised(norm: nn.Module, x: Tensor, scale: Tensor | None) -> Tensor:
    return norm(x) if scale is None else gain_and_bias(norm, statistics(norm, x)[0] / scale)


def _pooled(parts: TowerParts, tokens: Tensor) -> Tensor:
    return parts.pool(tokens if parts.pooling is None else plain.latents(parts.pooling, tokens))


def _answer(parts: TowerParts, pooled: Tensor) -> Tensor:
    x = pooled if parts.project is None else parts.project(pooled)
    return x if parts.head is None else parts.head(x)
