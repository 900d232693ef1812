"""A small pre-norm transformer whose weights are set by hand: what every planted model of this folder is made of.

All weights start at zero, so a builder says only what its model does. It writes into views that have the shapes of the
formulas (row vectors times matrices):

    model = WiredViT(channels=2, d_model=4, n_layers=1, n_heads=1, d_head=1, n_classes=2)
    with torch.no_grad():
        model.embedding[0, 0] = 1.0                 # channel 0 into slot 0 of the stream
        head = model.head(0, 0)
        head.v[0, 0], head.o[0, 2] = 1.0, 2.0       # slot 2 becomes twice slot 0

It is an ordinary `nn.Module` in float64; :func:`wired_parts` is its map, and :func:`wrapped` wraps it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mechvis.axes import Logits, Pixels, Residual
from mechvis.errors import BadData, OutOfRange
from mechvis.models.parts import AttentionParts, BlockParts, TowerParts

DTYPE = torch.float64


@dataclass(frozen=True, kw_only=True)
class HeadViews:
    """The weights of one head: views, so that writing into them (under `torch.no_grad()`) wires the model."""

    q: Float[Tensor, "d_model d_head"]
    """Normalised stream to query."""
    k: Float[Tensor, "d_model d_head"]
    """Normalised stream to key."""
    v: Float[Tensor, "d_model d_head"]
    """Normalised stream to value."""
    o: Float[Tensor, "d_head d_model"]
    """Mixed values to the stream."""
    q_bias: Float[Tensor, " d_head"]
    """Added to every query."""
    k_bias: Float[Tensor, " d_head"]
    """Added to every key."""
    v_bias: Float[Tensor, " d_head"]
    """Added to every value."""


@dataclass(frozen=True, kw_only=True)
class NeuronViews:
    """The weights of one MLP, as views."""

    w_in: Float[Tensor, "d_model d_mlp"]
    """Normalised stream to pre-activations."""
    b_in: Float[Tensor, " d_mlp"]
    """Added to the pre-activations."""
    w_out: Float[Tensor, "d_mlp d_model"]
    """Activations to the stream."""
    b_out: Float[Tensor, " d_model"]
    """Added to the write."""


class WiredBlock(nn.Module):
    """One pre-norm block: attention with explicit softmax, then an MLP."""

    def __init__(self, d_model: int, n_heads: int, d_head: int, d_mlp: int, activation: nn.Module, norm: bool):
        super().__init__()
        width = n_heads * d_head
        self.n_heads, self.d_head, self.scale = n_heads, d_head, 1.0
        self.norm1 = nn.LayerNorm(d_model, dtype=DTYPE) if norm else nn.Identity()
        self.q_proj = nn.Linear(d_model, width, dtype=DTYPE)
        self.k_proj = nn.Linear(d_model, width, dtype=DTYPE)
        self.v_proj = nn.Linear(d_model, width, dtype=DTYPE)
        self.o_proj = nn.Linear(width, d_model, dtype=DTYPE)
        self.norm2 = nn.LayerNorm(d_model, dtype=DTYPE) if norm else nn.Identity()
        self.fc1 = nn.Linear(d_model, d_mlp, dtype=DTYPE)
        self.act = activation
        self.fc2 = nn.Linear(d_mlp, d_model, dtype=DTYPE)

    def split(self, x: Tensor) -> Tensor:
        """Heads side by side to `[row token head d_head]`."""
        return x.unflatten(-1, (self.n_heads, self.d_head))

    def attention(self, x: Residual) -> Residual:
        """Write of the attention, from a normalised stream."""
        q, k, v = (self.split(proj(x)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        pattern = torch.softmax(q @ k.transpose(-2, -1) * self.scale, dim=-1)
        return self.o_proj(rearrange(pattern @ v, "row head token d_head -> row token (head d_head)"))

    def forward(self, x: Residual) -> Residual:
        """The stream after the block."""
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


class WiredViT(nn.Module):
    """A vision transformer of any small size, in float64, with all weights zero (norm gains one) until they are wired.

    Args:
        channels: channels of the pixels.
        d_model: width of the stream.
        n_layers, n_heads, d_head: blocks, heads per block, width of a head.
        d_mlp: neurons per block. Without an MLP one is left: a neuron that writes nowhere.
        n_classes: logits; they are read from token 0.
        grid: patches (down, across).
        patch: side of a patch in pixels.
        cls: put a CLS token before the patches. Without it, token 0 is the first patch.
        activation: of the MLPs.
        norm: real LayerNorms; without, the stream is read as it is.
        scale: factor on query-key products.

    Raises:
        BadData: a size below one.

    Example:
        >>> WiredViT(channels=3, d_model=8, n_layers=2, n_heads=2, d_head=4, n_classes=2, grid=(2, 2)).n_tokens
        4
    """

    def __init__(
        self,
        *,
        channels: int,
        d_model: int,
        n_layers: int,
        n_heads: int,
        d_head: int,
        d_mlp: int = 1,
        n_classes: int,
        grid: tuple[int, int] = (1, 1),
        patch: int = 1,
        cls: bool = False,
        activation: Callable[[], nn.Module] = nn.Identity,
        norm: bool = False,
        scale: float = 1.0,
    ):
        super().__init__()
        sizes = {"channels": channels, "d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "d_head": d_head}
        sizes |= {"d_mlp": d_mlp, "n_classes": n_classes, "grid": min(grid), "patch": patch}
        if small := {name: size for name, size in sizes.items() if size < 1}:
            raise BadData(f"a wired model needs sizes of at least one, got {small}.")
        self.grid, self.patch, self.channels, self.cls = grid, patch, channels, cls
        self.n_tokens = grid[0] * grid[1] + cls
        self.embed = nn.Linear(channels * patch * patch, d_model, bias=False, dtype=DTYPE)
        self.places = nn.Parameter(torch.zeros(self.n_tokens, d_model, dtype=DTYPE))
        self.layers = nn.ModuleList(
            WiredBlock(d_model, n_heads, d_head, d_mlp, activation(), norm) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model, dtype=DTYPE) if norm else nn.Identity()
        self.classifier = nn.Linear(d_model, n_classes, dtype=DTYPE)
        for module in self.modules():
            for name, parameter in module.named_parameters(recurse=False):
                nn.init.constant_(parameter, 1.0 if isinstance(module, nn.LayerNorm) and name == "weight" else 0.0)
        for layer in self.layers:
            layer.scale = scale
        self.eval()

    @property
    def embedding(self) -> Float[Tensor, "pixel d_model"]:
        """View of the patch embedding; a patch's pixels are ordered (channel, row, column)."""
        return self.embed.weight.T

    @property
    def readout(self) -> Float[Tensor, "d_model class"]:
        """View of the classifier."""
        return self.classifier.weight.T

    def head(self, layer: int, head: int) -> HeadViews:
        """Views of one head's weights.

        Raises:
            OutOfRange: no such head.
        """
        block = self._block(layer)
        if not 0 <= head < block.n_heads:
            raise OutOfRange(f"head {head}: this model has heads 0 to {block.n_heads - 1}.")
        at = slice(head * block.d_head, (head + 1) * block.d_head)
        projections = {"q": block.q_proj, "k": block.k_proj, "v": block.v_proj}
        views = {name: linear.weight[at].T for name, linear in projections.items()}
        views |= {f"{name}_bias": linear.bias[at] for name, linear in projections.items()}
        return HeadViews(o=block.o_proj.weight[:, at].T, **views)

    def neurons(self, layer: int) -> NeuronViews:
        """Views of one MLP's weights.

        Raises:
            OutOfRange: no such layer.
        """
        block = self._block(layer)
        return NeuronViews(w_in=block.fc1.weight.T, b_in=block.fc1.bias, w_out=block.fc2.weight.T, b_out=block.fc2.bias)

    def _block(self, layer: int) -> WiredBlock:
        if not 0 <= layer < len(self.layers):
            raise OutOfRange(f"layer {layer}: this model has layers 0 to {len(self.layers) - 1}.")
        return self.layers[layer]

    def tokens(self, pixels: Pixels) -> Residual:
        """Pixels to the stream before block 0."""
        shape = {"height": self.grid[0], "width": self.grid[1]}
        patches = rearrange(pixels, "i c (height a) (width b) -> i (height width) (c a b)", **shape)
        return nn.functional.pad(self.embed(patches), (0, 0, int(self.cls), 0)) + self.places

    def forward(self, pixels: Pixels) -> Logits:
        """Logits."""
        x = self.tokens(pixels)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(self.norm(x)[:, 0])


def wired_parts(model: WiredViT) -> TowerParts:
    """How this library sees the model: pass it as `mechvis.models.load.wrap(model, family=wired_parts)`."""

    def block(layer: WiredBlock) -> BlockParts:
        def heads_in(linear: nn.Linear) -> Tensor:
            return rearrange(linear.weight, "(head e) d -> head d e", head=layer.n_heads)

        attention = AttentionParts(
            n_heads=layer.n_heads,
            d_head=layer.d_head,
            q=lambda x: layer.split(layer.q_proj(x)),
            kv=lambda x: (layer.split(layer.k_proj(x)), layer.split(layer.v_proj(x))),
            out=layer.o_proj,
            out_weight=lambda: rearrange(layer.o_proj.weight, "d (head e) -> head e d", head=layer.n_heads),
            out_bias=lambda: layer.o_proj.bias,
            in_weights=lambda: (heads_in(layer.q_proj), heads_in(layer.k_proj), heads_in(layer.v_proj)),
            in_biases=lambda: tuple(layer.split(linear.bias) for linear in (layer.q_proj, layer.k_proj, layer.v_proj)),
            scale=layer.scale,
            fused=lambda: False,
        )
        return BlockParts(
            ln1=layer.norm1,
            attn=attention,
            ln2=layer.norm2,
            mlp_in=layer.fc1,
            act=layer.act,
            mlp_out=layer.fc2,
            mlp_out_weight=lambda: layer.fc2.weight.T,
            mlp_out_bias=lambda: layer.fc2.bias,
            d_mlp=layer.fc1.out_features,
        )

    return TowerParts(
        family="WiredViT",
        embed=model.tokens,
        blocks=tuple(block(layer) for layer in model.layers),
        d_model=model.places.shape[1],
        ln_final=model.norm,
        reads=(0,),
        norm="tokens",
        pool=lambda tokens: tokens[:, 0],
        head=model.classifier,
        prefix=("cls",) if model.cls else (),
        image_size=(model.grid[0] * model.patch, model.grid[1] * model.patch),
        patch_size=(model.patch, model.patch),
        channels=model.channels,
        n_tokens=model.n_tokens,
        reference=model,
    )


def wrapped(model: WiredViT, title: str, *, class_names: tuple[str, ...] = (), preprocess: Any = None) -> Any:
    """The model as a `HookedViT`.

    Args:
        model: wired.
        title: what to call it.
        class_names: names of its logits.
        preprocess: a `Preprocess`, where its pixels are pictures.

    Example:
        >>> model = WiredViT(channels=1, d_model=2, n_layers=1, n_heads=1, d_head=1, n_classes=2)
        >>> wrapped(model, "nothing yet").title
        'nothing yet'
    """
    from mechvis.models.load import wrap

    def family(module: WiredViT) -> TowerParts:
        return replace(wired_parts(module), class_names=class_names)

    return wrap(model, family=family, preprocess=preprocess, title=title)
