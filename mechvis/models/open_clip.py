"""Models of open_clip: maps of its two transformer towers, of a timm trunk in their place, and how a name is read.

1. A vision tower is open_clip's own `VisionTransformer` (with a class token, a mean, or CoCa's attention pooling before
   the projection) or a `TimmModel`: the map of the timm trunk, with what open_clip puts behind it.
2. A text tower is a `TextTransformer`; inside a `CLIP` its parts lie on the model itself.
3. A block is one of two: around `torch.nn.MultiheadAttention`, or around open_clip's own `Attention` with norms and
   gains in many places. What is there is read off the live modules.

open_clip takes images of one size, and says so with an error; so do we.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mechvis.data.preprocess import Preprocess
from mechvis.errors import BadData, MechvisWarning, MissingPackage, UnsupportedModel, unknown
from mechvis.models.parts import AttentionParts, BlockParts, PoolingParts, TowerParts, TwoTowers
from mechvis.models.torch_attention import attention, packed
from mechvis.models.transformers.common import linear_bias, linear_weight, pair

PAIRS = ("CLIP", "CustomTextCLIP", "CoCa")
VISION = ("VisionTransformer", "TimmModel", "ModifiedResNet")
TEXT = ("TextTransformer", "HFTextEncoder")


def _class(module: Any) -> str:
    """Name of the class of open_clip that a module has or inherits from; empty for anything else."""
    found = (cls.__name__ for cls in type(module).__mro__ if cls.__module__.startswith("open_clip."))
    return next(found, "")


def family_of(module: nn.Module) -> Callable[[nn.Module], TowerParts] | None:
    """The map for a tower of open_clip, or for a model of which only the vision tower can be mapped; None if it is not
    one of these."""
    if _class(module) in TEXT:
        return text
    return vision if _class(module) in (*VISION, *PAIRS) else None


def two_towers(model: nn.Module) -> TwoTowers | None:
    """Both towers of a `CLIP` or `CustomTextCLIP`; None for anything else. A model whose text tower cannot be mapped
    (Hugging Face text towers, CoCa's) is announced by a warning, and its vision tower is mapped alone."""
    if _class(model) not in PAIRS:
        return None
    try:
        text(model)
    except UnsupportedModel as reason:
        import warnings

        message = f"{type(model).__name__}: only the vision tower is wrapped, as a model of its own. {reason}"
        warnings.warn(message, MechvisWarning, stacklevel=6)
        return None
    return TwoTowers(
        vision=vision,
        text=text,
        logit_scale=lambda: model.logit_scale.exp().squeeze(),
        logit_bias=lambda: None if model.logit_bias is None else model.logit_bias.squeeze(),
        loss="softmax" if model.logit_bias is None else "sigmoid",
        encode_ids=encode_ids,
    )


def encode_ids(tokenizer: Any, texts: list[str], longest: int) -> Tensor:
    """Token ids `[row token]` of a Hugging Face tokenizer, padded to `longest` as open_clip's own do it."""
    settings = {"padding": "max_length", "truncation": True, "max_length": longest, "return_tensors": "pt"}
    return tokenizer(texts, **settings)["input_ids"]


# the vision tower


def vision(model: nn.Module) -> TowerParts:
    """The vision tower of a model of two, or one alone."""
    visual = getattr(model, "visual", model)
    if _class(visual) == "TimmModel":
        return _timm(visual, "" if visual is model else "visual.")
    if _class(visual) != "VisionTransformer":
        raise UnsupportedModel(f"the vision tower {type(visual).__name__} is no transformer: it has no heads to map.")
    if visual.conv1.weight.dtype != visual.positional_embedding.dtype:
        raise UnsupportedModel(
            f"this model mixes types ({visual.conv1.weight.dtype} products, {visual.positional_embedding.dtype} else). "
            "Make it with precision='fp32' or 'pure_bf16', or convert it with .to(dtype)."
        )
    path = "" if visual is model else "visual."
    blocks, aliases = _blocks(visual.transformer, path + "transformer", causal=False)
    ln_final, norm = visual.ln_post, "pooled" if visual.final_ln_after_pool else "tokens"
    if visual.attn_pool is None:
        read_out = {"reads": (0,) if visual.pool_type == "tok" else None, "pool": _pool(visual)}
        aliases[path + "ln_post"] = "ln_final.hook_normalized"
    else:
        ln_final, norm, read_out = visual.attn_pool.ln_k, "tokens", _attention_pooling(visual)
        aliases |= {path + "attn_pool.ln_k": "ln_final.hook_normalized", path + "attn_pool": "pool.hook_attn_out"}
    return TowerParts(
        family="open_clip vision",
        embed=visual._embeds,
        blocks=blocks,
        d_model=visual.transformer.width,
        ln_final=ln_final,
        norm=norm,
        **read_out,
        project=None if visual.proj is None else lambda pooled: pooled @ visual.proj,
        image_size=pair(visual.image_size),
        patch_size=pair(visual.patch_size),
        channels=visual.conv1.in_channels,
        n_tokens=visual.positional_embedding.shape[0],
        reference=lambda pixels: _first(visual(pixels)),
        preprocess=partial(preprocess, visual),
        aliases={path + "ln_pre": "hook_embed", **aliases, **({path[:-1]: _output_site(visual)} if path else {})},
    )


def _first(output: Any) -> Tensor:
    """What is compared with texts, of a tower that returns its tokens as well."""
    return output[0] if isinstance(output, tuple) else output


def _output_site(visual: nn.Module) -> str:
    return "hook_pooled" if visual.proj is None else "hook_embedding"


def _pool(visual: nn.Module) -> Callable[[Tensor], Tensor]:
    """Tokens that are read (or latents) to one vector per image."""
    if visual.pool_type == "avg":
        return lambda tokens: tokens[:, 1:].mean(dim=1)
    if visual.pool_type == "tok":
        return lambda tokens: tokens[:, 0]
    raise UnsupportedModel(
        f"open_clip VisionTransformer with pool_type {visual.pool_type!r} returns all its tokens, not one vector."
    )


def _attention_pooling(visual: nn.Module) -> dict[str, Any]:
    """CoCa's read-out: latents attend to the tokens (`ln_k` is the norm of these), `ln_post` norms the latents, and the
    first of them (or the mean of the others) is the image."""
    pooler = visual.attn_pool
    if visual.attn_pool_contrastive is not None:
        raise UnsupportedModel(
            f"open_clip VisionTransformer with two attention poolers (attn_pool_type {visual.attn_pool_type!r}), which "
            "open_clip itself marks as unfinished."
        )
    pool = _pool(visual)
    n_latents, width = pooler.query.shape
    return {
        "reads": None,
        "pooling": PoolingParts(
            attn=attention(pooler.attn),
            latents=lambda rows: pooler.ln_q(pooler.query).expand(rows, -1, -1),
            n_latents=n_latents,
            d_out=width,
        ),
        "pool": lambda latents: pool(visual.ln_post(latents)),
        "d_pooled": width,
    }


def _timm(visual: nn.Module, path: str) -> TowerParts:
    """A timm trunk and what open_clip puts behind it, as one projection; a trunk's own head is one too."""
    from mechvis.models import timm

    family = timm.family_of(visual.trunk)
    if family is None:
        raise UnsupportedModel(f"the timm trunk {type(visual.trunk).__name__} is no vision transformer that is known.")
    if hasattr(visual.head, "pool"):
        raise UnsupportedModel(f"open_clip's pooling {type(visual.head.pool).__name__} over a timm trunk has no map.")
    parts = family(visual.trunk)
    steps = [step for step in (parts.project, parts.head) if step is not None]
    last = {"hook_logits": "hook_embedding"} if parts.head is not None else {}
    aliases = {f"{path}trunk.{name}": last.get(site, site) for name, site in parts.aliases.items()}
    if len(visual.head):
        steps.append(visual.head)
        aliases = {name: site for name, site in aliases.items() if site not in ("hook_embedding", "hook_logits")}
        aliases[path + "head"] = "hook_embedding"

    def project(pooled: Tensor) -> Tensor:
        for step in steps:
            pooled = step(pooled)
        return pooled

    return replace(
        parts,
        family=f"open_clip vision, {parts.family}",
        project=project if steps else None,
        head=None,
        class_names=(),
        reference=visual,
        preprocess=partial(preprocess, visual),
        aliases=aliases,
    )


# the text tower


def text(model: nn.Module) -> TowerParts:
    """The text tower: of a `CLIP`, whose parts lie on the model itself, of a `CustomTextCLIP`, or one alone. Input:
    token ids `[row token]`; upstream wants them padded to the longest text, here shorter ones do as well.

    Raises:
        UnsupportedModel: a Hugging Face text tower, an appended class token (CoCa), a mask of padding, no pooling.
    """
    # In a CLIP everything is on the model; `pool_type` and `eos_id` have other names there.
    base = getattr(model, "text", model)
    inside = "" if base is model else "text."
    if _class(base) not in ("CLIP", "TextTransformer"):
        raise UnsupportedModel(f"the text tower {type(base).__name__} has no map; open_clip's TextTransformer has.")
    if getattr(base, "cls_emb", None) is not None:
        raise UnsupportedModel("a text tower with an appended class token (CoCa) masks by its padding: it has no map.")
    if getattr(base, "use_pad_mask", False):
        raise UnsupportedModel("a text tower with use_pad_mask attends by where its padding is: it has no map.")
    projection, embedding = base.text_projection, base.positional_embedding
    blocks, aliases = _blocks(base.transformer, inside + "transformer", causal=base.attn_mask is not None)
    aliases[inside + "ln_final"] = "ln_final.hook_normalized"
    project = projection
    if isinstance(projection, nn.Linear):
        aliases[inside + "text_projection"] = "hook_embedding"
    elif projection is not None:

        def project(pooled: Tensor) -> Tensor:
            return pooled @ base.text_projection

    def embed(ids: Tensor) -> Tensor:
        kind = base.transformer.get_cast_dtype()
        return base.token_embedding(ids).to(kind) + base.positional_embedding[: ids.shape[1]].to(kind)

    def example(generator: torch.Generator) -> Tensor:
        ids = torch.randint(1, base.vocab_size - 1, (2, len(embedding)), generator=generator)
        end = _end(base)
        ids[ids == end] = 0
        ids[:, len(embedding) // 2] = base.vocab_size - 1 if end is None else end
        return ids.to(embedding.device)

    return TowerParts(
        family="open_clip text",
        modality="text",
        embed=embed,
        blocks=blocks,
        d_model=base.transformer.width,
        ln_final=base.ln_final,
        reads=_reads(base),
        norm="tokens",
        pool=lambda tokens: tokens[:, 0],
        project=project,
        prefix=(),
        n_tokens=len(embedding),
        vocabulary=base.vocab_size,
        reference=lambda ids: base.encode_text(ids) if _class(base) == "CLIP" else _first(base(ids)),
        example=example,
        aliases=aliases,
    )


def _pool_type(base: nn.Module) -> str:
    return base.text_pool_type if _class(base) == "CLIP" else base.pool_type


def _end(base: nn.Module) -> int | None:
    """The end-of-text id, where the tower looks for one."""
    if _pool_type(base) != "eos":
        return None
    return base.text_eos_id if _class(base) == "CLIP" else base.eos_id


def _reads(base: nn.Module) -> Any:
    """Which token is the text, by the tower's pooling."""
    kind = _pool_type(base)
    if kind == "first":
        return (0,)
    if kind == "last":
        return lambda ids: torch.full((len(ids),), ids.shape[1] - 1, device=ids.device)
    if kind == "argmax":
        return lambda ids: ids.argmax(dim=-1)
    if kind == "eos":
        return lambda ids: (ids == _end(base)).int().argmax(dim=-1)
    raise UnsupportedModel(f"a text tower with pool_type {kind!r} returns all its tokens, not one vector.")


# blocks, which both towers share


def _blocks(transformer: nn.Module, path: str, *, causal: bool) -> tuple[tuple[BlockParts, ...], dict[str, str]]:
    """Blocks, and the sites that their modules stand for."""
    makers = {"ResidualAttentionBlock": _block, "CustomResidualAttentionBlock": _custom_block}
    blocks, aliases = [], {}
    for layer, module in enumerate(transformer.resblocks):
        if _class(module) not in makers:
            raise UnsupportedModel(f"{path}.resblocks.{layer} is a {type(module).__name__}, which has no map.")
        blocks.append(makers[_class(module)](module, causal))
        at = f"{path}.resblocks.{layer}"
        aliases[at] = f"blocks.{layer}.hook_resid_post"
        for name, site in _native(module).items():
            aliases[f"{at}.{name}"] = f"blocks.{layer}.{site}"
    return tuple(blocks), aliases


def _block(module: nn.Module, causal: bool) -> BlockParts:
    return BlockParts(
        attn=attention(module.attn, causal=causal),
        scale1=_unless_identity(module.ls_1),
        **_mlp_half(module),
    )


def _custom_block(module: nn.Module, causal: bool) -> BlockParts:
    """The block with open_clip's own attention: a norm may follow the attention (the write is then no sum of heads) and
    the activations of the MLP."""
    norm, scale = _unless_identity(module.ln_attn), _unless_identity(module.ls_1)
    scale1 = scale if norm is None else lambda write: module.ls_1(module.ln_attn(write))
    return BlockParts(
        attn=_attention(module.attn, causal),
        scale1=scale1,
        linear_writes=norm is None,
        mlp_norm=_unless_identity(module.mlp.ln),
        **_mlp_half(module),
    )


def _mlp_half(module: nn.Module) -> dict[str, Any]:
    mlp = module.mlp
    return {
        "ln1": module.ln_1,
        "ln2": module.ln_2,
        "mlp_in": mlp.c_fc,
        "act": mlp.gelu,
        "mlp_out": mlp.c_proj,
        "mlp_out_weight": lambda: linear_weight(mlp.c_proj).T,
        "mlp_out_bias": lambda: linear_bias(mlp.c_proj),
        "d_mlp": linear_weight(mlp.c_fc).shape[0],
        "scale2": _unless_identity(module.ls_2),
    }


def _unless_identity(module: nn.Module) -> nn.Module | None:
    return None if isinstance(module, nn.Identity) else module


def _native(module: nn.Module) -> dict[str, str]:
    """Path inside a block -> site inside a block."""
    inner = _unless_identity(getattr(module.mlp, "ln", nn.Identity()))
    native = {
        "ln_1": "ln1.hook_normalized",
        "ls_1": "hook_attn_out",
        "ln_2": "ln2.hook_normalized",
        "mlp.c_fc": "mlp.hook_pre",
        "mlp.gelu": "mlp.hook_post" if inner is None else "mlp.hook_mid",
        "ls_2": "hook_mlp_out",
    }
    if inner is not None:
        native["mlp.ln"] = "mlp.hook_post"
    if isinstance(module.ls_2, nn.Identity):
        native |= {"mlp": "hook_mlp_out", "mlp.c_proj": "hook_mlp_out"}
    if isinstance(module.ls_1, nn.Identity):
        norm = _unless_identity(getattr(module, "ln_attn", nn.Identity()))
        native["attn" if norm is None else "ln_attn"] = "hook_attn_out"
    return native


def _attention(module: nn.Module, causal: bool) -> AttentionParts:
    """open_clip's own `Attention`: norms on queries and keys, a gain per head, a norm before the output projection."""
    if module.logit_scale is not None:
        raise UnsupportedModel(
            "open_clip's scaled cosine attention (scaled_cosine_attn) has no map: in open_clip 3 it fails itself, on a "
            "product of four axes."
        )
    n_heads, linear = module.num_heads, module.out_proj

    def heads_first(norm: nn.Module) -> Callable[[Tensor], Tensor]:
        # Turned as upstream turns it, so that gradients of the norm's gain add up in its order.
        return lambda x: norm(x.transpose(1, 2)).transpose(1, 2)

    norms = {}
    if not isinstance(module.ln_q, nn.Identity):
        norms = {"after_q": heads_first(module.ln_q), "after_k": heads_first(module.ln_k)}

    def after(mixed: Tensor) -> Tensor:
        if module.head_scale is not None:
            mixed = (mixed.unflatten(-1, (n_heads, -1)) * module.head_scale.squeeze(-1)).flatten(-2)
        return module.ln_inner(mixed)

    plain = module.head_scale is None and isinstance(module.ln_inner, nn.Identity)
    return AttentionParts(
        n_heads=n_heads,
        d_head=module.head_dim,
        **packed(module, n_heads, **norms),
        after=None if plain else after,
        out=linear,
        out_weight=lambda: rearrange(linear_weight(linear), "d (h e) -> h e d", h=n_heads),
        out_bias=lambda: linear_bias(linear),
        scale=1 / math.sqrt(module.head_dim),
        fused=lambda: True,
        scale_queries=True,
        causal=causal,
    )


# names


def preprocess(visual: nn.Module, size: tuple[int, int]) -> Preprocess:
    """open_clip's own transform for evaluation, as it is noted on a vision tower; OpenAI's mean and standard deviation
    where nothing is noted (a tower that was not made by open_clip's factory)."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    from mechvis.data.transforms import of_transform

    noted = dict(getattr(visual, "preprocess_cfg", {}))

    def make(height: int, width: int) -> Any:
        return image_transform_v2(PreprocessCfg(**noted | {"size": (height, width)}), is_train=False)

    return of_transform(make(*size), source="open_clip" if noted else "default of open_clip", remake=make)


def read(name: str, *, image_size: int | tuple[int, int] | None = None) -> tuple[nn.Module, Preprocess, Any]:
    """Model, preprocessing and a function that makes the tokenizer, of a name: `ViT-B-32/laion2b_s34b_b79k`
    (architecture and tag), `ViT-B-32/<file>.safetensors`, `hf-hub:<id>` or `local-dir:<folder>`.

    Weights come from safetensors files only. For most tags open_clip finds one; where it would fall back on a pickled
    file (`.bin`, `.pt`, also old numpy archives), the name is refused before anything is read. open_clip's own warning
    that a tag was trained with QuickGELU and the architecture has GELU is passed on: take the architecture whose name
    ends in `-quickgelu` then. With `image_size` open_clip resamples the position embedding when it reads the weights.

    Raises:
        MissingPackage: open_clip is not installed.
        UnknownName: no such architecture, or no such tag of it.
        BadData: no weights named, or not as safetensors.
    """
    try:
        import open_clip
    except ImportError as error:
        raise MissingPackage("open_clip:<name> needs open_clip: pip install 'mechvis[open_clip]'") from error

    architecture, which, path = _place(open_clip, name)
    if Path(path).suffix != ".safetensors":
        raise BadData(
            f"open_clip:{name}: open_clip would read {Path(path).name}; weights are read as safetensors only. Load the "
            "model with open_clip yourself and pass it to mechvis.load, or save its weights as safetensors."
        )
    size = list(image_size) if isinstance(image_size, tuple) else image_size
    model = open_clip.create_model(architecture, pretrained=which, force_image_size=size, weights_only=True).eval()
    found = preprocess(model.visual, pair(model.visual.image_size))
    return model, found, partial(open_clip.get_tokenizer, architecture)


def _place(open_clip: Any, name: str) -> tuple[str, str | None, str]:
    """(architecture, tag or file, the file that open_clip would read) of a name; fetches the file."""
    from open_clip import factory

    kind, colon, rest = name.partition(":")
    if colon and kind == "local-dir":
        return name, None, str(factory._find_checkpoint_in_dir(Path(rest)) or Path(rest))
    architecture, _, which = (name, "", "") if colon and kind == "hf-hub" else name.partition("/")
    try:
        if colon and kind == "hf-hub":
            return name, None, factory.download_pretrained_from_hf(rest)
        if architecture not in open_clip.list_models():
            raise unknown("architecture of open_clip", architecture, open_clip.list_models())
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if not which:
            raise BadData(
                f"open_clip:{architecture} names no weights. Say open_clip:{architecture}/<tag or file.safetensors>; "
                f"tags are {', '.join(tags) or 'none'}. For random weights pass a module: "
                f"open_clip.create_model({architecture!r}).eval()."
            )
        if Path(which).suffix or Path(which).is_file():
            if not Path(which).is_file():
                raise BadData(f"open_clip:{name}: there is no file {which}.")
            return architecture, which, which
        if which not in tags:
            raise unknown(f"tag of open_clip's {architecture}", which, [*tags, "<file>.safetensors"])
        return architecture, which, factory.download_pretrained(open_clip.get_pretrained_cfg(architecture, which))
    except (OSError, RuntimeError) as error:
        raise BadData(f"open_clip:{name}: the weights cannot be fetched ({error}).") from error
