"""Nodes of a causal path: heads and hidden units of MLPs, by names.

`L0H1` is head 1 of layer 0 and `L0N7` neuron 7 of its MLP (`mlp.hook_post`). `L0N7->L1H2` is what the neuron adds to
the stream that the head reads; a head reads with its queries, keys and values at once. `out` is the read-out.
"""

import re
from collections.abc import Iterable
from typing import Any

from mechvis.errors import BadData, UnknownName
from mechvis.units import Unit, units_of

OUT = "out"
KINDS = ("heads", "neurons")
_NAME = re.compile(r"L(\d+)([HN])(\d+)")


def name_of(unit: Unit) -> str:
    """`L0H1`, `L0N7`.

    Example:
        >>> name_of(Unit(0, "neurons", 7))
        'L0N7'
    """
    return f"L{unit.layer}{'H' if unit.kind == 'heads' else 'N'}{unit.index}"


def unit_of(name: Any) -> Unit:
    """The unit of a name.

    Raises:
        UnknownName: not such a name.

    Example:
        >>> unit_of("L2H1")
        Unit(layer=2, kind='heads', index=1, group=None, tokens=None)
    """
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        raise UnknownName(f"{name!r} names no unit; write 'L0H1' for a head and 'L0N7' for a neuron.")
    layer, kind, index = found.groups()
    return Unit(int(layer), "heads" if kind == "H" else "neurons", int(index))


def depth_of(node: str, n_layers: int) -> tuple[int, int]:
    """Where a node stands in the forward pass: (layer, 0 for heads and 1 for neurons)."""
    if node == OUT:
        return n_layers, 0
    unit = unit_of(node)
    return unit.layer, int(unit.kind == "neurons")


def units_before(model: Any, node: str, kinds: Iterable[str] = KINDS) -> list[Unit]:
    """All units whose writes a node reads, in the order of the forward pass.

    Args:
        model: a wrapped model.
        node: a unit's name, or `out`.
        kinds: `heads`, `neurons` or both.
    """
    end = depth_of(node, len(model.parts.blocks))
    found: list[Unit] = []
    for layer in range(len(model.parts.blocks)):
        for kind in KINDS:
            if kind in kinds and (layer, int(kind == "neurons")) < end:
                found += units_of(model, kind, [layer])
    return found


def edge_ends(model: Any, edge: str) -> tuple[str, str]:
    """The two nodes of an edge such as `L0N7->L1H2`, checked against a model.

    Raises:
        UnknownName, OutOfRange: no such node.
        BadData: not the name of an edge, or of one from late to early.
    """
    ends = edge.split("->") if isinstance(edge, str) else []
    if len(ends) != 2:
        raise BadData(f"{edge!r} is not the name of an edge; write for example 'L0N7->L1N2' or 'L1H0->out'.")
    n_layers = len(model.parts.blocks)
    units_of(model, [unit_of(node) for node in dict.fromkeys(ends) if node != OUT or node is ends[0]])
    if not depth_of(ends[0], n_layers) < depth_of(ends[1], n_layers):
        raise BadData(f"there is no edge {edge!r}: {ends[0]} does not come before {ends[1]}.")
    return ends[0], ends[1]
