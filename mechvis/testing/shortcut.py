"""F2, ShortcutViT: a ViT with a background shortcut whose every head is known, and the images that show it.

The stream has named slots: object marker, context marker, CLS marker, raw class evidence (3), promoted evidence (3),
class logits (3), and two place slots that let a token find itself. Two layers of four heads; no MLP, no LayerNorm.

==========  ==================================================================================================
head        what it does
==========  ==================================================================================================
`(0, 0)`    copies each token's raw evidence to the promoted slots: everything depends on it (the collapse head)
`(1, 0)`    attends to object tokens, writes 2 x their mean promoted evidence into the logits (the object head)
`(1, 1)`    the same for context tokens, with gain 3 (**the shortcut**)
`(0, 3)`    small random mixtures of the slots of all tokens
`(1, 2)`    the same
the rest    nothing (inert heads)
==========  ==================================================================================================

It is an ordinary `nn.Module` that no family of this library knows, so it is also the example of how to bring one's own
architecture: `shortcut_parts` is its map.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechvis.data.images import ImageSet
from mechvis.data.preprocess import Preprocess
from mechvis.models.parts import AttentionParts, BlockParts, TowerParts

GRID, CLASSES, HEADS, D_HEAD = 4, 3, 4, 4
OBJECT, CONTEXT, CLS = 0, 1, 2
RAW, PROMOTED, LOGITS, PLACE = slice(3, 6), slice(6, 9), slice(9, 12), slice(12, 14)
D_MODEL, SLOTS, TOKENS = 14, 12, 1 + GRID * GRID
CHANNELS = 2 + CLASSES
MIX_SEED = 905028
"""Seed of the small random mixtures. The published table does not say which they were: this seed reproduces it."""


class ShortcutAttention(nn.Module):
    """Plain attention: queries with bias, no other bias, no scaling of scores."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(D_MODEL, HEADS * D_HEAD, dtype=torch.float64)
        self.k_proj = nn.Linear(D_MODEL, HEADS * D_HEAD, bias=False, dtype=torch.float64)
        self.v_proj = nn.Linear(D_MODEL, HEADS * D_HEAD, bias=False, dtype=torch.float64)
        self.o_proj = nn.Linear(HEADS * D_HEAD, D_MODEL, bias=False, dtype=torch.float64)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "image token d_model"]) -> Float[Tensor, "image token d_model"]:
        q, k, v = (
            rearrange(proj(x), "i t (h e) -> i h t e", h=HEADS) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        pattern = torch.softmax(q @ k.transpose(-2, -1), dim=-1)
        return self.o_proj(rearrange(pattern @ v, "i h t e -> i t (h e)"))


class ShortcutViT(nn.Module):
    """The analytic model, in float64; takes pixels `[image 5 4 4]` (object marker, context marker, evidence of three
    classes), one token per pixel, and gives three logits.

    Example:
        >>> model, images = ShortcutViT(), shortcut_images(20)
        >>> model(images.pixels).shape
        torch.Size([20, 3])
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(CHANNELS, D_MODEL, 1, bias=False, dtype=torch.float64)
        self.register_buffer("places", torch.zeros(TOKENS, D_MODEL, dtype=torch.float64))
        self.layers = nn.ModuleList([ShortcutAttention(), ShortcutAttention()])
        self.classifier = nn.Linear(D_MODEL, CLASSES, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self._wire()
        self.eval()

    def _wire(self) -> None:
        self.embed.weight.zero_()
        self.embed.weight[[OBJECT, CONTEXT, 3, 4, 5], range(CHANNELS)] = 1.0
        angle = torch.arange(TOKENS, dtype=torch.float64) * (2 * math.pi / TOKENS)
        self.places[:, PLACE] = torch.stack([angle.cos(), angle.sin()], dim=1)
        self.places[0, CLS] = 1.0
        self.classifier.weight.copy_(torch.eye(D_MODEL, dtype=torch.float64)[LOGITS])
        first, second = self.layers
        # Places lie on a circle, so a token matches itself best: by at least 60, which leaves e^-60 for the others.
        sharpness = 60 / (1 - math.cos(2 * math.pi / TOKENS))
        for i in range(2):
            first.q_proj.weight[i, PLACE.start + i] = sharpness
            first.k_proj.weight[i, PLACE.start + i] = 1.0
        self._copy(first, head=0, source=RAW, target=PROMOTED, gain=1.0)
        for head, marker, gain in ((0, OBJECT, 2.0), (1, CONTEXT, 3.0)):
            second.q_proj.bias[head * D_HEAD] = 1.0
            second.k_proj.weight[head * D_HEAD, marker] = 20.0
            self._copy(second, head=head, source=PROMOTED, target=LOGITS, gain=gain)
        generator = np.random.default_rng(MIX_SEED)
        for attention, head in ((first, 3), (second, 2)):
            at = slice(head * D_HEAD, (head + 1) * D_HEAD)
            read, write = (
                torch.from_numpy(generator.normal(size=shape) * 0.3) for shape in ((SLOTS, D_HEAD), (D_HEAD, SLOTS))
            )
            attention.v_proj.weight[at, :SLOTS] = read.T
            attention.o_proj.weight[:SLOTS, at] = write.T

    @staticmethod
    def _copy(attention: ShortcutAttention, *, head: int, source: slice, target: slice, gain: float) -> None:
        for i in range(CLASSES):
            attention.v_proj.weight[head * D_HEAD + i, source.start + i] = 1.0
            attention.o_proj.weight[target.start + i, head * D_HEAD + i] = gain

    def tokens(self, pixels: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image token d_model"]:
        """Pixels to the stream before block 0."""
        patches = self.embed(pixels).flatten(2).transpose(1, 2)
        return nn.functional.pad(patches, (0, 0, 1, 0)) + self.places

    def forward(self, pixels: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image class"]:
        """Logits."""
        x = self.tokens(pixels)
        for attention in self.layers:
            x = attention(x) + x
        return self.classifier(x[:, 0])


def shortcut_parts(model: ShortcutViT) -> TowerParts:
    """How this library sees the model: pass it as `mechvis.models.load.wrap(ShortcutViT(), family=shortcut_parts)`."""
    identity = nn.Identity()

    def heads_in(linear: nn.Linear) -> Tensor:
        return rearrange(linear.weight, "(h e) d -> h d e", h=HEADS)

    def block(attention: ShortcutAttention) -> BlockParts:
        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (HEADS, D_HEAD))

        parts = AttentionParts(
            n_heads=HEADS,
            d_head=D_HEAD,
            q=lambda x: split(attention.q_proj(x)),
            kv=lambda x: (split(attention.k_proj(x)), split(attention.v_proj(x))),
            out=attention.o_proj,
            out_weight=lambda: rearrange(attention.o_proj.weight, "d (h e) -> h e d", h=HEADS),
            out_bias=lambda: None,
            in_weights=lambda: (heads_in(attention.q_proj), heads_in(attention.k_proj), heads_in(attention.v_proj)),
            in_biases=lambda: (split(attention.q_proj.bias), None, None),
            scale=1.0,
            fused=lambda: False,
        )
        # There is no MLP: one neuron that is always zero and writes nowhere stands in for it.
        return BlockParts(
            ln1=identity,
            attn=parts,
            ln2=identity,
            mlp_in=lambda x: torch.zeros_like(x[..., :1]),
            act=identity,
            mlp_out=lambda neurons: neurons.expand(*neurons.shape[:-1], D_MODEL) * 0,
            mlp_out_weight=lambda: torch.zeros(1, D_MODEL, dtype=model.embed.weight.dtype),
            mlp_out_bias=lambda: None,
            d_mlp=1,
        )

    return TowerParts(
        family="ShortcutViT",
        embed=model.tokens,
        blocks=tuple(block(attention) for attention in model.layers),
        d_model=D_MODEL,
        ln_final=identity,
        reads=(0,),
        norm="tokens",
        pool=lambda tokens: tokens[:, 0],
        head=model.classifier,
        image_size=(GRID, GRID),
        patch_size=(1, 1),
        channels=CHANNELS,
        n_tokens=TOKENS,
        class_names=("a", "b", "c"),
        reference=model,
        example=lambda generator: torch.rand(2, CHANNELS, GRID, GRID, generator=generator).double(),
    )


def _as_made(images: Sequence[np.ndarray], **settings: object) -> dict[str, Tensor]:
    """Stands in for an image processor: what is drawn is what the model reads."""
    return {"pixel_values": torch.from_numpy(np.stack(images)).double().permute(0, 3, 1, 2).contiguous()}


def shortcut_preprocess() -> Preprocess:
    """The images of this model are made, not read: values in [0, 1], nothing subtracted."""
    return Preprocess(
        processor=_as_made,
        height=GRID,
        width=GRID,
        mean=(0.0,) * CHANNELS,
        std=(1.0,) * CHANNELS,
        source="made by mechvis.testing",
    )


def shortcut_vit():
    """A wrapped `ShortcutViT`, ready for runs, sweeps and studies."""
    from mechvis.models.load import wrap

    return wrap(ShortcutViT(), family=shortcut_parts, preprocess=shortcut_preprocess(), title="shortcut-vit")


@dataclass(frozen=True, kw_only=True)
class ShortcutImages:
    """Images for `ShortcutViT`: an object on a context that half of the time is forced to agree with it."""

    pixels: Float[Tensor, "image channel height width"]
    """Float64, channels: object marker, context marker, evidence of the three classes."""
    labels: Int[Tensor, " image"]
    """Class of the object."""
    contexts: Int[Tensor, " image"]
    """Class of the context."""
    masks: Bool[Tensor, "image height width"]
    """True on the object."""

    @property
    def without_object(self) -> Tensor:
        """Pixels with the object's tokens replaced by zeros."""
        return self.pixels * ~self.masks[:, None]

    @property
    def without_context(self) -> Tensor:
        """Pixels with the context's tokens replaced by zeros."""
        return self.pixels * self.masks[:, None]

    @property
    def agree(self) -> Tensor:
        """True where object and context are of one class `[image]`."""
        return self.labels == self.contexts

    @property
    def groups(self) -> np.ndarray:
        """`agree` or `conflict` per image."""
        return np.where(self.agree.numpy(), "agree", "conflict")

    def image_set(self) -> ImageSet:
        """The same images for sweeps and studies: with labels, masks and groups."""
        drawn = self.pixels.permute(0, 2, 3, 1).to(torch.uint8).numpy()
        return ImageSet(
            name="shortcut images",
            ids=tuple(f"shortcut/{i:06d}" for i in range(len(self))),
            read=drawn.__getitem__,
            rows=np.arange(len(self)),
            labels=self.labels.numpy(),
            class_names=("a", "b", "c"),
            read_mask=self.masks.numpy().__getitem__,
            groups=self.groups,
            preprocess=shortcut_preprocess(),
        )

    def __len__(self) -> int:
        return len(self.labels)


def shortcut_images(n: int = 200, seed: int = 0) -> ShortcutImages:
    """Object class uniform over three; context class equal with probability one half, else uniform; six of the sixteen
    tokens, at random, are object.

    Example:
        >>> int(shortcut_images().agree.sum())
        135
    """
    generator = np.random.default_rng(seed)
    labels, contexts = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    masks = np.zeros((n, GRID * GRID), dtype=bool)
    for image in range(n):
        labels[image] = generator.integers(CLASSES)
        contexts[image] = labels[image] if generator.random() < 0.5 else generator.integers(CLASSES)
        masks[image, generator.choice(GRID * GRID, 6, replace=False)] = True
    evidence = np.eye(CLASSES)[np.where(masks, labels[:, None], contexts[:, None])]
    tokens = np.concatenate([masks[..., None], ~masks[..., None], evidence], axis=-1)
    pixels = rearrange(
        torch.from_numpy(tokens), "image (height width) channel -> image channel height width", height=GRID
    )
    return ShortcutImages(
        pixels=pixels.contiguous(),
        labels=torch.from_numpy(labels),
        contexts=torch.from_numpy(contexts),
        masks=torch.from_numpy(masks).unflatten(1, (GRID, GRID)),
    )
