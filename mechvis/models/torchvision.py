"""Vision transformers of torchvision: the map of `torchvision.models.VisionTransformer`, and how a name is read.

Also the shortest example of a family: blocks, what comes before them, what comes after them.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, cat, nn

from mechvis.data.preprocess import Preprocess
from mechvis.errors import BadData, MissingPackage, unknown
from mechvis.models.parts import BlockParts, TowerParts, TwoTowers
from mechvis.models.torch_attention import attention
from mechvis.models.transformers.common import linear_bias, linear_weight

NATIVE = {
    "": "hook_resid_post",
    "ln_1": "ln1.hook_normalized",
    "self_attention": "hook_attn_out",
    "ln_2": "ln2.hook_normalized",
    "mlp": "hook_mlp_out",
    "mlp.0": "mlp.hook_pre",
    "mlp.1": "mlp.hook_post",
    "mlp.3": "hook_mlp_out",
}


def family_of(module: nn.Module) -> Any:
    """The map for a torchvision model, by its class (sub-classes included); None if it is not one of these."""
    known = any(
        cls.__name__ == "VisionTransformer" and cls.__module__.startswith("torchvision.")
        for cls in type(module).__mro__
    )
    return vision_transformer if known else None


def two_towers(module: nn.Module) -> TwoTowers | None:
    """torchvision has no models of two towers."""
    return None


def vision_transformer(model: nn.Module) -> TowerParts:
    """`torchvision.models.VisionTransformer`, also with a convolutional stem, a representation layer or another head.

    Names of the classes come from `model.categories`, torchvision's word for them, where somebody has put it there.
    """
    encoder, side, patch = model.encoder, model.image_size, model.patch_size
    project, head, aliases = _heads(model.heads)
    n_classes = getattr(head, "out_features", None)
    names = tuple(getattr(model, "categories", ()))

    def embed(pixels: Tensor) -> Tensor:
        patches = model._process_input(pixels)
        tokens = cat([model.class_token.expand(len(patches), -1, -1), patches], dim=1)
        return encoder.dropout(tokens + encoder.pos_embedding)

    return TowerParts(
        family="torchvision ViT",
        embed=embed,
        blocks=tuple(_block(layer) for layer in encoder.layers),
        d_model=model.hidden_dim,
        ln_final=encoder.ln,
        reads=(0,),
        norm="tokens",
        pool=lambda tokens: tokens[:, 0],
        project=project,
        head=head,
        image_size=(side, side),
        patch_size=(patch, patch),
        n_tokens=encoder.pos_embedding.shape[1],
        class_names=names if len(names) == n_classes else (),
        reference=model,
        preprocess=preprocess,
        aliases={
            "encoder.dropout": "hook_embed",
            **{
                f"encoder.layers.{name}{'.' + path if path else ''}": f"blocks.{layer}.{site}"
                for layer, (name, _) in enumerate(encoder.layers.named_children())
                for path, site in NATIVE.items()
            },
            "encoder.ln": "ln_final.hook_normalized",
            **aliases,
        },
    )


def _block(layer: nn.Module) -> BlockParts:
    into, act, _, out, _ = layer.mlp
    return BlockParts(
        ln1=layer.ln_1,
        attn=attention(layer.self_attention),
        ln2=layer.ln_2,
        mlp_in=into,
        act=act,
        mlp_out=out,
        mlp_out_weight=lambda: linear_weight(out).T,
        mlp_out_bias=lambda: linear_bias(out),
        d_mlp=linear_weight(into).shape[0],
    )


def _heads(heads: nn.Module) -> tuple[Any, Any, dict[str, str]]:
    """(projection, head, aliases) of what follows the CLS token: torchvision's own, or what a user has put there."""
    children = dict(heads.named_children()) if type(heads) is nn.Sequential else {"": heads}
    *before, last = children or {"": nn.Identity()}
    head = children.get(last, nn.Identity())
    at = f"heads.{last}".rstrip(".")
    if not before:
        return (None, None, {}) if isinstance(head, nn.Identity) else (None, head, {at: "hook_logits"})

    def project(pooled: Tensor) -> Tensor:
        for name in before:
            pooled = children[name](pooled)
        return pooled

    aliases = {f"heads.{before[-1]}": "hook_embedding"}
    if isinstance(head, nn.Identity):
        return project, None, aliases
    return project, head, aliases | {at: "hook_logits"}


def preprocess(size: tuple[int, int]) -> Preprocess:
    """The preprocessing of the weights trained on ImageNet at 224 pixels: bilinear resize of the shorter side to 256
    (in proportion for other sizes), centre crop, ImageNet mean and standard deviation."""
    from torchvision import models

    from mechvis.data.transforms import of_transform

    published = models.ViT_B_16_Weights.IMAGENET1K_V1
    transform = published.transforms(crop_size=size[0], resize_size=round(size[0] * 256 / 224))
    return of_transform(transform, source="default of torchvision")


def read(name: str, *, image_size: Any = None) -> tuple[nn.Module, Preprocess | None, None]:
    """Model, preprocessing and no tokenizer of a name: `vit_b_16` (its default weights), others that torchvision has
    (`vit_b_16/IMAGENET1K_SWAG_E2E_V1`), or yours (`vit_b_16/<file>.safetensors`, with as many classes as it holds).

    They take images of one size: another `image_size` is refused by `mechvis.load`. torchvision publishes its weights
    as pickled files only. They are fetched with their checksum compared and read by torch's restricted reader
    (`weights_only`), which builds tensors and runs no code.

    Raises:
        MissingPackage: torchvision is not installed.
        UnknownName: no such vision transformer, or no such weights of it.
        BadData: the weights cannot be fetched, or do not fit the model.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingPackage("torchvision:<name> needs torchvision: pip install torchvision") from error

    architecture, _, which = name.partition("/")
    known = models.list_models(include="vit_*")
    if architecture not in known:
        raise unknown("vision transformer of torchvision", architecture, known)
    if which.endswith(".safetensors"):
        return _of_file(architecture, Path(which)), None, None
    published = models.get_model_weights(architecture)
    if which and which not in published.__members__:
        raise unknown(f"weights of {architecture}", which, [*published.__members__, "<file>.safetensors"])
    weights = published[which] if which else published.DEFAULT
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise BadData(
            f"torchvision:{name}: the weights {weights} cannot be fetched from {weights.url} ({error}). Without a "
            f"network give a file: torchvision:{architecture}/<file>.safetensors, or pass a module in memory."
        ) from error
    from mechvis.data.transforms import of_transform

    size = {"image_size": weights.meta["min_size"][0], "num_classes": len(weights.meta["categories"])}
    model = _filled(models.get_model(architecture, weights=None, **size), state, name)
    model.categories = tuple(weights.meta["categories"])
    return model, of_transform(weights.transforms(), source=f"torchvision {weights}"), None


def _of_file(architecture: str, path: Path) -> nn.Module:
    """A model as large as the weights in a file say: image size, classes, representation layer."""
    from safetensors.torch import load_file
    from torchvision import models

    if not path.is_file():
        raise BadData(f"there is no file {path}.")
    state, parts = load_file(path), ("conv_proj.weight", "encoder.pos_embedding", "heads.head.weight")
    if missing := [key for key in parts if key not in state]:
        raise BadData(f"{path} does not hold a vision transformer of torchvision: {', '.join(missing)} not in it.")
    patch, n_tokens, classes = state[parts[0]].shape[-1], state[parts[1]].shape[1], state[parts[2]].shape[0]
    more = {"image_size": round((n_tokens - 1) ** 0.5) * patch, "num_classes": classes}
    if "heads.pre_logits.weight" in state:
        more["representation_size"] = state["heads.pre_logits.weight"].shape[0]
    return _filled(models.get_model(architecture, weights=None, **more), state, str(path))


def _filled(model: nn.Module, state: dict[str, Tensor], name: str) -> nn.Module:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise BadData(f"{name}: these weights do not fit the model. {error}") from error
    return model.eval()
