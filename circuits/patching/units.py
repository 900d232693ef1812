"""What activation patching can replace: every unit of a sweep, and the parts inside a head.

A part of a head (`q`, `k`, `v`, `pattern`) is a :class:`HeadPart`. To the plain engine it is a unit like any other,
with a site and an edit of its own; to the wave front it is the head whose z it changes
(:mod:`circuits.patching.inside_head`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mechvis.errors import BadData, unknown
from mechvis.units import KINDS, SPECIAL_KINDS, SPLICED_KINDS, Unit, units_of

PARTS = {"q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v", "pattern": "attn.hook_pattern"}
"""Part of a head -> site inside a block. Queries and keys as they come out of their projection (with bias and norm),
before rotary positions."""

NAMES = (*KINDS, *SPECIAL_KINDS, *SPLICED_KINDS, *PARTS)


@dataclass(frozen=True, order=True)
class HeadPart(Unit):
    """Queries, keys, values or pattern of one head.

    Example:
        >>> HeadPart(1, "q", 2).name, HeadPart(1, "q", 2).site
        ('L1H2.q', 'blocks.1.attn.hook_q')
    """

    @property
    def site(self) -> str:
        """Canonical site name."""
        return f"blocks.{self.layer}.{PARTS[self.kind]}"

    @property
    def name(self) -> str:
        """As readers are called in circuits, e.g. `L1H2.q`."""
        return f"L{self.layer}H{self.index}.{self.kind}"

    @property
    def head(self) -> Unit:
        """The head it is inside of."""
        return Unit(self.layer, "heads", self.index)

    def row(self) -> dict[str, Any]:
        """Columns that name this unit in a table."""
        return {"unit": self.name, "layer": self.layer, "head": self.index, "part": self.kind}

    def selection(self) -> dict[str, tuple[int, ...]]:
        """Keyword arguments of an edit that hits exactly this unit."""
        return {"heads": (self.index,)}


def row_of(unit: Unit) -> dict[str, Any]:
    """Columns that name a unit, with the names that circuits use (`L0MLP`); a head seen after its output projection is
    told from the same head seen before it."""
    row = unit.row()
    if unit.kind == "mlp_out":
        return {**row, "unit": f"L{unit.layer}MLP"}
    return {**row, "unit": f"{unit.name}.result"} if unit.kind == "result" else row


def split_units(
    model: Any, units: str | Sequence[str | Unit], layers: Iterable[int] | None, groups: Any
) -> list[tuple[str, str | list[Unit]]]:
    """Units as lots that go through one wave front each: parts of heads by their kind, everything else together.

    Args:
        model: a wrapped model.
        units: a kind, or a sequence of kinds and units.
        layers: only these layers.
        groups: given with `patches`, which cannot be mixed with others.

    Returns:
        Pairs of a word (a part of heads, or empty) and what `mechvis.sweep` takes as units.

    Raises:
        UnknownName, OutOfRange, BadData.
    """
    if isinstance(units, str):
        units = [units]
    for unit in units:
        if isinstance(unit, str) and unit not in NAMES:
            raise unknown("unit kind", unit, NAMES)
    if "patches" in units or groups is not None:
        if list(units) != ["patches"]:
            raise BadData("groups of patches are patched alone: units='patches' with groups=, and no other unit.")
        return [("", "patches")]
    layers, n_layers = None if layers is None else list(layers), len(model.parts.blocks)
    wanted = None if layers is None else {layer % n_layers for layer in layers}
    lots: dict[str, list[Unit]] = {}
    for unit in units:
        if isinstance(unit, str) and unit not in PARTS:
            lots.setdefault("", []).extend(units_of(model, unit, layers))
        elif isinstance(unit, str):
            heads = units_of(model, "heads", layers)
            lots.setdefault(unit, []).extend(HeadPart(head.layer, unit, head.index) for head in heads)
        elif isinstance(unit, Unit):
            if isinstance(unit, HeadPart) and unit.kind not in PARTS:
                raise unknown("part of a head", unit.kind, PARTS)
            # Refuses what does not exist, whether its layer is wanted or not.
            units_of(model, [unit.head if isinstance(unit, HeadPart) else unit])
            if wanted is None or unit.layer in wanted:
                lots.setdefault(unit.kind if isinstance(unit, HeadPart) else "", []).append(unit)
        else:
            raise BadData(f"units are kinds such as 'heads' or 'q', Unit(...) or HeadPart(...); got {unit!r}.")
    if not lots:
        raise BadData("no units given." if layers is None else f"no units given in the layers {layers}.")
    found = []
    for part, chosen in lots.items():
        if len(set(chosen)) != len(chosen):
            raise BadData("a unit is listed twice.")
        found.append((part, chosen if not part else sorted(chosen)))
    return found
