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

SPLICED_KINDS = ("latents", "errors")
"""Kinds of models with dictionaries spliced in (`sae.splice`): single latents, and what a dictionary misses as a whole.
They need `at`, the site that the dictionary writes."""

_INDEX = {
    "heads": "head", "result": "head", "neurons": "neuron", "tokens": "token", "pool_heads": "head",
    "latents": "latent",
}  # fmt: skip


@dataclass(frozen=True, order=True)
class Unit:
    """One thing to ablate."""

    layer: int
    """Block index; for `pool_heads` the number of blocks."""
    kind: str
    """One of `KINDS`, `SPECIAL_KINDS` or `SPLICED_KINDS`."""
    index: int | None = None
    """Head, neuron, token, group or latent; None for a whole layer's write."""
    group: str | None = None
    """Name of a group of patches."""
    tokens: tuple[int, ...] | None = None
    """Tokens of a group of patches; None where they differ from image to image."""
    at: str | None = None
    """Site that the dictionary of a latent writes."""

    @property
    def site(self) -> str:
        """Canonical site name."""
        if self.kind in SPLICED_KINDS:
            return f"{self.at}.{'hook_latents' if self.kind == 'latents' else 'hook_error'}"
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
        if self.kind in SPLICED_KINDS:
            place = str(self.at).rsplit("hook_", 1)[-1]
            return f"L{self.layer} {place} " + ("error" if self.kind == "errors" else f"latent {self.index}")
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
        return {**row, "at": self.at} if self.kind in SPLICED_KINDS else row

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
        word = {"neurons": "units", "latents": "units", "tokens": "tokens"}.get(self.kind, "heads")
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
        units: a kind (`heads`, `result`, `attn_out`, `mlp_out`, `neurons`, `tokens`, `patches`, `pool_heads`; with
            dictionaries spliced in `latents`, `errors`), or a list of units.
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
    if units not in (*KINDS, *SPECIAL_KINDS, *SPLICED_KINDS):
        raise unknown("unit kind", units, [*KINDS, *SPECIAL_KINDS, *SPLICED_KINDS])
    if units in SPLICED_KINDS:
        return _of_splices(parts, units, wanted)
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
    if unit.kind not in (*KINDS, *SPECIAL_KINDS, *SPLICED_KINDS):
        raise unknown("unit kind", unit.kind, [*KINDS, *SPECIAL_KINDS, *SPLICED_KINDS])
    n_layers = len(parts.blocks)
    if unit.kind in SPLICED_KINDS:
        _check_spliced(unit, parts)
        return
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


def _check_spliced(unit: Unit, parts: Any) -> None:
    if not parts.splices:
        raise BadData(f"{unit!r}: this model has no dictionary: sae.splice(model, dictionary).")
    for splice in parts.splices:
        if splice.site != unit.at or not splice.site.startswith(f"blocks.{unit.layer}."):
            continue
        whole = unit.kind == "errors"
        if splice.error and unit.index is None if whole else _within(unit.index, splice.n_latents):
            return
    have = ", ".join(f"{s.n_latents} at {s.site}{'' if s.error else ' without error term'}" for s in parts.splices)
    raise OutOfRange(f"{unit!r} does not exist: this model's dictionaries have latents {have}.")


def _within(index: int | None, count: int) -> bool:
    return index is not None and 0 <= index < count


def _of_splices(parts: Any, kind: str, layers: Iterable[int]) -> list[Unit]:
    """Latents (or error terms) of the dictionaries inside these layers."""
    if not parts.splices:
        raise BadData(f"this model has no dictionary, so it has no {kind}: sae.splice(model, dictionary).")
    found = []
    for splice in parts.splices:
        words = splice.site.split(".")
        if words[0] != "blocks" or int(words[1]) not in layers:
            continue
        layer = int(words[1])
        if kind == "latents":
            found += [Unit(layer, kind, i, at=splice.site) for i in range(splice.n_latents)]
        elif splice.error:
            found.append(Unit(layer, kind, at=splice.site))
    if not found:
        have = ", ".join(f"{s.site} ({'with' if s.error else 'without'} error term)" for s in parts.splices)
        raise BadData(f"no dictionary with {kind} inside these layers; this model's write {have}.")
    return sorted(found, key=_order)


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
    return unit.layer, unit.kind, index, unit.group or "", unit.tokens or (), unit.at or ""


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
