"""Heads by the names that decompositions give them, as places in the forward pass that can be edited."""

from collections.abc import Mapping, Sequence
from typing import Any

from mechvis import edits
from mechvis.edits import Edit
from mechvis.means import Means

Site = tuple[str, int, int]
"""Site of a head, its number there, and the first layer that an edit of it changes."""


def head_sites(tower: Any) -> dict[str, Site]:
    """Every head of a tower by name: `L3H1`, and `pool H1` of an attention pooling.

    Example:
        >>> head_sites(clip.vision)["L3H1"]                                                # doctest: +SKIP
        ('blocks.3.attn.hook_z', 1, 3)
    """
    found = {}
    for layer, block in enumerate(tower.parts.blocks):
        for head in range(block.attn.n_heads):
            found[f"L{layer}H{head}"] = (f"blocks.{layer}.attn.hook_z", head, layer)
    if tower.parts.pooling is not None:
        last = len(tower.parts.blocks) - 1
        for head in range(tower.parts.pooling.attn.n_heads):
            found[f"pool H{head}"] = ("pool.attn.hook_z", head, last)
    return found


def mean_edits(heads: Sequence[str], sites: Mapping[str, Site], average: Means) -> tuple[int, list[Edit]]:
    """The first layer that changes when these heads are put at their positional means, and the edits that do it."""
    by_site: dict[str, list[int]] = {}
    for head in heads:
        by_site.setdefault(sites[head][0], []).append(sites[head][1])
    changes = [edits.mean_positional(site, average, heads=numbers) for site, numbers in by_site.items()]
    return min(sites[head][2] for head in heads), changes
