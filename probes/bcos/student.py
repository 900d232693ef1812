"""The student: a pre-norm ViT of B-cos pieces, laid out as its teacher is.

Pixels come as the teacher takes them; they are brought back to colours in [0, 1] and read as six channels, (r, g, b,
1-r, 1-g, 1-b), so that black is as much of an input as white. Class token and positions stay (methods.md 11: special
tokens kept); they do not depend on the image, and the decomposition gives them a share of their own.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mechvis.axes import Logits, Pixels, Residual
from probes.bcos.units import BcosLinear, GatedGELU, RMSNorm, is_explaining


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a student."""

    image: tuple[int, int]
    """(height, width) in pixels."""
    patch: tuple[int, int]
    """(height, width) of a patch."""
    d_model: int
    """Width of the stream."""
    d_mlp: int
    """Neurons of a block."""
    n_layers: int
    """Blocks."""
    n_heads: int
    """Heads of a block."""
    d_head: int
    """Width of a head."""
    prefix: tuple[str, ...]
    """Tokens before the patches."""
    n_classes: int
    """Logits."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Mean of the preprocessing."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Deviation of the preprocessing."""
    b: float = 2.0
    """Exponent of the B-cos units."""

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (down, across)."""
        return self.image[0] // self.patch[0], self.image[1] // self.patch[1]

    @property
    def n_tokens(self) -> int:
        """Length of the stream."""
        return len(self.prefix) + self.grid[0] * self.grid[1]


class BcosAttention(nn.Module):
    """Attention of B-cos units; the pattern is a constant factor inside `explaining`."""

    def __init__(self, shape: Shape):
        super().__init__()
        inner = shape.n_heads * shape.d_head
        self.n_heads, self.scaling = shape.n_heads, shape.d_head**-0.5
        self.q_proj, self.k_proj, self.v_proj = (BcosLinear(shape.d_model, inner, b=shape.b) for _ in range(3))
        self.o_proj = BcosLinear(inner, shape.d_model, b=shape.b)

    def split(self, x: Tensor) -> Tensor:
        """Heads apart."""
        return x.unflatten(-1, (self.n_heads, -1))

    def q(self, x: Tensor) -> Tensor:
        """Queries `[row token head d_head]`; no gradient inside `explaining`: the pattern is a constant there."""
        return self.split(self._frozen(self.q_proj(x)))

    def k(self, x: Tensor) -> Tensor:
        """Keys, as the queries."""
        return self.split(self._frozen(self.k_proj(x)))

    def v(self, x: Tensor) -> Tensor:
        """Values."""
        return self.split(self.v_proj(x))

    @staticmethod
    def _frozen(x: Tensor) -> Tensor:
        return x.detach() if is_explaining() else x

    def forward(self, x: Residual) -> Residual:
        """The write."""
        q, k, v = (rearrange(t, "r t h e -> r h t e") for t in (self.q(x), self.k(x), self.v(x)))
        pattern = (q @ k.transpose(-2, -1) * self.scaling).softmax(-1)
        return self.o_proj(rearrange(pattern @ v, "r h t e -> r t (h e)"))


class BcosBlock(nn.Module):
    """Norm, attention, norm, MLP."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(shape.d_model), RMSNorm(shape.d_model)
        self.attention = BcosAttention(shape)
        self.fc1 = BcosLinear(shape.d_model, shape.d_mlp, b=shape.b)
        self.act = GatedGELU()
        self.fc2 = BcosLinear(shape.d_mlp, shape.d_model, b=shape.b)

    def forward(self, x: Residual) -> Residual:
        """The stream after the block."""
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


class BcosViT(nn.Module):
    """A B-cos ViT: pixels (as the teacher takes them) to logits. Made by :func:`probes.bcos.convert`."""

    def __init__(self, shape: Shape, *, reads: str = "cls"):
        super().__init__()
        self.shape, self.reads = shape, reads
        n_pixels = 6 * shape.patch[0] * shape.patch[1]
        self.embed = BcosLinear(n_pixels, shape.d_model, b=shape.b)
        self.special = nn.Parameter(0.02 * torch.randn(shape.n_tokens, shape.d_model))
        self.blocks = nn.ModuleList(BcosBlock(shape) for _ in range(shape.n_layers))
        self.norm = RMSNorm(shape.d_model)
        self.head = BcosLinear(shape.d_model, shape.n_classes, b=1.0)
        for name, values in (("mean", shape.mean), ("std", shape.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def six(self, pixels: Pixels) -> Float[Tensor, "image six height width"]:
        """Colours and their complements."""
        colours = pixels * self.std + self.mean
        return torch.cat([colours, 1 - colours], dim=1)

    def tokens(self, six: Float[Tensor, "image six height width"], special: Tensor | None = None) -> Residual:
        """Six channels to the stream before the first block."""
        height, width = self.shape.patch
        patches = rearrange(six, "i c (h a) (w b) -> i (h w) (c a b)", a=height, b=width)
        return self.placed(self.embed(patches), special)

    def placed(self, patches: Float[Tensor, "row patch d_model"], special: Tensor | None = None) -> Residual:
        """Embedded patches with the special tokens before them and positions added."""
        special = self.special if special is None else special
        n_prefix = len(self.shape.prefix)
        first = special[:n_prefix].expand(len(patches), -1, -1)
        return torch.cat([first, patches + special[n_prefix:]], dim=1)

    def pooled(self, stream: Residual) -> Tensor:
        """What the head reads, of the stream after the last block."""
        x = self.norm(stream)
        return x[:, 0] if self.reads == "cls" else x[:, len(self.shape.prefix) :].mean(1)

    def from_six(self, six: Float[Tensor, "image six height width"], special: Tensor | None = None) -> Logits:
        """Six channels to logits; `special` in the place of the learned special tokens."""
        x = self.tokens(six, special)
        for block in self.blocks:
            x = block(x)
        return self.head(self.pooled(x))

    def forward(self, pixels: Pixels) -> Logits:
        """Logits."""
        return self.from_six(self.six(pixels))
