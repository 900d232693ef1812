"""How the output reads the stream after the last block, once the last norm's scale is taken from the image at hand.

A second-order effect ends in this map. It exists where the read-out is a weighted sum of tokens (CLS, mean, both side
by side), a norm, and linear maps:

1. Pooling weights are read off by sending one token at a time through the model's own pooling, and checked on random
   tokens.
2. Projection and head are read off by sending unit vectors through the model's own modules, and checked for linearity.
3. With the norm's scale frozen, a write `x` at token `t` changes the output by
   `sum_slot weight[slot, t] / scale[t] * (x - mean(x)) @ matrix[slot]`.

Everything else is refused: attention pooling has keys of its own, a tanh has no fixed directions.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import RefusedMethod, unknown
from mechvis.models.parts import TowerParts
from mechvis.norms import gain, is_rms

Of = Literal["output", "logits", "embedding", "pooled"]
OF = ("output", "logits", "embedding", "pooled")


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadOut:
    """The output as a linear function of the stream, up to the scales of one image."""

    weights: Float[Tensor, "slot token"]
    """Weight of each token of the stream in each pooled slot (CLS and mean side by side are two slots)."""
    matrix: Float[Tensor, "slot d_model d_out"]
    """Gain of the last norm, projection and head."""
    centred: bool
    """Does the last norm take the mean off?"""
    scaled: Literal["stream", "read", "pooled"]
    """Which tokens have a scale: all, those that are read, or the pooled vector alone."""
    reads: tuple[int, ...]
    """Tokens of the stream that are read."""
    of: str
    """What comes out: `logits`, `embedding` or `pooled`."""
    length: str | None
    """Site whose length every effect is divided by; None: it is not."""

    def weigh(self, scale: Float[Tensor, "image scaled 1"]) -> Float[Tensor, "image slot token"]:
        """Pooling weights divided by the last norm's scale of these images."""
        scale = scale[..., 0]
        if self.scaled == "pooled":
            return self.weights / scale[:, None]
        if self.scaled == "stream":
            return self.weights / scale[:, None]
        found = self.weights.expand(len(scale), -1, -1).clone()
        found[:, :, list(self.reads)] = found[:, :, list(self.reads)] / scale[:, None]
        return found

    def centre(self, write: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """What the last norm divides, of a write."""
        return write - write.mean(-1, keepdim=True) if self.centred else write


def read_out_of(model: Any, of: Of = "output", *, unit: bool | None = None) -> ReadOut:
    """The linear read-out of a wrapped model.

    Args:
        model: a wrapped image tower.
        of: `logits`, `embedding`, `pooled` (after the last norm, before the projection), or `output`: the last of these
            that the model has.
        unit: divide by the length of the image's embedding, so that effects add up to parts of a unit vector. By
            default (None) for embeddings, and for the logits of a zero-shot head, whose cosines are made that way.

    Raises:
        UnknownName: no such output.
        RefusedMethod: the read-out is not a weighted sum of tokens followed by linear maps; says which part is not.
    """
    if of not in OF:
        raise unknown("output", of, OF)
    parts: TowerParts = model.parts
    if parts.modality != "image":
        raise RefusedMethod("second-order effects are read at fixed tokens; a text tower reads where its text ends.")
    if model.dtype not in (torch.float32, torch.float64):
        raise RefusedMethod(
            f"the model is in {model.dtype}, in which sums of parts do not come near the whole. Convert it: "
            "model.to(torch.float32)."
        )
    if parts.pooling is not None:
        raise RefusedMethod(
            f"{parts.family} reads its tokens through attention pooling: the way from a neuron through a head to the "
            "output then goes through a second attention. Second-order effects are defined for CLS and mean pooling."
        )
    if not all(block.linear_writes for block in parts.blocks):
        raise RefusedMethod(
            f"{parts.family} normalises what a block writes, so the stream is no sum of heads; there is no direct "
            "effect of a head to take the second order of."
        )
    if any(block.attn.after is not None for block in parts.blocks):
        raise RefusedMethod(
            f"{parts.family} normalises the mixed values inside attention: a head's write is not linear in its values."
        )
    if of == "output":
        of = "logits" if parts.head is not None else "embedding" if parts.project is not None else "pooled"
    if of == "logits" and parts.head is None:
        raise RefusedMethod(f"{parts.family} has no head, so no logits. Use of='embedding' or 'pooled'.")
    if of == "embedding" and parts.project is None:
        raise RefusedMethod(f"{parts.family} has no projection. Use of='pooled'" + (" or 'logits'." * bool(parts.head)))
    zero_shot = of == "logits" and hasattr(parts.head, "prompts")
    unit = (of == "embedding" or zero_shot) if unit is None else unit
    if zero_shot and not unit:
        raise RefusedMethod("a zero-shot head takes cosines: without unit=True its logits are not linear.")
    length = None
    if unit:
        length = "hook_pooled" if parts.project is None or of == "pooled" else "hook_embedding"
    with torch.no_grad():
        reads = parts.reads if isinstance(parts.reads, tuple) else tuple(range(parts.n_tokens))
        picked = _pool_weights(parts, len(reads), model)
        weights = picked.new_zeros(len(picked), parts.n_tokens)
        weights[:, list(reads)] = picked
        matrix = _matrix(parts, of, model)
        matrix = matrix.reshape(len(picked), parts.d_model, -1)
        if parts.norm == "pooled" and len(picked) > 1:
            raise RefusedMethod(f"{parts.family} normalises several pooled tokens together.")
        folded = gain(parts.ln_final, torch.eye(parts.d_model, device=model.device, dtype=model.dtype)) @ matrix
    return ReadOut(
        weights=weights,
        matrix=folded.detach(),
        centred=hasattr(parts.ln_final, "eps") and not is_rms(parts.ln_final),
        scaled={"tokens": "stream", "read": "read", "pooled": "pooled"}[parts.norm],
        reads=reads,
        of=of,
        length=length,
    )


def _pool_weights(parts: TowerParts, n: int, model: Any) -> Float[Tensor, "slot read"]:
    """Weights of the read tokens, from the model's own pooling."""
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(parts.d_model, generator=generator).to(model.device, model.dtype)
    one_each = torch.zeros(n, n, parts.d_model, device=model.device, dtype=model.dtype)
    one_each[range(n), range(n)] = probe
    found = parts.pool(one_each)
    refused = RefusedMethod(f"{parts.family}'s pooling is not a weighted sum of tokens.")
    if found.ndim != 2 or found.shape[1] % parts.d_model:
        raise refused
    slots = found.unflatten(1, (-1, parts.d_model))
    weights = (slots @ probe / probe.square().sum()).T
    tokens = torch.randn(3, n, parts.d_model, generator=generator).to(model.device, model.dtype)
    expected = torch.einsum("st,rtd->rsd", weights, tokens).flatten(1)
    if not _close(parts.pool(tokens), expected):
        raise refused
    return weights


def _matrix(parts: TowerParts, of: str, model: Any) -> Float[Tensor, "d_pooled d_out"]:
    """What comes after pooling (and norm), as a matrix."""
    width = parts.d_pooled or parts.d_model * (len(parts.reads) if isinstance(parts.reads, tuple) else 1)

    def read(x: Tensor) -> Tensor:
        if of == "pooled":
            return x
        x = x if parts.project is None else parts.project(x)
        if of == "embedding":
            return x
        return (
            x @ parts.head.prompts.to(x).T * parts.head.scale.to(x) if hasattr(parts.head, "prompts") else parts.head(x)
        )

    eye = torch.eye(width, device=model.device, dtype=model.dtype)
    bias = read(torch.zeros_like(eye[:1]))
    matrix = read(eye) - bias
    probe = torch.randn(4, width, generator=torch.Generator().manual_seed(1)).to(eye)
    if not _close(read(3 * probe), 3 * probe @ matrix + bias):
        raise RefusedMethod(
            f"{parts.family}: what comes after pooling is not linear (a pooler with tanh?). Use of='pooled'."
        )
    return matrix


def _close(seen: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-9 if seen.dtype == torch.float64 else 1e-3
    return seen.shape == expected.shape and bool((seen - expected).abs().max() <= tolerance * expected.abs().max())
