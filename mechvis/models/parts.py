"""What a model family must offer: a map from a foreign module tree to parts.

A family file (about 40 lines) fills these dataclasses with *calls into the user's own modules*. Nothing is copied and
nothing is replaced, so a LoRA layer, a quantised linear or a changed head inside the user's model simply takes part.
`mechvis.hooked.HookedViT` then runs its one forward over the parts.

To support a new architecture, write a function `module -> TowerParts` and register it (see CONTRIBUTING).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, dtype, nn

from mechvis.axes import PerHead, Residual

Merged = Float[Tensor, "row token head_and_d_head"]


@dataclass(frozen=True, kw_only=True)
class AttentionParts:
    """Self-attention of one block, cut where heads are visible."""

    n_heads: int
    """Number of heads."""
    d_head: int
    """Width of one head."""
    q: Callable[[Residual], PerHead]
    """Normalised stream to queries, with bias and whatever the family does before the scores (q-norm, rotary)."""
    kv: Callable[[Residual], tuple[PerHead, PerHead]]
    """Normalised stream to keys and values."""
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
    causal: bool = False
    """True in text towers."""
    eager_softmax: dtype | None = None
    """Type the family's own explicit softmax works in, whatever the model's (Hugging Face: float32); None: no such
    habit."""


@dataclass(frozen=True, kw_only=True)
class BlockParts:
    """One pre-norm transformer block."""

    ln1: nn.Module
    """LayerNorm before attention (has weight, bias, eps)."""
    attn: AttentionParts
    """Self-attention."""
    ln2: nn.Module
    """LayerNorm before the MLP."""
    mlp_in: Callable[[Residual], Tensor]
    """Normalised stream to pre-activations `[row token d_mlp]`."""
    act: Callable[[Tensor], Tensor]
    """Pre-activations to neurons `[row token d_mlp]`."""
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
    norm_first: bool
    """True: normalise all tokens, then pool (ViT). False: pick the tokens, then normalise (CLIP vision)."""
    pool: Callable[[Residual], Tensor]
    """Normalised tokens that are read, in the order of `reads` (all tokens where it is None), to `[row d_model]`."""
    project: Callable[[Tensor], Tensor] | None = None
    """Pooled to the embedding `[row d_embed]` (CLIP projection, ViT pooler)."""
    head: Callable[[Tensor], Tensor] | None = None
    """Embedding (or pooled, without a projection) to logits `[row class]`."""
    prefix: tuple[str, ...] = ("cls",)
    """Names of the tokens before the patches."""
    image_size: tuple[int, int] | None = None
    """(height, width) in pixels the position embedding is built for."""
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
    example: Callable[[Any], Tensor]
    """A random valid input batch, from a `torch.Generator`: for the parity check."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Native module path -> canonical site name."""

    @property
    def grid(self) -> tuple[int, int] | None:
        """Patches (down, across), or None for text."""
        if self.image_size is None or self.patch_size is None:
            return None
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]
