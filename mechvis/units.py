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

SPECIAL_KINDS = ("patches", "pool_heads")
"""Kinds that not every sweep has: groups of patches in the stream before a block (they need `groups`, see
`mechvis.patches`), and the heads of an attention pooling (SigLIP), which come after the last block."""

_INDEX = {"heads": "head", "result": "head", "neurons": "neuron", "tokens": "token", "pool_heads": "head"}


@dataclass(frozen=True, order=True)
class Unit:
    """One thing to ablate."""

    layer: int
    """Block index; for `pool_heads` the number of blocks."""
    kind: str
    """One of `KINDS` or `SPECIAL_KINDS`."""
    index: int | None = None
    """Head, neuron, token or group; None for a whole layer's write."""
    group: str | None = None
    """Name of a group of patches."""
    tokens: tuple[int, ...] | None = None
    """Tokens of a group of patches; None where they differ from image to image."""

    @property
    def site(self) -> str:
        """Canonical site name."""
        if self.kind == "pool_heads":
            return "pool.attn.hook_z"
        if self.kind == "patches":
            return f"blocks.{self.layer}.hook_resid_pre"
        return f"blocks.{self.layer}.{KINDS[self.kind]}"

    @property
    def name(self) -> str:
        """Short name, e.g. `L3H1`."""
        if self.kind in ("heads", "result"):
            return f"L{self.layer}H{self.index}"
        if self.kind == "pool_heads":
            return f"pool H{self.index}"
        if self.kind == "patches":
            return f"L{self.layer} {self.group}"
        if self.index is None:
            return f"L{self.layer} {self.kind}"
        return f"L{self.layer} {_INDEX[self.kind]} {self.index}"

    def row(self) -> dict[str, Any]:
        """Columns that name this unit in a table."""
        row: dict[str, Any] = {"unit": self.name, "layer": self.layer}
        if self.kind == "pool_heads":
            del row["layer"]  # it is in no block
        if self.kind == "patches":
            return {**row, "group": self.group}
        if self.index is not None:
            row[_INDEX[self.kind]] = self.index
        return row

    def selection(self) -> dict[str, tuple[int, ...]]:
        """Keyword arguments of an edit that hits exactly this unit."""
        if self.kind == "patches":
            if self.tokens is None:
                raise BadData(
                    f"the patches of {self.name!r} differ from image to image: say which with tokens=, a bool mask "
                    "[row token], or use the engine 'wave'."
                )
            return {"tokens": self.tokens}
        if self.index is None:
            return {}
        word = {"neurons": "units", "tokens": "tokens"}.get(self.kind, "heads")
        return {word: (self.index,)}

    def edit(self, kind: str, **more: Any) -> Edit:
        """The plain edit of this unit: what the fast engine must agree with."""
        selection = {} if "tokens" in more else self.selection()
        return Edit(kind=kind, site=self.site, **selection, **more)


def units_of(
    model: Any, units: str | Sequence[Unit], layers: Iterable[int] | None = None, groups: Any = None
) -> list[Unit]:
    """The units of a sweep, sorted by layer.

    Args:
        model: a wrapped model.
        units: a kind (`heads`, `result`, `attn_out`, `mlp_out`, `neurons`, `tokens`, `patches`, `pool_heads`), or a
            list of units.
        layers: only these layers.
        groups: for `patches`: `mechvis.patches.Groups`.

    Raises:
        UnknownName, OutOfRange, BadData.
    """
    parts = model.parts
    n_layers = len(parts.blocks)
    wanted = range(n_layers) if layers is None else sorted({_layer(layer, n_layers) for layer in layers})
    if groups is not None and units != "patches":
        raise BadData("groups= says what the units 'patches' are; with other units leave it out.")
    if not isinstance(units, str):
        for unit in units:
            _check(unit, parts)
        chosen = sorted((unit for unit in units if layers is None or unit.layer in wanted), key=_order)
        if not chosen:
            raise BadData("no units given." if not len(units) else "no units given in these layers.")
        if len(set(chosen)) != len(chosen):
            raise BadData("a unit is listed twice.")
        return chosen
    if units not in KINDS and units not in SPECIAL_KINDS:
        raise unknown("unit kind", units, [*KINDS, *SPECIAL_KINDS])
    if units == "pool_heads":
        if layers is not None:
            raise BadData("the heads of the pooling are in no layer; leave layers= out.")
        return [Unit(n_layers, "pool_heads", i) for i in range(_pool_heads(parts))]
    if units == "patches" and groups is None:
        raise BadData(
            "units='patches' needs groups=: a grid of cells such as (4, 4), 'object' for the images' masks, label maps "
            "[image height width], or lists of tokens by name."
        )
    found = []
    for layer in wanted:
        if units == "patches":
            found += groups.units(layer)
            continue
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
    if unit.kind not in KINDS and unit.kind not in SPECIAL_KINDS:
        raise unknown("unit kind", unit.kind, [*KINDS, *SPECIAL_KINDS])
    n_layers = len(parts.blocks)
    if unit.kind == "pool_heads":
        count = _pool_heads(parts)
        if unit.layer != n_layers or unit.index is None or not 0 <= unit.index < count:
            raise OutOfRange(
                f"{unit!r} does not exist: heads of the pooling have layer {n_layers} (the number of blocks) and "
                f"index 0 to {count - 1}."
            )
        return
    if not 0 <= unit.layer < n_layers:
        raise OutOfRange(f"{unit!r} does not exist: this model has layers 0 to {n_layers - 1}.")
    if unit.kind == "patches":
        _check_patches(unit, parts)
        return
    count = _count(parts, unit.layer, unit.kind)
    if not (unit.index is None if count == 0 else unit.index is not None and 0 <= unit.index < count):
        valid = f"index 0 to {count - 1}" if count else "no index"
        raise OutOfRange(f"{unit!r} does not exist: {unit.kind} of layer {unit.layer} take {valid}.")


def _check_patches(unit: Unit, parts: Any) -> None:
    if not unit.group:
        raise BadData(f"{unit!r}: a group of patches needs a name, group=.")
    if not unit.tokens:
        raise BadData(
            f"{unit!r}: in a list, a group of patches needs its tokens=(...); or use units='patches', groups=."
        )
    if not all(0 <= token < parts.n_tokens for token in unit.tokens) or len(set(unit.tokens)) != len(unit.tokens):
        raise OutOfRange(f"{unit!r}: its tokens must be different ones from 0 to {parts.n_tokens - 1}.")


def _pool_heads(parts: Any) -> int:
    if parts.pooling is None:
        raise BadData(
            "this model has no attention pooling, so it has no units 'pool_heads' (SigLIP's vision tower has)."
        )
    return parts.pooling.attn.n_heads


def _order(unit: Unit) -> tuple:
    """By layer, kind and index; units without an index, or with other fields, compare too."""
    index = -1 if unit.index is None else unit.index
    return unit.layer, unit.kind, index, unit.group or "", unit.tokens or ()


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
