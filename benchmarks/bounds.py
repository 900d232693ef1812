"""The least that a task needs, counted from shapes: multiply-adds, and bytes that must move.

A *multiply-add* is one product and one sum (two FLOPs). Only products of matrices are counted: norms, activations and
softmax are left out, so a bound is never too high for their sake. Bytes are the weights read once, the images read
once, and what has to be in memory at the end (logits, cached activations); everything between may stay in a cache, so
this bound is not too high either.

What an exact sweep needs at the least (hooks_circuits.md section 4, the rules of `mechvis.wave`):

1. one clean run of each image, whose last block computes the token that is read only;
2. per row the blocks after the place where it enters: a head enters between attention and MLP by `(z_new - z) W_O`, a
   neuron after the MLP by a multiple of its row of W_out, a token before its block;
3. in the last block, for one query: scores are `(W_K^T q) x` and the mixed values `W_V (pattern x)`, so that keys and
   values of all tokens are never computed: `4 d^2 + 2 H N d` instead of `2 N d^2 + 2 d^2 + 2 N d` (`classic`).

4. in a head's own block the MLP's first product is the clean run's times a factor per token, plus a product of d_head
   rows of a matrix that is made once per head: `N d_head hidden` instead of `N d hidden` (`classic`).

Not counted, though exact: a patched token leaves the others' q, k and v as they were, and a neuron's rows differ from
the clean run by one direction in the next block. So these are bounds of the algorithm above, not of all algorithms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FLOAT32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a plain ViT whose class token is read."""

    layers: int
    """Blocks."""
    heads: int
    """Attention heads of a block; `heads * d_head == width`."""
    width: int
    """`d_model`."""
    hidden: int
    """Neurons of a block's MLP."""
    patch: int
    """Pixels along a patch's side; three channels."""
    patches: int
    """Patches of an image."""
    classes: int
    """Logits."""

    @classmethod
    def of(cls, config: Any) -> "Shape":
        """The shape of a Hugging Face ViT."""
        return cls(
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            width=config.hidden_size,
            hidden=config.intermediate_size,
            patch=config.patch_size,
            patches=(config.image_size // config.patch_size) ** 2,
            classes=config.num_labels,
        )

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return self.patches + 1

    @property
    def pixels(self) -> int:
        """Numbers of one image."""
        return 3 * self.patch**2 * self.patches

    @property
    def parameters(self) -> int:
        """Numbers in the weights."""
        d, h = self.width, self.hidden
        embedding = 3 * self.patch**2 * d + d + d + self.tokens * d  # projection, class token, positions
        block = 4 * (d * d + d) + (d * h + h) + (h * d + d) + 4 * d  # attention, MLP, two norms
        return embedding + self.layers * block + 2 * d + d * self.classes + self.classes


@dataclass(frozen=True, kw_only=True)
class Least:
    """What a task needs at the least."""

    multiply_adds: int
    """In the model's precision."""
    bytes: int
    """Read and written."""
    low_precision: int = 0
    """Of other multiply-adds, those in the lower precision of a screening."""
    full: int = 0
    """Of a sweep: multiply-adds of one full forward per row, for comparison; 0 for other tasks."""
    classic: int = 0
    """Of a sweep: the count without the short ways 3 and 4; 0 for other tasks."""

    def seconds(self, rate: float, bandwidth: float, low_rate: float = 0.0) -> float:
        """Time below which this cannot be done on a machine: arithmetic and memory may overlap fully.

        Args:
            rate: FLOP/s of a matrix product in the model's precision.
            bandwidth: bytes per second.
            low_rate: FLOP/s in the lower precision.
        """
        arithmetic = 2 * self.multiply_adds / rate
        if self.low_precision:
            arithmetic += 2 * self.low_precision / low_rate
        return max(arithmetic, self.bytes / bandwidth)


def attention(s: Shape) -> int:
    """Multiply-adds of one image's attention half: q, k, v and output products, scores and mixed values."""
    return 4 * s.tokens * s.width**2 + 2 * s.tokens**2 * s.width


def mlp(s: Shape, tokens: int | None = None) -> int:
    """Multiply-adds of one image's MLP half, on all tokens or some."""
    return 2 * (s.tokens if tokens is None else tokens) * s.width * s.hidden


def last_block(s: Shape, *, classic: bool = False) -> int:
    """Multiply-adds of the last block where one token is read."""
    d, n = s.width, s.tokens
    if classic:  # keys and values of all tokens, query and output product of one
        return 2 * n * d * d + 2 * d * d + 2 * n * d + mlp(s, 1)
    # q, W_K^T q, W_V (pattern x) and the output product: d^2 each; scores and mixed streams: H N d each
    return 4 * d * d + 2 * s.heads * n * d + mlp(s, 1)


def embedding(s: Shape) -> int:
    """Multiply-adds of the patch embedding."""
    return s.pixels * s.width


def forward(s: Shape) -> int:
    """Multiply-adds of one image's full forward, as the upstream computes it."""
    return embedding(s) + s.layers * (attention(s) + mlp(s)) + s.width * s.classes


def clean(s: Shape, *, classic: bool = False) -> int:
    """Multiply-adds of the clean run of one image."""
    before = embedding(s) + (s.layers - 1) * (attention(s) + mlp(s))
    return before + last_block(s, classic=classic) + s.width * s.classes


def row(s: Shape, kind: str, layer: int, *, classic: bool = False) -> int:
    """Multiply-adds of one row (one image under one edit) of a sweep.

    Args:
        s: the model.
        kind: `heads`, `tokens` (the stream before a block) or `neurons`.
        layer: where its unit is.
        classic: without the short ways.
    """
    d, last, ahead = s.width, layer == s.layers - 1, s.layers - 2 - layer
    block, end = attention(s) + mlp(s), last_block(s, classic=classic)
    read = 1 if last else s.tokens  # in the last block a row has the token that is read only
    if kind == "heads":
        d_head = d // s.heads
        short = not last and not classic
        enters = read * d_head * d + (read * (d_head + d) * s.hidden if short else mlp(s, read))
    elif kind == "neurons":
        enters = read * d
    elif kind == "tokens":
        enters = 0 if last else block
    else:
        raise ValueError(f"no count for {kind!r}: heads, tokens or neurons.")
    if last:
        return enters + (end if kind == "tokens" else 0) + d * s.classes
    return enters + ahead * block + end + d * s.classes


def sweep(
    s: Shape,
    kind: str,
    layers: Sequence[int],
    images: int = 1,
    *,
    recheck: Sequence[int] | None = None,
    item: int = FLOAT32_BYTES,
) -> Least:
    """The least of a sweep.

    Args:
        s: the model.
        kind: as for :func:`row`.
        layers: the layer of each unit.
        images: of the sweep.
        recheck: of a screening: the layer of each unit that is measured again; the sweep itself is then counted as
            low precision.
        item: bytes of a number.
    """

    def total(units: Sequence[int], *, classic: bool = False) -> int:
        rows = sum(row(s, kind, layer, classic=classic) for layer in units)
        made = 0 if classic or kind != "heads" else sum(layer < s.layers - 1 for layer in units)
        return images * (clean(s, classic=classic) + rows) + made * s.width // s.heads * s.width * s.hidden

    logits = images * (1 + len(layers)) * s.classes
    again = [] if recheck is None else recheck
    counts = {"multiply_adds": total(layers), "classic": total(layers, classic=True)}
    if recheck is not None:
        counts = {
            "multiply_adds": total(again),
            "low_precision": total(layers),
            "classic": total(again, classic=True) + total(layers, classic=True),
        }
    return Least(
        **counts,
        full=images * len(layers) * forward(s),
        bytes=item * (s.parameters + images * s.pixels + logits),
    )


def plain(s: Shape, images: int, kept: int = 0, item: int = FLOAT32_BYTES) -> Least:
    """The least of one forward of some images as the upstream computes it, that leaves `kept` numbers in memory.

    Args:
        s: the model.
        images: of the batch.
        kept: cached numbers, for all images together.
        item: bytes of a number.
    """
    numbers = s.parameters + images * (s.pixels + s.classes) + kept
    return Least(multiply_adds=images * forward(s), bytes=item * numbers)
