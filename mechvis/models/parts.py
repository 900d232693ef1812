"""What a model family must offer: a map from a foreign module tree to parts.

A family file (about 40 lines) fills these dataclasses with *calls into the user's own modules*. Nothing is copied and
nothing is replaced, so a LoRA layer, a quantised linear or a changed head inside the user's model simply takes part.
`mechvis.hooked.HookedViT` then runs its one forward over the parts.

To support a new architecture, write a function `module -> TowerParts` and register it (see CONTRIBUTING).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, dtype, nn

from mechvis.axes import PerHead, Residual

Merged = Float[Tensor, "row token head_and_d_head"]

Layout = Any
"""What the blocks need to know of an image's size: rotary tables, position bias. Made by `TowerParts.layout`, handed to
every attention; only the family looks inside."""


@dataclass(frozen=True, kw_only=True)
class AttentionParts:
    """Self-attention of one block, cut where heads are visible."""

    n_heads: int
    """Number of heads."""
    d_head: int
    """Width of one head."""
    q: Callable[[Residual], PerHead]
    """Normalised stream to queries, with bias and q-norm; before rotary positions."""
    kv: Callable[[Residual], tuple[PerHead, PerHead]]
    """Normalised stream to keys (with k-norm, before rotary positions) and values."""
    qkv: Callable[[Residual], tuple[PerHead, PerHead, PerHead]] | None = None
    """All three by one product, where the family has one weight for them; None: `q` and `kv` one after the other."""
    rotate: Callable[[PerHead, Layout, Int[Tensor, " token"] | None], PerHead] | None = None
    """Rotary positions on queries or keys; the last argument says which tokens they are (None: all)."""
    bias: Callable[[Layout], Float[Tensor, "1 head query key"]] | None = None
    """What is added to the scaled scores (relative position bias)."""
    after: Callable[[Merged], Merged] | None = None
    """What happens to the mixed values before the output projection (a norm, a gain per head). `hook_z` is after it, so
    that heads still add up to the block's write; `hook_mix` is before it."""
    out: Callable[[Merged], Residual]
    """Heads side by side (`head d_head` flattened) to the block's write, output bias included."""
    out_weight: Callable[[], Float[Tensor, "head d_head d_model"]]
    """W_O per head, as it acts now (adapters merged in)."""
    out_bias: Callable[[], Float[Tensor, " d_model"] | None]
    """Output bias: it belongs to no head."""
    in_weights: Callable[[], tuple[Tensor, Tensor, Tensor]]
    """W_Q, W_K, W_V, each `[head d_model d_head]`."""
    in_biases: Callable[[], tuple[Tensor | None, Tensor | None, Tensor | None]]
    """b_Q, b_K, b_V, each `[head d_head]` or None."""
    scale: float
    """Factor on query-key products."""
    fused: Callable[[], bool]
    """Does the user's model use fused attention right now? Read live, never assumed."""
    scale_queries: bool = False
    """Explicit attention scales the queries before the product (torch's own and timm's) instead of the product: another
    rounding."""
    causal: bool = False
    """True in text towers."""
    eager_softmax: dtype | None = None
    """Type the family's own explicit softmax works in, whatever the model's (Hugging Face: float32); None: no such
    habit."""


@dataclass(frozen=True, kw_only=True)
class BlockParts:
    """One pre-norm transformer block."""

    ln1: nn.Module
    """Norm before attention: a LayerNorm or RMSNorm (weight, bias or none, eps), or nn.Identity for none."""
    attn: AttentionParts
    """Self-attention."""
    ln2: nn.Module
    """Norm before the MLP."""
    mlp_in: Callable[[Residual], Any]
    """Normalised stream to pre-activations `[row token d_mlp]`; in a gated MLP a pair: gate (before the activation)
    and linear half."""
    act: Callable[[Tensor], Tensor]
    """Pre-activations (of the gate) to activations `[row token d_mlp]`."""
    gated: bool = False
    """The activated gate multiplies the linear half (SwiGLU and kin)."""
    mlp_norm: Callable[[Tensor], Tensor] | None = None
    """Norm between the activations and the output product; `hook_post` is after it, `hook_mid` before it."""
    mlp_out: Callable[[Tensor], Residual]
    """Neurons to the block's second write."""
    mlp_out_weight: Callable[[], Float[Tensor, "d_mlp d_model"]]
    """W_out of the MLP, one row per neuron."""
    mlp_out_bias: Callable[[], Float[Tensor, " d_model"] | None]
    """Output bias of the MLP."""
    d_mlp: int
    """Number of neurons."""
    scale1: Callable[[Residual], Residual] | None = None
    """LayerScale on the attention's write, where the family has one."""
    scale2: Callable[[Residual], Residual] | None = None
    """LayerScale on the MLP's write."""
    linear_writes: bool = True
    """False where scale1 or scale2 is not linear (a norm after the sub-layer): the stream is then no sum of heads."""


@dataclass(frozen=True, kw_only=True)
class PoolingParts:
    """Attention pooling: learned queries ("latents", mostly one) read all tokens, then perhaps an MLP.

    Its heads are the ones that a decomposition of such a model is about; they have sites of their own: `pool.attn.*`.
    """

    attn: AttentionParts
    """Attention of the latents over the tokens: `q` takes the latents, `kv` the normalised tokens."""
    latents: Callable[[int], Float[Tensor, "row latent d_model"]]
    """Rows -> the queries before their projection."""
    n_latents: int = 1
    """Number of queries."""
    keys: Literal["token", "patch"] = "token"
    """What the latents read: all tokens, or `kv` leaves the prefix out."""
    d_out: int
    """Width of what comes out."""
    mlp: BlockParts | None = None
    """A block of which only the MLP half is used, after the attention; None: no MLP."""


@dataclass(frozen=True, kw_only=True)
class SpliceParts:
    """A learned dictionary in the way of one activation: latents that are read, may be edited, and write it again.

    It has sites of its own: `<site>.hook_latents` `[row token latent]` and, with the error term, `<site>.hook_error`.
    Heads at a site lie side by side in one vector. Made by `sae.splice`; :class:`mechvis.spliced.SplicedViT` runs it.
    """

    site: str
    """Site that is written."""
    reads: str
    """Site that the latents are computed from: the same one, or another one before it (a transcoder)."""
    n_latents: int
    """Latents."""
    encode: Callable[[Float[Tensor, "*row d_in"]], Float[Tensor, "*row latent"]]
    """What is read to latents."""
    decode: Callable[[Float[Tensor, "*row latent"], Float[Tensor, "*row d_in"]], Float[Tensor, "*row d_out"]]
    """Latents, and what was read, to what they write; linear in the latents."""
    directions: Callable[[], Float[Tensor, "latent d_out"]]
    """What one unit of each latent writes, up to `scale`."""
    scale: Callable[[Float[Tensor, "*row d_in"]], Float[Tensor, "*row d_out"] | None] = lambda read: None
    """Factor of each row on what is written (where rows are scaled by their own norm); None: none."""
    error: bool = True
    """Add what the dictionary misses, so that nothing changes until a latent does; without it the activation is
    replaced by what the latents write."""
    tokens: tuple[int, ...] | None = None
    """Tokens that are replaced; None: all. The others stay as they are and have no latents."""
    identity: str = ""
    """What identifies the dictionary: its fingerprint."""

    @property
    def latents_site(self) -> str:
        """Name of the site of the latents."""
        return f"{self.site}.hook_latents"

    @property
    def error_site(self) -> str | None:
        """Name of the site of the error term; None without it."""
        return f"{self.site}.hook_error" if self.error else None


@dataclass(frozen=True, kw_only=True)
class TowerParts:
    """A whole vision (or text) tower."""

    family: str
    """Human-readable name, e.g. `Hugging Face ViT`."""
    modality: Literal["image", "text"] = "image"
    """What goes in."""
    embed: Callable[[Tensor], Residual]
    """Pixels (or token ids) to the residual stream before block 0; everything before the first block is in here."""
    blocks: tuple[BlockParts, ...]
    """The blocks in order."""
    d_model: int
    """Width of the residual stream."""
    ln_final: nn.Module
    """Last LayerNorm."""
    reads: Callable[[Tensor], Tensor] | tuple[int, ...] | None
    """Tokens that the read-out needs: fixed indices (CLS), a function of the input ids (the end-of-text token), or
    None for all tokens."""
    norm: Literal["tokens", "read", "pooled"]
    """Where `ln_final` acts: on all tokens, which are then picked and pooled (ViT); on the tokens that are read (CLIP
    vision); on the pooled vector (mean first, norm afterwards)."""
    pooling: PoolingParts | None = None
    """Attention pooling between norm and `pool`, which then gets the latents."""
    pool: Callable[[Residual], Tensor]
    """Tokens that are read, in the order of `reads` (all tokens where it is None), to `[row d_pooled]`."""
    d_pooled: int | None = None
    """Width of what `pool` returns; None: d_model times the number of tokens that `reads` lists."""
    layout: Callable[[tuple[int, int]], Layout] | None = None
    """(height, width) in pixels -> what the blocks need to know of it; None: nothing."""
    project: Callable[[Tensor], Tensor] | None = None
    """Pooled to the embedding `[row d_embed]` (CLIP projection, ViT pooler)."""
    head: Callable[[Tensor], Tensor] | None = None
    """Embedding (or pooled, without a projection) to logits `[row class]`."""
    prefix: tuple[str, ...] = ("cls",)
    """Names of the tokens before the patches."""
    image_size: tuple[int, int] | None = None
    """(height, width) in pixels that the model is used with."""
    sizes: Literal["one", "asked", "any"] = "one"
    """Does the upstream take other image sizes? `any`: whatever comes (DINOv2); `asked`: only when told to interpolate
    its positions (ViT, CLIP), so here too one has to ask: `mechvis.load(..., image_size=448)`."""
    patch_size: tuple[int, int] | None = None
    """(height, width) of a patch in pixels."""
    channels: int = 3
    """Input channels."""
    n_tokens: int
    """Length of the residual stream (for text: the longest)."""
    vocabulary: int | None = None
    """Number of token ids (text)."""
    class_names: tuple[str, ...] = ()
    """Names of the logits, where the model knows them."""
    reference: Callable[[Tensor], Tensor]
    """The bare model's own answer to the same input, comparable with our last output: for the parity check."""
    example: Callable[[Any], Tensor] | None = None
    """A random valid input batch, from a `torch.Generator`: for the parity check. None: two images of noise."""
    preprocess: Callable[[tuple[int, int]], Any] | None = None
    """(height, width) -> the image processor or `Preprocess` of the published models, for a model that brings none."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Native module path -> canonical site name."""
    splices: tuple[SpliceParts, ...] = ()
    """Dictionaries in the way of activations, at different sites."""

    @property
    def grid(self) -> tuple[int, int] | None:
        """Patches (down, across), or None for text."""
        if self.image_size is None or self.patch_size is None:
            return None
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    def at_size(self, size: tuple[int, int]) -> "TowerParts":
        """These parts for images of another (height, width)."""
        if size == self.image_size:
            return self
        sized = replace(self, image_size=size)
        return replace(sized, n_tokens=len(self.prefix) + sized.grid[0] * sized.grid[1])

    def example_batch(self, like: nn.Module, generator: torch.Generator) -> Tensor:
        """A random valid input batch of two, on the device and in the type of a module's weights."""
        if self.example is not None:
            return self.example(generator)
        weight = next(p for p in like.parameters() if p.is_floating_point())
        noise = torch.randn(2, self.channels, *self.image_size, generator=generator)
        return noise.to(weight.device, weight.dtype)


@dataclass(frozen=True, kw_only=True)
class TwoTowers:
    """What a model of two towers (CLIP, SigLIP) offers besides the maps of its towers."""

    vision: Callable[[nn.Module], TowerParts]
    """The map of the vision tower, given the whole model."""
    text: Callable[[nn.Module], TowerParts]
    """The map of the text tower, given the whole model."""
    logit_scale: Callable[[], Tensor]
    """Factor on the cosine as it is now, already exponentiated."""
    logit_bias: Callable[[], Tensor | None] = lambda: None
    """What is added to the scaled cosine (SigLIP)."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """What the model was trained with: softmax over the texts of a batch, or one sigmoid per pair."""
    encode_ids: Callable[[Any, list[str], int], Tensor] | None = None
    """(tokenizer, texts, longest) -> token ids `[row token]`; None: a Hugging Face tokenizer, padded to the longest
    text of the batch."""
