"""A wrapped ViT to a B-cos student of the same shape, weights taken over.

1. The teacher's weights are read through its parts: output weights as they act, queries, keys and values, and by
   sending unit vectors through what is a function (the MLP's first layer, the patch embedding, the head). So any
   family that fits can be converted, adapters included.
2. Biases and means are dropped: the pieces of a student have none. A gain of a LayerNorm stays as the gain of the norm
   without mean.
3. The patch embedding reads six channels: `E p = E/(2 std) (rgb) - E/(2 std) (1 - rgb)` up to a constant, which the
   special tokens take up.
4. Scales `s` (**X**, see :mod:`probes.bcos.units`): unit after unit, each is set so that its output has the root mean
   square that the teacher's has at the same place, on some images. Without images they are the lengths of the
   teacher's rows, times sqrt(d) for the missing cosine.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from mechvis.errors import UnsupportedModel
from probes.bcos.student import BcosViT, Shape
from probes.bcos.units import BcosLinear

_LINEAR = 1e-3
"""Largest relative error of the patch embedding, the first MLP layer or the head as linear maps."""


def convert(teacher: Any, images: Any = None, *, b: float = 2.0) -> BcosViT:
    """A B-cos student with the teacher's shape and weights (B-cosification, methods.md 11 **N**), not trained yet.

    Args:
        teacher: a wrapped pre-norm image classifier with absolute positions that reads its class token or the mean of
            its patches. Colours are what its preprocessing says; without one, mean and deviation 0.5 are taken.
        images: an `ImageSet` or pixels on which scales are set, at most 64 of them; None: without.
        b: exponent of the units; 1 makes them linear.

    Returns:
        BcosViT: on the teacher's device, of its type, in eval mode. The teacher is not changed.

    Raises:
        UnsupportedModel: the teacher has a part that a student lacks; says which.

    Example:
        >>> student = convert(mechvis.load("scenes-vit"), mechvis.data.scenes(n=64, seed=5))   # doctest: +SKIP
    """
    parts = teacher.parts
    _refuse(teacher)
    reads = "cls" if isinstance(parts.reads, tuple) else "mean"
    block = parts.blocks[0]
    preprocess = teacher.preprocess
    with torch.no_grad():
        head, _ = _matrix(parts.head, parts.d_model, teacher, "head")
        shape = Shape(
            image=parts.image_size,
            patch=parts.patch_size,
            d_model=parts.d_model,
            d_mlp=block.d_mlp,
            n_layers=len(parts.blocks),
            n_heads=block.attn.n_heads,
            d_head=block.attn.d_head,
            prefix=parts.prefix,
            n_classes=len(head),
            mean=(0.5,) * 3 if preprocess is None else tuple(preprocess.mean),
            std=(0.5,) * 3 if preprocess is None else tuple(preprocess.std),
            b=b,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            student = BcosViT(shape, reads=reads).to(teacher.device, teacher.dtype).eval()
        _take_over(student.head, head)
        _embedding(student, teacher)
        for own, other in zip(student.blocks, parts.blocks, strict=True):
            weights = [rearrange(w, "h d e -> (h e) d") for w in other.attn.in_weights()]
            units = (own.attention.q_proj, own.attention.k_proj, own.attention.v_proj)
            for unit, weight in zip(units, weights, strict=True):
                _take_over(unit, weight)
            write = rearrange(other.attn.out_weight(), "h e d -> d (h e)")
            _take_over(own.attention.o_proj, _scaled(other.scale1, write))
            _take_over(own.fc1, _matrix(other.mlp_in, parts.d_model, teacher, "first MLP layer")[0])
            _take_over(own.fc2, _scaled(other.scale2, other.mlp_out_weight().T))
            for norm, theirs in ((own.norm1, other.ln1), (own.norm2, other.ln2)):
                _gain(norm, theirs)
        _gain(student.norm, parts.ln_final)
        if images is not None:
            _set_scales(student, teacher, images)
    return student


def _take_over(unit: BcosLinear, weight: Tensor) -> None:
    unit.weight.copy_(weight)
    length = weight.norm(dim=-1)
    # The cosine of a random input with a row is about 1/sqrt(d).
    unit.log_scale.copy_((length.clamp(min=1e-6) * weight.shape[1] ** ((unit.b - 1) / 2)).log())


def _gain(norm: torch.nn.Module, theirs: torch.nn.Module) -> None:
    if getattr(theirs, "weight", None) is not None:
        norm.weight.copy_(theirs.weight)
    norm.eps = float(getattr(theirs, "eps", norm.eps) or norm.eps)


def _scaled(scale: Any, weight: Tensor) -> Tensor:
    """`[out in]` after LayerScale, which acts on outputs."""
    return weight if scale is None else scale(weight.T.clone()).T


def _matrix(function: Any, width: int, teacher: Any, what: str) -> tuple[Tensor, Tensor]:
    """A linear map and its constant, read off with unit vectors and checked on random ones."""
    eye = torch.eye(width, device=teacher.device, dtype=teacher.dtype)
    # The MLP's first layer takes tokens.
    constant = function(torch.zeros_like(eye[None, :1]))[0, 0]
    weight = (function(eye[None])[0] - constant).T
    drawn = torch.randn(1, 4, width, generator=torch.Generator().manual_seed(0)).to(eye)
    far = (function(drawn) - (drawn @ weight.T + constant)).abs().max() / weight.abs().max().clamp(min=1e-30)
    if not float(far) < _LINEAR:
        raise UnsupportedModel(f"{teacher.parts.family}: its {what} is not linear, so it has no B-cos counterpart.")
    return weight, constant


def _embedding(student: BcosViT, teacher: Any) -> None:
    """Patch embedding and special tokens, from the answers to single pixels."""
    parts, shape = teacher.parts, student.shape
    (height, width), n_prefix = shape.patch, len(shape.prefix)
    zero = torch.zeros(1, 3, *shape.image, device=teacher.device, dtype=teacher.dtype)
    nothing = parts.embed(zero)[0]
    columns = []
    for channel in range(3):
        single = zero.repeat(height * width, 1, 1, 1)
        single[:, channel, :height, :width] = torch.eye(height * width).to(zero).unflatten(1, (height, width))
        columns.append(parts.embed(single)[:, n_prefix] - nothing[n_prefix])
    weight = torch.cat(columns).T  # [d_model, channel height width]
    drawn = torch.randn(2, 3, *shape.image, generator=torch.Generator().manual_seed(0)).to(zero)
    patches = rearrange(drawn, "i c (h a) (w b) -> i (h w) (c a b)", a=height, b=width)
    expected = parts.embed(drawn)[:, n_prefix:] - nothing[n_prefix:]
    far = float((patches @ weight.T - expected).abs().max() / expected.abs().max())
    if not far < _LINEAR:
        raise UnsupportedModel(
            f"{parts.family}: what comes before the first block is not a linear patch embedding plus positions (a norm "
            "before the blocks, a convolutional stem?), so it has no B-cos counterpart here."
        )
    std = student.std.flatten().repeat_interleave(height * width)
    half = weight / (2 * std)
    _take_over(student.embed, torch.cat([half, -half], dim=1))
    offset = ((0.5 - student.mean.flatten()) / student.std.flatten()).repeat_interleave(height * width)
    special = nothing.clone()
    special[n_prefix:] += weight @ offset
    student.special.copy_(special)


def _set_scales(student: BcosViT, teacher: Any, images: Any) -> None:
    """Each unit's scale so that its outputs are as large as the teacher's there, from the first to the last."""
    layers = range(len(student.blocks))
    wanted = ["hook_embed", *(f"blocks.*.{s}" for s in ("attn.hook_q", "attn.hook_k", "attn.hook_v", "mlp.hook_pre"))]
    run = teacher.run(images[:64], capture=[*wanted, "blocks.*.hook_attn_out", "blocks.*.hook_mlp_out", "hook_logits"])
    pixels = images[:64].pixels_for(teacher.preprocess) if hasattr(images, "pixels_for") else images[:64]
    pixels = pixels.to(teacher.device, teacher.dtype)
    n_prefix, (height, width) = len(student.shape.prefix), student.shape.patch
    patches = rearrange(student.six(pixels), "i c (h a) (w b) -> i (h w) (c a b)", a=height, b=width)
    _match(student.embed, patches, run.cache["hook_embed"][:, n_prefix:] - student.special[n_prefix:])
    x = student.tokens(student.six(pixels))
    for layer in layers:
        block, at = student.blocks[layer], f"blocks.{layer}."
        normal, attention = block.norm1(x), block.attention
        for unit, site in ((attention.q_proj, "q"), (attention.k_proj, "k"), (attention.v_proj, "v")):
            _match(unit, normal, run.cache[f"{at}attn.hook_{site}"].flatten(2))
        q, k, v = (rearrange(t(normal), "r t h e -> r h t e") for t in (attention.q, attention.k, attention.v))
        mixed = rearrange((q @ k.transpose(-2, -1) * attention.scaling).softmax(-1) @ v, "r h t e -> r t (h e)")
        _match(attention.o_proj, mixed, run.cache[at + "hook_attn_out"])
        x = x + attention.o_proj(mixed)
        normal = block.norm2(x)
        _match(block.fc1, normal, run.cache[at + "mlp.hook_pre"])
        post = block.act(block.fc1(normal))
        _match(block.fc2, post, run.cache[at + "hook_mlp_out"])
        x = x + block.fc2(post)
    _match(student.head, student.pooled(x), run.logits)


def _match(unit: BcosLinear, x: Tensor, theirs: Tensor) -> None:
    """One factor for all rows of a unit: the rows keep their lengths' proportions."""
    ours = unit(x)
    centred = theirs - theirs.flatten(0, -2).mean(0)
    ratio = centred.square().mean().sqrt() / (ours - ours.flatten(0, -2).mean(0)).square().mean().sqrt().clamp(
        min=1e-12
    )
    unit.log_scale.add_(ratio.clamp(min=1e-6).log())


def _refuse(teacher: Any) -> None:
    """What a student lacks."""
    parts = teacher.parts
    why = None
    if parts.modality != "image":
        why = "it is a text tower"
    elif parts.head is None:
        why = "it has no head; for CLIP use clip.classifier(class_names) and a teacher without projection"
    elif parts.project is not None:
        why = "it projects the pooled token before its head"
    elif parts.pooling is not None:
        why = "it pools by attention"
    elif parts.norm != "tokens":
        why = "its last norm acts on the pooled vector"
    elif parts.layout is not None:
        why = "its attention depends on positions (rotary, or a position bias)"
    elif parts.channels != 3 or parts.image_size is None:
        why = "its inputs are no images of three channels"
    elif parts.reads is not None and parts.reads != (0,):
        why = "it reads more than its class token"
    elif any(block.gated or block.mlp_norm is not None or block.attn.after is not None for block in parts.blocks):
        why = "its blocks have gates or inner norms"
    elif any(not block.linear_writes for block in parts.blocks):
        why = "its blocks' writes are not linear (is it a student already?)"
    if why is None:
        tokens = torch.randn(2, parts.n_tokens, parts.d_model, generator=torch.Generator().manual_seed(0))
        tokens = tokens.to(teacher.device, teacher.dtype)
        read = tokens[:, :1] if parts.reads == (0,) else tokens
        ours = tokens[:, 0] if parts.reads == (0,) else tokens[:, len(parts.prefix) :].mean(1)
        if (pooled := parts.pool(read)).shape != ours.shape or not torch.allclose(pooled, ours, atol=1e-4):
            why = "it pools its tokens in another way than by the class token or the mean of the patches"
    if why:
        raise UnsupportedModel(f"{parts.family} cannot be converted to a B-cos student: {why}.")
