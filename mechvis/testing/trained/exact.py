"""Exact patching of whole nodes and of single edges, one forward each: what the certificate measures with.

It is plain and slow on purpose, and uses none of the machinery that the models are meant to test.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mechvis.axes import Labels, Logits, Residual
from mechvis.models.parts import TowerParts
from mechvis.testing.trained.families import PairFamily
from mechvis.testing.trained.interchange import Donor, Trace, forward
from mechvis.testing.trained.places import place


def contrast_of(clean: Logits, pairs: PairFamily) -> Labels:
    """The corrupt label; where it is the clean one, the best other class of the clean run."""
    others = clean.scatter(1, pairs.clean_labels[:, None], float("-inf")).argmax(-1)
    return torch.where(pairs.flips, pairs.corrupt_labels, others)


def logit_difference(logits: Logits, label: Labels, contrast: Labels) -> Tensor:
    """Logit of the label minus that of the contrast, `[image]`."""
    return (logits.gather(1, label[:, None]) - logits.gather(1, contrast[:, None]))[:, 0]


@torch.no_grad()
def node_effects(
    parts: TowerParts, pairs: PairFamily, nodes: Sequence[str], *, denoise: bool = False
) -> dict[str, Tensor]:
    """Effect of every node, patched over all tokens.

    Args:
        parts: `model.parts`.
        pairs: clean and corrupt images.
        nodes: `L0H1`, `L1MLP`, ...
        denoise: run the corrupt images and patch a node's clean value in.

    Returns:
        Node -> fall of the logit difference per image when the node is corrupt (`denoise`: rise when it is clean).
    """
    clean, corrupt = forward(parts, pairs.clean), forward(parts, pairs.corrupt)
    contrast = contrast_of(clean.logits, pairs)
    pixels, base, source = (pairs.corrupt, corrupt, clean) if denoise else (pairs.clean, clean, corrupt)
    before = logit_difference(base.logits, pairs.clean_labels, contrast)
    found = {}
    for node in nodes:
        patched = forward(parts, pixels, [Donor(trace=source, chosen={f"{node}@all": True})])
        change = before - logit_difference(patched.logits, pairs.clean_labels, contrast)
        found[node] = -change if denoise else change
    return found


@torch.no_grad()
def edge_effects(parts: TowerParts, pairs: PairFamily, edges: Sequence[str]) -> dict[str, Tensor]:
    """Effect of every edge (`L0H1->L1MLP`): the fall of the logit difference per image when the reader alone sees the
    writer's corrupt output. A head reads with queries, keys and values together."""
    clean, corrupt = forward(parts, pairs.clean), forward(parts, pairs.corrupt)
    contrast = contrast_of(clean.logits, pairs)
    before = logit_difference(clean.logits, pairs.clean_labels, contrast)
    found = {}
    for edge in edges:
        writer, _, reader = edge.partition("->")
        more = write_of(corrupt, writer) - write_of(clean, writer)
        patched = forward(parts, pairs.clean, added={reader: more})
        found[edge] = before - logit_difference(patched.logits, pairs.clean_labels, contrast)
    return found


def write_of(trace: Trace, node: str) -> Residual:
    """What a node wrote into the stream."""
    if node == "embed":
        return trace.embed
    at = place(f"{node}@all")
    return trace.mlps[at.layer] if at.kind == "mlp" else trace.heads[at.layer][:, :, at.head]
