"""What the maps of timm models share: MLPs, names of modules, images and their preprocessing.

timm is imported inside functions only. Everything that decides numbers is read from the live modules.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mechvis.errors import BadImages, UnsupportedModel
from mechvis.models.parts import BlockParts
from mechvis.models.transformers.common import linear_bias, linear_weight, pair


def unsupported(model: nn.Module, path: str, module: nn.Module, why: str) -> UnsupportedModel:
    """An error that names the module which could not be placed."""
    return UnsupportedModel(
        f"{type(model).__name__}: {path} is a {type(module).__name__}, {why}; it could not be placed."
    )


def is_none(module: nn.Module | None) -> bool:
    """timm's two ways of leaving a module out."""
    return module is None or isinstance(module, nn.Identity)


# blocks


def mlp(model: nn.Module, path: str, module: nn.Module) -> dict[str, Any]:
    """Fields of `BlockParts` for an MLP, gated or not."""
    from timm.layers import GluMlp, Mlp, SwiGLU

    if isinstance(module, SwiGLU):

        def mlp_in(x: Tensor) -> tuple[Tensor, Tensor]:
            return module.fc1_g(x), module.fc1_x(x)

    elif isinstance(module, GluMlp):

        def mlp_in(x: Tensor) -> tuple[Tensor, Tensor]:
            first, second = module.fc1(x).chunk(2, dim=-1)
            return (second, first) if module.gate_last else (first, second)

    elif isinstance(module, Mlp):
        mlp_in = module.fc1
    else:
        raise unsupported(model, path, module, "not one of Mlp, GluMlp, SwiGLU")
    return {
        "mlp_in": mlp_in,
        "act": module.act,
        "gated": isinstance(module, (SwiGLU, GluMlp)),
        "mlp_norm": None if is_none(getattr(module, "norm", None)) else module.norm,
        "mlp_out": module.fc2,
        "mlp_out_weight": lambda: linear_weight(module.fc2).T,
        "mlp_out_bias": lambda: linear_bias(module.fc2),
        "d_mlp": linear_weight(module.fc2).shape[1],
    }


def block_names(at: str, layer: nn.Module, parts: BlockParts) -> dict[str, str]:
    """Native module path -> site for one block, whose path is `at`."""
    names = {"": "hook_resid_post", "drop_path1": "hook_attn_out", "drop_path2": "hook_mlp_out"}
    if parts.linear_writes:
        names |= {"norm1": "ln1.hook_normalized", "norm2": "ln2.hook_normalized"}
    else:
        names |= {"norm1": "hook_attn_out", "norm2": "hook_mlp_out"}
    if parts.scale1 is None:
        names |= {"attn": "hook_attn_out", "attn.proj": "hook_attn_out"}
    if parts.scale2 is None:
        names |= {"mlp": "hook_mlp_out", "mlp.fc2": "hook_mlp_out"}
    if not is_none(getattr(layer, "ls1", None)):
        names |= {"ls1": "hook_attn_out", "ls2": "hook_mlp_out"}
    if parts.attn.after is not None:
        names["attn.norm"] = "attn.hook_z"
    names |= {f"mlp.{name}": f"mlp.{hook}" for name, hook in mlp_names(layer.mlp, parts).items()}
    return {f"{at}{'.' + name if name else ''}": f"{at}.{hook}" for name, hook in names.items()}


def mlp_names(module: nn.Module, parts: BlockParts) -> dict[str, str]:
    """Native path inside an MLP -> hook of `mlp`."""
    names = {"norm": "hook_post"} if parts.mlp_norm is not None else {}
    if hasattr(module, "fc1_g"):
        return names | {"fc1_g": "hook_pre", "fc1_x": "hook_pre_linear"}
    return names if parts.gated else names | {"fc1": "hook_pre"}


# images


def geometry(model: nn.Module) -> dict[str, Any]:
    """Fields of `TowerParts` that say what images a model takes."""
    from timm.layers import PatchEmbed

    embed = model.patch_embed
    size, grid = pair(embed.img_size), pair(embed.grid_size)
    plain = isinstance(embed, PatchEmbed)
    # A hybrid's patch is a cell of what its convolutional stem makes.
    patch = pair(embed.patch_size) if plain else (size[0] // grid[0], size[1] // grid[1])
    return {
        "image_size": size,
        "patch_size": patch,
        "sizes": "any" if plain and getattr(model, "dynamic_img_size", False) else "one",
        "channels": model.in_chans,
    }


def check_whole_patches(pixels: Tensor, geometry: dict[str, Any]) -> None:
    """Refuse images of a free size that are not a whole number of patches: upstream would assert, or pad them and so
    change the patch grid."""
    size, patch = tuple(pixels.shape[2:]), geometry["patch_size"]
    if geometry["sizes"] == "any" and any(side % cell for side, cell in zip(size, patch, strict=True)):
        raise BadImages(
            f"images of {size[0]} x {size[1]} pixels are not a whole number of patches of {patch[0]} x {patch[1]}."
        )


def preprocess(
    model: nn.Module, *, source: str = "pretrained_cfg of the module"
) -> Callable[[tuple[int, int]], Any] | None:
    """(height, width) -> `Preprocess` of timm's own transform for evaluation, as the model's `pretrained_cfg` describes
    it; None where the model has no such description."""
    if not getattr(model, "pretrained_cfg", None) or model.in_chans != 3:
        return None

    def make(size: tuple[int, int]) -> Any:
        from timm.data import create_transform, resolve_model_data_config

        from mechvis.data.transforms import of_transform

        config = resolve_model_data_config(model)

        def chain(height: int, width: int) -> Any:
            return create_transform(**{**config, "input_size": (3, height, width)}, is_training=False)

        return of_transform(chain(*size), source=source, remake=chain)

    return make


def class_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the logits, where the published description has them (timm's ImageNet models have none)."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names") or ()
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    return tuple(map(str, names)) if len(names) == model.num_classes else ()
