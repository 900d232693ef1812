"""BEiT: relative position bias per layer or shared, absolute positions or none, LayerScale or none."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mechvis.models.parts import TowerParts
from mechvis.models.transformers.common import block_aliases, labels, pair, processor
from mechvis.models.transformers.vit import NATIVE, blocks_of

Window = tuple[int, int]


def beit(model: nn.Module) -> TowerParts:
    """BEiT: `BeitModel` and `BeitForImageClassification`.

    The upstream takes images of any size: absolute positions and the tables of the relative position bias are
    interpolated without being told to. Mean pooling takes the mean of the patches first and the norm afterwards.
    """
    base = getattr(model, "beit", model)
    embeddings, config, shared = base.embeddings, base.config, base.shared_position_bias
    size = pair(embeddings.patch_embeddings.image_size)
    patch = pair(embeddings.patch_embeddings.patch_size)
    grid = (size[0] // patch[0], size[1] // patch[1])
    blocks = blocks_of(base, lambda layer: _fields(layer, shared))
    pooler, head = base.pooler, getattr(model, "classifier", None)
    mean = config.use_mean_pooling
    if mean:
        ln_final = nn.Identity() if pooler is None else pooler.layernorm
    else:
        ln_final = base.layernorm

    def layout(pixels: tuple[int, int]) -> tuple[Window, Tensor | None]:
        window = (pixels[0] // patch[0], pixels[1] // patch[1])
        return window, None if shared is None else shared(window)

    def reference(pixels: Tensor) -> Tensor:
        output = model(pixels)
        if head is not None:
            return output.logits
        if pooler is not None:
            return output.pooler_output
        tokens = output.last_hidden_state
        return tokens[:, 1:].mean(1) if mean else tokens[:, 0]

    path = "" if base is model else "beit."
    norm_path = f"{path}pooler.layernorm" if mean else f"{path}layernorm"
    return TowerParts(
        family="Hugging Face BEiT",
        embed=embeddings,
        blocks=blocks,
        d_model=config.hidden_size,
        ln_final=ln_final,
        reads=None if mean else (0,),
        norm="pooled" if mean else "tokens",
        pool=(lambda tokens: tokens[:, 1:].mean(1)) if mean else (lambda tokens: tokens[:, 0]),
        layout=layout if any(block.attn.bias is not None for block in blocks) else None,
        head=head,
        image_size=size,
        sizes="any",
        patch_size=patch,
        channels=config.num_channels,
        n_tokens=grid[0] * grid[1] + 1,
        class_names=labels(config) if head is not None else (),
        reference=reference,
        preprocess=processor("BeitImageProcessorPil", do_center_crop=False, resample=2),
        aliases={
            **block_aliases(f"{path}layers", len(blocks), _native(base)),
            f"{path}embeddings": "hook_embed",
            **({norm_path: "ln_final.hook_normalized"} if not isinstance(ln_final, nn.Identity) else {}),
            **({f"{path}pooler": "hook_pooled"} if pooler is not None else {}),
            **({"classifier": "hook_logits"} if head is not None else {}),
        },
    )


def _fields(layer: nn.Module, shared: nn.Module | None) -> dict[str, Any]:
    """LayerScale and position bias of a layer."""
    own = layer.relative_position_bias

    def bias(layout: tuple[Window, Tensor | None]) -> Tensor:
        window, of_all = layout
        if own is None:
            return of_all
        return own(window) if of_all is None else own(window) + of_all

    def scale(name: str) -> Callable[[Tensor], Tensor] | None:
        # Without LayerScale the upstream multiplies by a plain 1.0.
        return (lambda x: getattr(layer, name) * x) if isinstance(getattr(layer, name), Tensor) else None

    return {
        "bias": None if own is None and shared is None else bias,
        "scale1": scale("lambda_1"),
        "scale2": scale("lambda_2"),
    }


def _native(base: nn.Module) -> dict[str, str]:
    """Path inside a layer -> site; with LayerScale, which is no module, nothing upstream returns a block's writes."""
    scaled = any(isinstance(layer.lambda_1, Tensor) for layer in base.layers)
    return {path: site for path, site in NATIVE.items() if not (scaled and site in ("hook_attn_out", "hook_mlp_out"))}
