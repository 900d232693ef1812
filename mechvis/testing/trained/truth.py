"""What is true about a planted model, per pair family: four grades for every node, unit and edge.

==============  =======================================================================================================
grade           meaning
==============  =======================================================================================================
`active`        carries a planted variable that the family changes, and the output reads it
`structural`    in the circuit, but constant under the family: only zero ablation, or another family, shows it
`free`          computes features below the first planted node, unconstrained: not scored
`out`           everything else: the certificate bounds its effect
==============  =======================================================================================================

"The circuit" depends on the pair family: scored against the full list, even exact patching looks wrong on a family that
leaves half of the variables alone (benchmark plan A.3, **X**). Score `active` against `out`.

A node is a whole head or MLP over all tokens; a unit is a node at one token group. A node has the strongest grade among
its units: active, structural, free, out.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mechvis.errors import UnknownName
from mechvis.testing.trained.placement import Placement
from mechvis.testing.trained.places import node_of
from mechvis.testing.trained.shape import HEADS, LAYERS

GRADES = ("active", "structural", "free", "out")


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Grades under one pair family."""

    nodes: dict[str, str]
    """`L0H1`, `L0MLP`, `embed` -> grade."""
    units: dict[str, str]
    """`L0H1@cls`, ... -> grade; a head of the last layer is read at CLS only."""
    edges: dict[str, str]
    """Writer to reader, as node pairs: `L0H1->L1MLP`, `L1MLP->out` -> grade."""

    def edge(self, name: str) -> str:
        """Grade of an edge at the level of queries, keys and values (`L0H1->L1H2.q`): that of its node pair, because
        training constrains whole heads.

        Raises:
            UnknownName: the model has no such edge.
        """
        pair = _pair(name)
        if pair not in self.edges:
            raise UnknownName(f"{name!r} is no edge of this model. Edges are called like L0H1->L1H2.q or L1MLP->out.")
        return self.edges[pair]


def promoted(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores of edges at the level of queries, keys and values, as scores of node pairs: the one of largest size.

    Training constrains whole heads: which of the three inputs of a head carries a variable is not known, so a finding
    about one of them counts for the head.

    Args:
        scores: `L0H1->L1H2.q` -> score; names that are node pairs already stay.

    Example:
        >>> promoted({"L0H1->L1H2.q": 0.5, "L0H1->L1H2.v": -2.0, "L1MLP->out": 1.0})
        {'L0H1->L1H2': -2.0, 'L1MLP->out': 1.0}
    """
    found: dict[str, float] = {}
    for name, score in scores.items():
        pair, score = _pair(name), float(score)
        if pair not in found or abs(score) > abs(found[pair]) or score != score:
            found[pair] = score
    return found


def _pair(edge: str) -> str:
    """An edge without the letter of the input that it enters."""
    return edge[:-2] if edge.endswith((".q", ".k", ".v")) else edge


def truth_of(placement: Placement, changed: Collection[str], groups: Collection[str]) -> Truth:
    """Grades for a pair family.

    Args:
        placement: where the program is planted.
        changed: variables that differ between the halves; with one of the inputs of the output that the program reads,
            `label` belongs to them.
        groups: token groups of the model.

    Returns:
        A grade for every node, unit and edge.

    Example:
        >>> from mechvis.testing.trained.tasks import task_of
        >>> placement = task_of("colour-if-shape").placement(0)
        >>> truth_of(placement, {"colour", "label"}, ("cls", "patch")).nodes["L1MLP"]
        'active'
    """
    units = {
        f"{node}@{group}": _unit(placement, f"{node}@{group}", changed) for node in _writers()[1:] for group in groups
    }
    nodes = {"embed": "free"}
    for unit, grade in units.items():
        node = node_of(unit)
        nodes[node] = min(nodes.get(node, "out"), grade, key=GRADES.index)
    edges = {
        f"{writer}->{reader}": _edge(placement, writer, reader, nodes)
        for writer in _writers()
        for reader in (*_writers()[1:], "out")
        if _before(writer, reader)
    }
    return Truth(nodes=nodes, units=units, edges=edges)


def _unit(placement: Placement, unit: str, changed: Collection[str]) -> str:
    if unit in placement.planted:
        return "active" if placement.planted[unit] in changed else "structural"
    return "free" if unit in placement.free else "out"


def _edge(placement: Placement, writer: str, reader: str, nodes: dict[str, str]) -> str:
    if (writer, reader) in placement.flows:
        return nodes[writer]
    if (writer, reader) in placement.constant:
        return "structural"
    # Features reach a free component, or a planted one that reads patches. What a forbidden path would carry is out.
    below = writer == "embed" or writer in placement.free_nodes
    above = reader in placement.free_nodes or reader in placement.feature_readers
    return "free" if below and above else "out"


def _writers() -> list[str]:
    """Nodes in the order of the forward pass."""
    found = ["embed"]
    for layer in range(LAYERS):
        found += [f"L{layer}H{head}" for head in range(HEADS)] + [f"L{layer}MLP"]
    return found


def _before(writer: str, reader: str) -> bool:
    """Does the reader's input hold the writer's output?"""
    order = {"embed": -1.0, "out": float(2 * LAYERS)}
    for layer in range(LAYERS):
        order |= {f"L{layer}H{head}": 2.0 * layer for head in range(HEADS)} | {f"L{layer}MLP": 2.0 * layer + 1}
    return order[writer] < order[reader]
