"""Scores that need no causal thought: by layer, by size of writes, by size of weights.

If one of them finds the planted nodes, the model is too easy: then a method that finds them has shown nothing.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mechvis.errors import BadData
from mechvis.models.parts import TowerParts
from mechvis.testing.trained.exact import write_of
from mechvis.testing.trained.interchange import Trace
from mechvis.testing.trained.places import place


def shallow_scores(parts: TowerParts, trace: Trace) -> dict[str, dict[str, float]]:
    """Score of every head and MLP by each baseline.

    Returns:
        `layer index`, `write norm` (mean over images and tokens), `write norm at CLS`, `parameter norm` (output
        matrix) -> node -> score.
    """
    nodes = []
    for layer, block in enumerate(parts.blocks):
        nodes += [f"L{layer}H{head}" for head in range(block.attn.n_heads)] + [f"L{layer}MLP"]
    sizes = {node: write_of(trace, node).norm(dim=-1) for node in nodes}
    return {
        "layer index": {node: float(place(f"{node}@all").layer) for node in nodes},
        "write norm": {node: float(size.mean()) for node, size in sizes.items()},
        "write norm at CLS": {node: float(size[:, 0].mean()) for node, size in sizes.items()},
        "parameter norm": {node: _weight_norm(parts, node) for node in nodes},
    }


def _weight_norm(parts: TowerParts, node: str) -> float:
    at = place(f"{node}@all")
    block = parts.blocks[at.layer]
    weight = block.mlp_out_weight() if at.kind == "mlp" else block.attn.out_weight()[at.head]
    return float(weight.norm())


def area_under_curve(scores: Mapping[str, float | Tensor], grades: Mapping[str, str]) -> float:
    """AUROC of `active` against `out`: the chance that an active one has the larger score, ties counting half.

    Args:
        scores: name -> score; a tensor counts as its mean.
        grades: name -> grade; other grades, and names without a score, are left out.

    Raises:
        BadData: no scored name is active, or none is out; a score is NaN.

    Example:
        >>> area_under_curve({"a": 2.0, "b": 1.0, "c": 1.0}, {"a": "active", "b": "out", "c": "active"})
        0.75
    """
    values = {name: float(score.mean() if isinstance(score, Tensor) else score) for name, score in scores.items()}
    positive = torch.tensor([value for name, value in values.items() if grades.get(name) == "active"])
    negative = torch.tensor([value for name, value in values.items() if grades.get(name) == "out"])
    if not len(positive) or not len(negative):
        raise BadData(
            f"AUROC needs both grades; of {len(values)} scores, {len(positive)} are active and {len(negative)} out."
        )
    if bad := [name for name, value in values.items() if value != value]:
        raise BadData(f"the score of {', '.join(bad[:4])} is NaN: there is no order.")
    above = positive[:, None] - negative[None, :]
    return float(((above > 0).double() + 0.5 * (above == 0).double()).mean())
