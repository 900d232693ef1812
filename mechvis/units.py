"""The units that a sweep ablates, and the rows they become in a table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mechvis.edits import Edit
from mechvis.errors import BadData, OutOfRange, unknown

KINDS = {
    "heads": "attn.hook_z",
    "result": "attn.hook_result",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "neurons": "mlp.hook_post",
    "tokens": "hook_resid_pre",
}
"""Kind of unit -> site inside a block. `result` is a head seen after its output projection: the same ablation as
`heads` for zero and means, since the projection is linear."""

_INDEX = {"heads": "head", "result": "head", "neurons": "neuron", "tokens": "token"}


@dataclass(frozen=True, order=True)
class Unit:
    """One thing to ablate."""

    layer: int
    """Block index."""
    kind: str
    """One of `KINDS`."""
    index: int | None = None
    """Head, neuron or token; None for a whole layer's write."""

    @property
    def site(self) -> str:
        """Canonical site name."""
        return f"blocks.{self.layer}.{KINDS[self.kind]}"

    @property
    def name(self) -> str:
        """Short name, e.g. `L3H1`."""
        if self.kind in ("heads", "result"):
            return f"L{self.layer}H{self.index}"
        if self.index is None:
            return f"L{self.layer} {self.kind}"
        return f"L{self.layer} {_INDEX[self.kind]} {self.index}"

    def row(self) -> dict[str, Any]:
        """Columns that name this unit in a table."""
        row: dict[str, Any] = {"unit": self.name, "layer": self.layer}
        if self.index is not None:
            row[_INDEX[self.kind]] = self.index
        return row

    def selection(self) -> dict[str, tuple[int, ...]]:
        """Keyword arguments of an edit that hits exactly this unit."""
        if self.index is None:
            return {}
        word = {"heads": "heads", "result": "heads", "neurons": "units", "tokens": "tokens"}[self.kind]
        return {word: (self.index,)}

    def edit(self, kind: str, **more: Any) -> Edit:
        """The plain edit of this unit: what the fast engine must agree with."""
        return Edit(kind=kind, site=self.site, **self.selection(), **more)


def units_of(model: Any, units: str | Sequence[Unit], layers: Iterable[int] | None = None) -> list[Unit]:
    """The units of a sweep, sorted by layer.

    Args:
        model: a wrapped model.
        units: a kind (`heads`, `result`, `attn_out`, `mlp_out`, `neurons`, `tokens`), or a list of units.
        layers: only these layers.

    Raises:
        UnknownName, OutOfRange, BadData.
    """
    parts = model.parts
    n_layers = len(parts.blocks)
    wanted = range(n_layers) if layers is None else sorted({_layer(layer, n_layers) for layer in layers})
    if not isinstance(units, str):
        for unit in units:
            _check(unit, parts)
        chosen = sorted(unit for unit in units if unit.layer in wanted)
        if not chosen:
            raise BadData("no units given." if not len(units) else "no units given in these layers.")
        if len(set(chosen)) != len(chosen):
            raise BadData("a unit is listed twice.")
        return chosen
    if units not in KINDS:
        raise unknown("unit kind", units, KINDS)
    found = []
    for layer in wanted:
        count = _count(parts, layer, units)
        found += [Unit(layer, units, i) for i in range(count)] if count else [Unit(layer, units)]
    if not found:
        raise BadData("no units given: layers= is empty.")
    return found


def head_units(heads: Iterable[tuple[int, int]]) -> list[Unit]:
    """Units for (layer, head) pairs."""
    return [Unit(layer, "heads", head) for layer, head in heads]


def _check(unit: Any, parts: Any) -> None:
    if not isinstance(unit, Unit):
        raise BadData(f"units are made of Unit(layer, kind, index), or head_units([(layer, head), ...]); got {unit!r}.")
    if unit.kind not in KINDS:
        raise unknown("unit kind", unit.kind, KINDS)
    n_layers = len(parts.blocks)
    if not 0 <= unit.layer < n_layers:
        raise OutOfRange(f"{unit!r} does not exist: this model has layers 0 to {n_layers - 1}.")
    count = _count(parts, unit.layer, unit.kind)
    if not (unit.index is None if count == 0 else unit.index is not None and 0 <= unit.index < count):
        valid = f"index 0 to {count - 1}" if count else "no index"
        raise OutOfRange(f"{unit!r} does not exist: {unit.kind} of layer {unit.layer} take {valid}.")


def _layer(layer: int, n_layers: int) -> int:
    if not -n_layers <= layer < n_layers:
        raise OutOfRange(f"layer {layer} does not exist: this model has layers 0 to {n_layers - 1}.")
    return layer % n_layers


def _count(parts: Any, layer: int, kind: str) -> int:
    block = parts.blocks[layer]
    return {
        "heads": block.attn.n_heads,
        "result": block.attn.n_heads,
        "neurons": block.d_mlp,
        "tokens": parts.n_tokens,
    }.get(kind, 0)
