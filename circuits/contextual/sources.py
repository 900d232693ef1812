"""Sources: whose part `beta` is. Heads, MLPs, neurons, tokens of a stream, the embedding, or several of them jointly.

A source is put in at a site by `beta = t - value`, `gamma = value` on its selection, where `value` is a reference
(mean per position, zero, another image): what would be there without it.

Names are those of circuits: `embed`, `L0H1`, `L0MLP`, `pool H0`; further `L0 neuron 5`, `L0 token 3`, `L0 attn_out`
(as :class:`mechvis.units.Unit` names them).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from mechvis.errors import BadData, ShapeMismatch, UnknownName
from mechvis.patches import Groups, patch_groups
from mechvis.units import Unit, units_of

KINDS = ("heads", "mlp_out", "attn_out", "neurons", "tokens", "pool_heads", "embed")
"""Words that stand for every unit of a kind; `tokens` are those of the embedding unless `layers=` says otherwise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """One place of a source."""

    site: str
    """Site at which it is put in."""
    layer: int
    """Block; the number of blocks for the pooling."""
    axis: int | None = None
    """Axis of the selected index from behind: -2 for a head, -1 for a neuron; None: everything."""
    index: int = 0
    """Head or neuron."""
    tokens: tuple[int, ...] | Bool[Tensor, "image token"] | None = None
    """Tokens: indices, or a mask with one row for all images or one row each; None: all."""

    def where(self, total: Tensor, images: Sequence[int]) -> Bool[Tensor, "image *rest"]:
        """The selection, to be broadcast to an activation of these images."""
        mask = torch.ones(*(1,) * total.ndim, dtype=torch.bool, device=total.device)
        if self.axis is not None:
            chosen = torch.arange(total.shape[self.axis], device=total.device) == self.index
            mask = mask & chosen.reshape(-1, *(1,) * (-self.axis - 1))
        if self.tokens is not None:
            rows = self._tokens(total.shape[1], images).to(total.device)
            mask = mask & rows.reshape(*rows.shape, *(1,) * (total.ndim - 2))
        return mask

    def _tokens(self, n_tokens: int, images: Sequence[int]) -> Bool[Tensor, "image token"]:
        if isinstance(self.tokens, Tensor):
            rows = self.tokens if len(self.tokens) == 1 else self.tokens[list(images)]
        else:
            rows = torch.zeros(1, max(n_tokens, 1 + max(self.tokens)), dtype=torch.bool)
            rows[0, list(self.tokens)] = True
        if rows.shape[1] != n_tokens:
            raise ShapeMismatch(
                f"a source at {self.site} is at tokens of {rows.shape[1]}, and these images have {n_tokens} tokens."
            )
        return rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """One source: a place, or several whose joint part is asked for. Made by :func:`sources_of`."""

    name: str
    """How it is called in results."""
    pieces: tuple[Piece, ...]
    """Where it is."""
    row: dict[str, Any] = field(default_factory=dict)
    """Further columns of a result: layer, head, neuron, token, group."""

    @property
    def layer(self) -> int:
        """First block that it touches."""
        return min(piece.layer for piece in self.pieces)

    def at(self, group: str, tokens: Bool[Tensor, "image token"]) -> "Source":
        """The same at some tokens only."""
        for piece in self.pieces:
            if piece.tokens is not None or piece.site.startswith("pool."):
                raise BadData(f"the source {self.name!r} cannot be restricted to the tokens {group!r} of the stream.")
        pieces = tuple(replace(piece, tokens=tokens) for piece in self.pieces)
        return Source(name=f"{self.name} {group}", pieces=pieces, row={**self.row, "group": group})


def sources_of(model: Any, sources: Any, *, layers: Iterable[int] | None = None) -> list[Source]:
    """The sources that are asked for.

    Args:
        model: a wrapped model.
        sources: one of
            a word of `KINDS`: every unit of the kind;
            a name (`L0H1`);
            a list of names, units (:class:`mechvis.units.Unit`), sources, or of lists of these, whose members are one
            joint source;
            a mapping from names to such entries.
        layers: only these blocks, for words.

    Raises:
        UnknownName: a word or name that is none; says what can be named.
        OutOfRange: a layer, head, neuron or token that does not exist.
        BadData: no source, one listed twice, or a joint source whose parts overlap.

    Example:
        >>> [source.name for source in sources_of(model, ["L0H1", ["L0H2", "L1MLP"]])]              # doctest: +SKIP
        ['L0H1', 'L0H2 + L1MLP']
    """
    if isinstance(sources, str) and sources in KINDS and sources != "embed":
        at = [0] if sources == "tokens" and layers is None else layers
        found = [_of_unit(model, unit) for unit in units_of(model, sources, at)]
    elif layers is not None:
        raise BadData(f"layers= goes with a word ({', '.join(KINDS)}), not with sources that are listed.")
    elif isinstance(sources, str | Unit | Source):
        found = [_of_entry(model, sources)]
    elif isinstance(sources, Mapping):
        found = [replace(_of_entry(model, entry), name=str(name)) for name, entry in sources.items()]
    elif isinstance(sources, Sequence):
        found = [_of_entry(model, entry) for entry in sources]
    else:
        raise BadData(f"sources are a word ({', '.join(KINDS)}), names, units, or lists of them; got {sources!r}.")
    if not found:
        raise BadData("no sources given.")
    names = [source.name for source in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadData(f"the source {twice[0]!r} is listed twice.")
    return found


def joint(sources: Sequence[Source], name: str | None = None) -> Source:
    """Several sources as one.

    Raises:
        BadData: fewer than one, or two that overlap.
    """
    if not sources:
        raise BadData("a joint source needs at least one part.")
    pieces = tuple(piece for source in sources for piece in source.pieces)
    keys = [(piece.site, piece.axis, piece.index) for piece in pieces]
    for i, (one, key) in enumerate(zip(pieces, keys, strict=True)):
        for other, same in zip(pieces[:i], keys[:i], strict=True):
            if key == same and _overlap(one.tokens, other.tokens):
                raise BadData(f"two parts of a joint source are at the same place of {one.site}.")
    return Source(name=name or " + ".join(source.name for source in sources), pieces=pieces)


def _overlap(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return True
    if isinstance(one, tuple) and isinstance(other, tuple):
        return bool(set(one) & set(other))
    if isinstance(one, tuple):
        one, other = other, one
    return bool(one[:, list(other)].any() if isinstance(other, tuple) else (one & other).any())


def at_groups(model: Any, images: Any, sources: Sequence[Source], groups: Any) -> list[Source]:
    """Every source at every group of tokens. Prefix tokens that are in none of the groups become groups of their own:
    `cls`, `registers` and kin, so that the groups of masks and grids cover all tokens.

    Args:
        model: a wrapped vision model.
        images: the images that will be decomposed.
        sources: whole sources.
        groups: whatever :func:`mechvis.patches.patch_groups` takes.

    Raises:
        BadData, ShapeMismatch, OutOfRange: as `patch_groups`; BadData: a source of tokens or of the pooling.
    """
    found: Groups = patch_groups(model, images, groups)
    members = dict(zip(found.names, found.members.unbind(1), strict=True))
    taken = found.members.any(0).any(0)
    for i, word in enumerate(model.parts.prefix):
        if not taken[i]:
            name = "registers" if word.startswith("register") else word
            members.setdefault(name, torch.zeros(1, found.members.shape[-1], dtype=torch.bool))[:, i] = True
    return [source.at(name, tokens) for source in sources for name, tokens in members.items()]


_NAMES = {
    r"L(\d+)H(\d+)": lambda a: Unit(a[0], "heads", a[1]),
    r"L(\d+)MLP": lambda a: Unit(a[0], "mlp_out"),
    r"L(\d+) (?:mlp_out)": lambda a: Unit(a[0], "mlp_out"),
    r"L(\d+) attn_out": lambda a: Unit(a[0], "attn_out"),
    r"L(\d+) neuron (\d+)": lambda a: Unit(a[0], "neurons", a[1]),
    r"L(\d+) token (\d+)": lambda a: Unit(a[0], "tokens", a[1]),
}


def _of_entry(model: Any, entry: Any) -> Source:
    if isinstance(entry, Source):
        return entry
    if isinstance(entry, Unit):
        return _of_unit(model, entry)
    if isinstance(entry, str):
        return _of_name(model, entry)
    if isinstance(entry, Sequence):
        return joint([_of_entry(model, part) for part in entry])
    raise BadData(f"a source is a name, a unit, or a list of these (a joint source); got {entry!r}.")


def _of_name(model: Any, name: str) -> Source:
    if name == "embed":
        return Source(name="embed", pieces=(Piece(site="blocks.0.hook_resid_pre", layer=0),))
    if pooled := re.fullmatch(r"pool H(\d+)", name):
        return _of_unit(model, Unit(len(model.parts.blocks), "pool_heads", int(pooled[1])))
    for pattern, make in _NAMES.items():
        if found := re.fullmatch(pattern, name):
            return _of_unit(model, make([int(number) for number in found.groups()]))
    raise UnknownName(
        f"unknown source {name!r}. Names: 'embed', 'L0H1', 'L0MLP', 'L0 attn_out', 'L0 neuron 5', 'L0 token 3', "
        f"'pool H0'; or a word for all of a kind: {', '.join(KINDS)}."
    )


def _of_unit(model: Any, unit: Unit) -> Source:
    units_of(model, [unit])  # it exists
    if unit.kind == "result":
        raise BadData(f"{unit.name}: a head is put in at attn.hook_z; use the kind 'heads'.")
    row = {key: value for key, value in unit.row().items() if key != "unit"}
    more: dict[str, Any] = {}
    if unit.kind in ("heads", "pool_heads"):
        more = {"axis": -2, "index": unit.index}
    elif unit.kind == "neurons":
        more = {"axis": -1, "index": unit.index}
    elif unit.kind in ("tokens", "patches"):
        more = {"tokens": (unit.index,) if unit.kind == "tokens" else unit.tokens}
    name = f"L{unit.layer}MLP" if unit.kind == "mlp_out" else unit.name
    return Source(name=name, pieces=(Piece(site=unit.site, layer=unit.layer, **more),), row=row)


def representatives(model: Any, sources: Sequence[Source]) -> list[Unit]:
    """One unit for each site that holds a source: what the reference values are asked for by."""
    kinds = {
        "attn.hook_z": ("heads", 0),
        "hook_attn_out": ("attn_out", None),
        "hook_mlp_out": ("mlp_out", None),
        "mlp.hook_post": ("neurons", 0),
        "hook_resid_pre": ("tokens", 0),
    }
    found = {}
    for piece in (piece for source in sources for piece in source.pieces):
        if piece.site.startswith("pool."):
            found[piece.site] = Unit(len(model.parts.blocks), "pool_heads", 0)
        else:
            kind, index = kinds[piece.site.split(".", 2)[2]]
            found[piece.site] = Unit(piece.layer, kind, index)
    return sorted(found.values(), key=lambda unit: (unit.layer, unit.kind))
