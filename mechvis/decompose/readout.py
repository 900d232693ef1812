"""The read-out of one batch as a linear map, frozen at these images: what every write to the stream adds to the output.

The last norm divides by a number that depends on the image. With that number held at its value, everything from the
stream to the pooled vector is linear in the stream, so an output is exactly a sum over the stream's parts (CLIP
decomposition, methods.md 2.1 **C**; **P**). For a part `c [image token d_model]`

    output(c) = sum_s  centred( sum_t  mix[s, t] c_t )  @  matrix[s]

* `mix [image slot token]` says how tokens are pooled, divided by what the norm divides by. CLS: one slot, one token.
  Mean: one slot, all tokens. Class token and mean side by side: two slots. Norm after the mean: the same divisor for
  all tokens. Attention pooling, read through: one slot per pooling head, its pattern.
* `matrix [slot d_model d_out]` is the gain of the norm, value and output weights of the pooling, projection and head.
* `centred` takes the mean over d_model off, unless the norm is an RMS norm.

Heads of a zero-shot classifier divide by the length of the embedding: that length is frozen as well.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from mechvis.axes import Residual
from mechvis.errors import RefusedMethod, UnsupportedModel, unknown
from mechvis.norms import gain, is_rms, statistics

Of = Literal["output", "pooled", "embedding", "logits"]
OF = ("output", "pooled", "embedding", "logits")


@dataclass(frozen=True, kw_only=True, eq=False)
class Affine:
    """`x @ weight + bias`, read off a function."""

    weight: Float[Tensor, "d_in d_out"]
    """The linear part."""
    bias: Float[Tensor, " d_out"]
    """What comes out of zeros."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadOut:
    """From the pooled vector to the output, the same for all images but for a length."""

    of: str
    """`pooled`, `embedding` or `logits`."""
    slots: Float[Tensor, "slot token_read"]
    """How `pool` mixes the tokens that it gets (latents, where there is attention pooling)."""
    weight: Float[Tensor, "d_pooled d_out"]
    """Projection and head, linear parts."""
    biases: dict[str, Float[Tensor, " d_out"]]
    """`project bias`, `head bias`, as they arrive at the output; without those that are zero."""
    unit_length: bool
    """Does the head divide by the length of the embedding (zero-shot)?"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Frozen:
    """The linear map of one batch; see the module."""

    mix: Float[Tensor, "image slot token"]
    """Pooling over tokens, divided by the norm's divisor."""
    matrix: Float[Tensor, "slot d_model d_out"]
    """From the mixed stream to the output."""
    length: Float[Tensor, "image 1"] | None
    """What the head divides by."""
    constant: Float[Tensor, "image d_out"]
    """What the norm's bias (and, through attention pooling, the values' bias) adds."""

    def mixed(self, x: Float[Tensor, "image token *rest"]) -> Float[Tensor, "image slot *rest"]:
        """Any tensor with tokens, pooled."""
        flat = einsum(self.mix, x.flatten(2), "image slot token, image token d -> image slot d")
        return flat.unflatten(2, x.shape[2:])

    def outward(self, mixed: Float[Tensor, "image slot d_model"]) -> Float[Tensor, "image d_out"]:
        """A mixed part of the stream to the output."""
        return self.scaled(einsum(mixed, self.matrix, "image slot d, slot d out -> image out"))

    def scaled(self, x: Float[Tensor, "image *rest d_out"]) -> Float[Tensor, "image *rest d_out"]:
        """Divided by the embedding's length where the head does so."""
        return x if self.length is None else x / self.length.view(-1, *[1] * (x.ndim - 1))


def read_out(model: Any, of: Of = "output") -> ReadOut:
    """The fixed part of a model's read-out.

    Args:
        model: a wrapped model.
        of: `output` (logits if there is a head, else the embedding, else the pooled vector), or one of the three.

    Raises:
        UnknownName: no such read-out.
        UnsupportedModel: the model has no head (no projection), or its blocks' writes do not add up.
        RefusedMethod: the read-out is not linear (a pooler with tanh), or the weights are in half precision.

    Example:
        >>> read_out(model, "logits").weight.shape                                     # doctest: +SKIP
        torch.Size([128, 8])
    """
    parts = model.parts
    if of not in OF:
        raise unknown("read-out", of, OF)
    if any(not block.linear_writes for block in parts.blocks):
        raise UnsupportedModel(
            f"{parts.family}: a norm after the sub-layers, so the stream is no sum of what heads and MLPs write."
        )
    if model.dtype in (torch.float16, torch.bfloat16):
        raise RefusedMethod(
            f"the model computes in {model.dtype}, in which the parts do not add up to the whole (1e-2). "
            "Convert it first: model.to(torch.float32)."
        )
    if of == "output":
        of = "logits" if parts.head is not None else "embedding" if parts.project is not None else "pooled"
    if of == "logits" and parts.head is None:
        raise UnsupportedModel("this model has no head: no logits. For CLIP use clip.classifier(class_names).")
    if of == "embedding" and parts.project is None:
        raise UnsupportedModel("this model has no projection: use of='pooled'.")
    read = len(parts.reads) if isinstance(parts.reads, tuple) else 1 if callable(parts.reads) else parts.n_tokens
    # Another image size has other tokens: a pooling of all of them is asked again for each batch (`mixing`).
    width = parts.pooling.d_out if parts.pooling is not None else parts.d_model
    n_in = parts.pooling.n_latents if parts.pooling is not None else read
    slots = mixing(model, n_in, width)
    like = {"dtype": model.dtype, "device": model.device}
    weight = torch.eye(len(slots) * width, **like)
    biases: dict[str, Tensor] = {}
    unit = False
    if of in ("embedding", "logits") and parts.project is not None:
        found = affine(parts.project, len(weight), "projection", **like)
        weight, biases["project bias"] = weight @ found.weight, found.bias
    if of == "logits":
        head = parts.head
        unit = hasattr(head, "prompts")
        if unit:
            onward = head.prompts.to(**like).T * head.scale.to(**like)
            bias = (
                weight.new_zeros(onward.shape[1]) if head.bias is None else head.bias.to(**like).expand(onward.shape[1])
            )
            found = Affine(weight=onward, bias=bias)
        else:
            found = affine(head, weight.shape[1], "head", **like)
        weight = weight @ found.weight
        biases = {name: bias @ found.weight for name, bias in biases.items()} | {"head bias": found.bias}
    biases = {name: bias for name, bias in biases.items() if bias.abs().max() > 0}
    return ReadOut(of=of, slots=slots, weight=weight, biases=biases, unit_length=unit)


@torch.no_grad()
def affine(function: Callable[[Tensor], Tensor], width: int, what: str, **like: Any) -> Affine:
    """Weight and bias of a function that is affine.

    Raises:
        RefusedMethod: it is not.
    """
    eye = torch.eye(width, **like)
    bias = function(torch.zeros(1, width, **like))[0]
    weight = function(eye) - bias
    probe = torch.randn(4, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(**like) * 3
    seen, expected = function(probe), probe @ weight + bias
    if not torch.allclose(seen, expected, atol=1e-4 * float(seen.abs().max() + 1), rtol=1e-4):
        raise RefusedMethod(
            f"the {what} of this model is not linear (a tanh or a norm in it), so its output is no sum of parts. "
            "Decompose what it reads: of='pooled'."
        )
    return Affine(weight=weight, bias=bias)


@torch.no_grad()
def mixing(model: Any, n_tokens: int, width: int) -> Float[Tensor, "slot token"]:
    """How `pool` mixes tokens: its output is some mixtures of them side by side.

    Raises:
        RefusedMethod: it does something else.
    """
    like = {"dtype": model.dtype, "device": model.device}
    probe = torch.randn(width, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(**like)
    basis = torch.eye(n_tokens, **like)[:, :, None] * probe
    pooled = model.parts.pool(basis)
    if pooled.shape[-1] % width == 0:
        pooled = rearrange(pooled, "token (slot d) -> slot token d", d=width)
        weights = pooled @ probe / (probe @ probe)
        if torch.allclose(weights[..., None] * probe, pooled, atol=1e-5 * float(pooled.abs().max())):
            return weights
    raise RefusedMethod("this model's pooling is no fixed mixture of tokens, so its output is no sum of their parts.")


@torch.no_grad()
def freeze(model: Any, found: ReadOut, stream: Residual, inputs: Tensor, length: Tensor | None) -> Frozen:
    """The linear map at these images, without attention pooling.

    Args:
        model: the wrapped model.
        found: from :func:`read_out`.
        stream: after the last block `[image token d_model]`.
        inputs: pixels (token ids of a text tower).
        length: of each embedding `[image 1]`, if the head divides by it.
    """
    parts, norm = model.parts, model.parts.ln_final
    n_image, n_token, width = stream.shape
    if isinstance(parts.reads, tuple):
        slots = found.slots.new_zeros(len(found.slots), n_token)
        slots[:, list(parts.reads)] = found.slots
        slots = slots.expand(n_image, -1, -1)
    elif callable(parts.reads):
        slots = found.slots.new_zeros(n_image, len(found.slots), n_token)
        slots[torch.arange(n_image), :, parts.reads(inputs)] = found.slots[:, 0]
    else:
        fits = found.slots.shape[1] == n_token
        slots = (found.slots if fits else mixing(model, n_token, width)).expand(n_image, -1, -1)
    if parts.norm == "pooled":
        if len(found.slots) != 1:
            raise RefusedMethod("the last norm of this model spans several poolings; its parts are not told apart.")
        pooled = einsum(slots, stream, "image slot token, image token d -> image slot d")
        divisor = statistics(norm, pooled)[1]
        mix = slots / divisor
    else:
        mix = slots / rearrange(statistics(norm, stream)[1], "image token 1 -> image 1 token")
    weight = rearrange(found.weight, "(slot d) out -> slot d out", d=width)
    bias = getattr(norm, "bias", None)
    share = slots.sum(-1) if parts.norm != "pooled" else torch.ones_like(slots[..., 0])
    constant = (
        found.weight.new_zeros(n_image, found.weight.shape[1])
        if bias is None
        else einsum(share, bias, weight, "image slot, d, slot d out -> image out")
    )
    return Frozen(mix=mix, matrix=centre(norm, weight), length=length, constant=constant)


def centre(norm: Any, weight: Float[Tensor, "slot d_model d_out"]) -> Float[Tensor, "slot d_model d_out"]:
    """The gain of a norm, and its taking off the mean, put into the matrix that follows."""
    weight = rearrange(gain(norm, rearrange(weight, "slot d out -> slot out d")), "slot out d -> slot d out")
    return weight if is_rms(norm) or not hasattr(norm, "eps") else weight - weight.mean(1, keepdim=True)


@torch.no_grad()
def freeze_through(model: Any, found: ReadOut, stream: Residual, pattern: Tensor, length: Tensor | None) -> Frozen:
    """The linear map at these images through an attention pooling, its pattern held fixed: one slot per pooling head.

    Args:
        model: the wrapped model.
        found: from :func:`read_out`.
        stream: after the last block `[image token d_model]`.
        pattern: of the pooling `[image head latent token]` (or `patch`, where it reads patches only).
        length: of each embedding `[image 1]`, if the head divides by it.

    Raises:
        RefusedMethod: several latents side by side, or a norm inside the pooling.
    """
    parts, norm, sites = model.parts, model.parts.ln_final, model.pool.attn
    if len(found.slots) != 1 or parts.norm != "tokens" or parts.pooling.attn.after is not None:
        raise RefusedMethod("this model's attention pooling cannot be read through; use pooling='heads'.")
    pattern = einsum(found.slots[0], pattern, "latent, image head latent key -> image head key")
    missing = stream.shape[1] - pattern.shape[-1]
    pattern = torch.nn.functional.pad(pattern, (missing, 0))
    share = pattern.sum(-1)
    value = einsum(sites.W_V, sites.W_O, found.weight, "head d e, head e p, p out -> head d out")
    constant = found.weight.new_zeros(len(stream), found.weight.shape[1])
    if getattr(norm, "bias", None) is not None:
        constant = constant + einsum(share, norm.bias, value, "image head, d, head d out -> image out")
    if sites.b_V is not None:
        written = einsum(sites.b_V, sites.W_O, found.weight, "head e, head e p, p out -> head out")
        constant = constant + share @ written
    mix = pattern / rearrange(statistics(norm, stream)[1], "image token 1 -> image 1 token")
    return Frozen(mix=mix, matrix=centre(norm, value), length=length, constant=constant)
