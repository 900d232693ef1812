"""Queries, keys, values or the pattern of one head from another run: the short way.

Heads of a layer do not see each other before the output projection, so what a patched query (key, value, pattern) of a
head does to the network is what the z that it makes does:

    z_q = softmax(scores(q', k)) v        z_k = softmax(scores(q, k')) v        z_v = softmax(scores(q, k)) v'
    z_pattern = softmax(scores(q', k')) v                             (a prime: from the other run)

Rotary positions, position bias, the type of the softmax and the fused or explicit product are the model's own
(`mechvis.block`). All heads of a layer are made by one attention; each goes into the wave front as a replaced z of its
own head. So a patched query costs what a patched head does, and one attention per layer.

The plain twin is `model.run(edits=[edits.patch("blocks.l.attn.hook_q", other.cache, heads=[h])])`.

Not where something follows the mixing of values that sees all heads (`AttentionParts.after`, the inner norm of EVA-02):
there a changed head changes its neighbours' z too, and such models go the plain way.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mechvis import block as plain
from mechvis.axes import Pixels
from mechvis.models.parts import AttentionParts, Layout

_FROM_OTHER = {"q": "q", "k": "k", "v": "v", "pattern": "qk"}
"""Which projections come from the other run."""


class PatchedInside:
    """A replacement for the wave front: `blocks.l.attn.hook_z` -> z of every head with one part from the other run."""

    def __init__(self, model: Any, part: str, layers: list[int], base: Pixels, other: Pixels):
        """
        Args:
            model: a wrapped model.
            part: `q`, `k`, `v` or `pattern`.
            layers: where it will be asked for.
            base: images of the run that goes on.
            other: images whose part is put in, one for each of `base`.
        """
        self.part, self.parts = part, model.parts
        self.layout: Layout = None if self.parts.layout is None else self.parts.layout(tuple(base.shape[2:]))
        words = _FROM_OTHER[part]
        theirs, ours = (
            [f"blocks.{layer}.attn.hook_{w}" for layer in layers for w in kinds] for kinds in (words, _rest(words))
        )
        self.values: dict[str, Tensor] = {
            **model.run(other, capture=theirs, stop_when_captured=True).cache,
            **model.run(base, capture=ours, stop_when_captured=True).cache,
        }

    def __call__(self, site: str) -> Tensor:
        """`[image token head d_head]`."""
        layer = int(site.split(".")[1])
        found = {word: self.values[f"blocks.{layer}.attn.hook_{word}"] for word in "qkv"}
        return z_of(self.parts.blocks[layer].attn, found, self.layout, explicit=self.part == "pattern")


def z_of(attn: AttentionParts, found: Mapping[str, Tensor], layout: Layout, *, explicit: bool) -> Tensor:
    """z of all heads from queries, keys (before rotary positions) and values.

    Args:
        attn: the attention.
        found: `q`, `k` and `v`, each `[image token head d_head]`.
        layout: the image's size, where the attention depends on it.
        explicit: by way of the pattern, as a run does it whose pattern is edited.
    """
    q, k = plain.place(attn, found["q"], found["k"], layout)
    if explicit:
        return plain.mix_explicit(plain.pattern_of(attn, plain.scores_of(attn, q, k, layout)), found["v"])
    return plain.mix(attn, q, k, found["v"], layout)


def short_way(model: Any, layers: list[int]) -> bool:
    """Do heads of these layers stay apart up to the output projection?"""
    return all(model.parts.blocks[layer].attn.after is None for layer in layers)


def _rest(words: str) -> str:
    return "".join(word for word in "qkv" if word not in words)
