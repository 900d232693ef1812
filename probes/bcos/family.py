"""The student as a `HookedViT`: where a B-cos network fits the parts, and where it does not.

A B-cos product is not linear, and the parts want the product that heads (and neurons) go through to be. So it is taken
apart: `y |y|^(B-1)` after a linear product, of `x / |x|^((B-1)/B)`. The first factor is the norm before the product
(`after` of the attention, `mlp_norm`), the second stands where LayerScale stands (`scale1`, `scale2`). Hence

* `hook_z` and `mlp.hook_post` hold inputs divided by a power of their length; `hook_mix` and `hook_mid` the plain ones;
* heads add up to the product, not to the write (`linear_writes=False`): direct decompositions of the stream refuse this
  family with a reason. Runs, captures, edits, restarts and sweeps work as with any other;
* queries, keys and values are no linear maps of the stream: `W_Q`, `W_K`, `W_V` are the unit rows, which say what a
  unit looks for and not what it answers.

Inside `explaining` the wrapped student has constant factors too, so with `run(..., grad=True)` gradient times value at
`hook_embed` or any `hook_resid_*` sums, over tokens, to the logit.
"""

from typing import Any

from einops import rearrange
from torch import Tensor

from mechvis.models.parts import AttentionParts, BlockParts, TowerParts
from probes.bcos.student import BcosBlock, BcosViT
from probes.bcos.units import BcosLinear


def bcos_parts(model: BcosViT) -> TowerParts:
    """The map: pass it as `mechvis.models.load.wrap(student, family=bcos_parts)`.

    Example:
        >>> mechvis.models.load.wrap(student, family=bcos_parts)                               # doctest: +SKIP
    """
    shape = model.shape
    return TowerParts(
        family="B-cos ViT",
        embed=lambda pixels: model.tokens(model.six(pixels)),
        blocks=tuple(_block(block, shape.n_heads, shape.d_head, shape.d_mlp) for block in model.blocks),
        d_model=shape.d_model,
        ln_final=model.norm,
        reads=(0,) if model.reads == "cls" else None,
        norm="tokens",
        pool=(lambda tokens: tokens[:, 0])
        if model.reads == "cls"
        else (lambda tokens: tokens[:, len(shape.prefix) :].mean(1)),
        head=model.head,
        prefix=shape.prefix,
        image_size=shape.image,
        patch_size=shape.patch,
        n_tokens=shape.n_tokens,
        reference=model,
    )


def wrap_student(model: BcosViT, teacher: Any, *, title: str = "") -> Any:
    """The student wrapped, with the teacher's preprocessing and class names.

    Example:
        >>> wrap_student(convert(teacher), teacher)                                            # doctest: +SKIP
    """
    from dataclasses import replace

    from mechvis.models.load import wrap

    names = teacher.parts.class_names

    def family(module: BcosViT) -> TowerParts:
        return replace(bcos_parts(module), class_names=names if len(names) == module.shape.n_classes else ())

    return wrap(model, family=family, preprocess=teacher.preprocess, title=title or f"B-cos {teacher.title}")


def _block(block: BcosBlock, n_heads: int, d_head: int, d_mlp: int) -> BlockParts:
    attention = block.attention

    def heads_in(unit: BcosLinear) -> Tensor:
        return rearrange(unit.matrix if unit.b == 1 else unit.rows, "(h e) d -> h d e", h=n_heads)

    attn = AttentionParts(
        n_heads=n_heads,
        d_head=d_head,
        q=attention.q,
        kv=lambda x: (attention.k(x), attention.v(x)),
        after=attention.o_proj.before,
        out=attention.o_proj.product,
        out_weight=lambda: rearrange(attention.o_proj.matrix, "d (h e) -> h e d", h=n_heads),
        out_bias=lambda: None,
        in_weights=lambda: tuple(heads_in(unit) for unit in (attention.q_proj, attention.k_proj, attention.v_proj)),
        in_biases=lambda: (None, None, None),
        scale=attention.scaling,
        fused=lambda: False,
    )
    return BlockParts(
        ln1=block.norm1,
        attn=attn,
        scale1=attention.o_proj.after,
        ln2=block.norm2,
        mlp_in=block.fc1,
        act=block.act,
        mlp_norm=block.fc2.before,
        mlp_out=block.fc2.product,
        mlp_out_weight=lambda: block.fc2.matrix.T,
        mlp_out_bias=lambda: None,
        d_mlp=d_mlp,
        scale2=block.fc2.after,
        linear_writes=False,
    )
