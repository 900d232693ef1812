"""From a list of edits to index arrays: parse, plan, apply.

1. *Resolve*: each edit's site pattern becomes site names of this model's graph; heads, layers, units are checked
   against it before anything runs.
2. *Index*: when the activation arrives, every edit at that site becomes flat arrays of targets `(row, token, group)`
   with a keep factor, a gain and a table row (see `mechvis.kernels.patch_rows`).
3. *Merge*: edits that touch different targets share one launch; an edit that touches a target again starts the next
   launch, so order is kept. `project` and `call` are launches of their own.

Activations of any site are viewed as `[row token group width]`: heads are groups; the plain stream has one group;
attention scores count as `[row query head key]`; a selection of units makes every unit a group of width 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from mechvis.edits import Edit
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, UnknownSite
from mechvis.graph import HookGraph, SiteInfo
from mechvis.kernels.patch_rows import patch_rows

AFFINE = ("zero", "mean", "mean_positional", "resample", "patch", "freeze", "add", "scale")


@dataclass(frozen=True)
class Targets:
    """Index arrays of one or more edits at one site, ready for `patch_rows`."""

    row: Tensor
    token: Tensor
    group: Tensor
    keep: Tensor
    gain: Tensor
    table: Tensor | None
    source: Tensor | None
    by_unit: bool
    """Groups are single units of the last axes."""


@dataclass(frozen=True)
class Plan:
    """Edits of one run, by site."""

    at: dict[str, tuple[Edit, ...]]
    prefix: tuple[str, ...]
    graph: HookGraph

    @property
    def sites(self) -> frozenset[str]:
        """Sites with at least one edit."""
        return frozenset(self.at)


def plan(edits: Sequence[Edit], graph: HookGraph, prefix: tuple[str, ...]) -> Plan:
    """Resolve edits against a model.

    Args:
        edits: in the order they apply.
        graph: the model's hook graph.
        prefix: names of the tokens before the patches.

    Raises:
        UnknownSite, OutOfRange, BadData, ShapeMismatch: what the edit asks for does not exist here.
    """
    at: dict[str, list[Edit]] = {}
    for edit in edits:
        if not isinstance(edit, Edit):
            raise BadData(f"edits are made with mechvis.edits (zero, patch, ...); got {type(edit).__name__}.")
        for name in graph.match(edit.site):
            _check(edit, graph[name])
            at.setdefault(name, []).append(edit)
    return Plan({name: tuple(found) for name, found in at.items()}, prefix, graph)


def apply(plan: Plan, name: str, x: Tensor) -> Tensor:
    """The activation at site `name` with all its edits applied; `x` itself stays as it is."""
    site = plan.graph[name]
    view = _to_view(site, x)
    pending: list[Targets] = []
    for edit in plan.at[name]:
        if edit.kind not in AFFINE:
            view, pending = _launch(view, pending), []
            view = _apply_function(edit, plan, view)
            continue
        targets = _targets(edit, plan, name, view)
        if pending and not _disjoint(pending, targets, view):
            view, pending = _launch(view, pending), []
        pending.append(targets)
    return _from_view(site, _launch(view, pending))


def _check(edit: Edit, site: SiteInfo) -> None:
    sizes = dict(zip(site.axes, site.sizes, strict=True))
    for word, chosen, axis in (("head", edit.heads, "head"), ("unit", edit.units, site.axes[-1])):
        if chosen is None:
            continue
        size = sizes.get(axis)
        if axis not in sizes or (word == "unit" and axis == "one"):
            raise BadData(f"{edit!r}: {site.name} has no {word} axis; its axes are {' '.join(site.axes)}.")
        if size is not None and not all(-size <= c < size for c in chosen):
            raise OutOfRange(
                f"{edit!r}: {word} {max(chosen)} does not exist at {site.name}, which has {size} (0 to {size - 1})."
            )
    token_axis = "token" if "token" in sizes else "query" if "query" in sizes else None
    if edit.tokens is not None and token_axis is None:
        raise BadData(f"{edit!r}: {site.name} has no token axis; its axes are {' '.join(site.axes)}.")
    if edit.values is not None and "*" not in edit.values and site.name not in edit.values:
        have = ", ".join(list(edit.values)[:3])
        raise UnknownSite(
            f"{edit!r}: the source holds no values for {site.name}; it has {have} ... "
            f"Capture that site, or compute its means: mechvis.means(model, images, {site.name!r})."
        )


def _to_view(site: SiteInfo, x: Tensor) -> Tensor:
    if "key" in site.axes:
        return rearrange(x, "row head query key -> row query head key")
    if x.ndim == 4:
        return x
    return x[:, :, None, :] if x.ndim == 3 else x[:, None, None, :]


def _from_view(site: SiteInfo, view: Tensor) -> Tensor:
    if "key" in site.axes:
        return rearrange(view, "row query head key -> row head query key")
    return {4: view, 3: view[:, :, 0], 2: view[:, 0, 0]}[len(site.axes)]


def _indices(chosen: Sequence[int] | None, size: int, word: str, edit: Edit, device: torch.device) -> Tensor:
    if chosen is None:
        return torch.arange(size, device=device)
    for c in chosen:
        if not -size <= c < size:
            raise OutOfRange(f"{edit!r}: {word} {c} does not exist; there are {size} (0 to {size - 1}).")
    return torch.tensor([c % size for c in chosen], device=device)


def _tokens(edit: Edit, prefix: tuple[str, ...], n_rows: int, n_tokens: int, device: torch.device) -> Tensor:
    """Which tokens of which rows, bool `[row token]`."""
    chosen = torch.zeros(n_rows, n_tokens, dtype=torch.bool, device=device)
    n_prefix = len(prefix)
    if edit.tokens is None:
        chosen[:] = True
    elif isinstance(edit.tokens, Tensor):
        mask = edit.tokens.to(device)
        n_patches = n_tokens - n_prefix
        if mask.shape[-1] == n_patches and n_prefix:
            # A mask over patches is what image masks give; the prefix stays out of it.
            mask = torch.cat([mask.new_zeros(*mask.shape[:-1], n_prefix), mask], dim=-1)
        if mask.shape[-1] != n_tokens or (mask.ndim == 2 and mask.shape[0] != n_rows):
            raise ShapeMismatch(
                f"{edit!r}: the token mask is {list(edit.tokens.shape)}; this run has {n_rows} rows of "
                f"{n_tokens} tokens ({n_prefix} prefix + {n_patches} patches)."
            )
        chosen |= mask
    elif edit.tokens == "patches":
        chosen[:, n_prefix:] = True
    elif edit.tokens == "prefix":
        chosen[:, :n_prefix] = True
    elif isinstance(edit.tokens, str):
        name = {"cls": "cls", "registers": "register"}[edit.tokens]
        found = [i for i, word in enumerate(prefix) if word.startswith(name)]
        if not found:
            raise BadData(f"{edit!r}: this model has no {edit.tokens} token; its prefix is {list(prefix)}.")
        chosen[:, found] = True
    else:
        chosen[:, _indices(edit.tokens, n_tokens, "token", edit, device)] = True
    return chosen


def fixed_tokens(edit: Edit, prefix: tuple[str, ...], n_tokens: int) -> set[int] | None:
    """The tokens that an edit touches in any row, or None for all tokens."""
    if edit.tokens is None:
        return None
    rows = edit.tokens.shape[0] if isinstance(edit.tokens, Tensor) and edit.tokens.ndim == 2 else 1
    chosen = _tokens(edit, prefix, rows, n_tokens, torch.device("cpu"))
    return set(chosen.any(0).nonzero().flatten().tolist())


def _targets(edit: Edit, plan: Plan, name: str, view: Tensor) -> Targets:
    n_rows, n_tokens, n_groups, width = view.shape
    device = view.device
    rows = _indices(edit.rows, n_rows, "row", edit, device)
    chosen = torch.zeros(n_rows, n_tokens, dtype=torch.bool, device=device)
    chosen[rows] = _tokens(edit, plan.prefix, n_rows, n_tokens, device)[rows]
    groups = _indices(edit.heads, n_groups, "head", edit, device)
    by_unit = edit.units is not None
    if by_unit:
        units = _indices(edit.units, width, "unit", edit, device)
        groups = (groups[:, None] * width + units[None]).flatten()
    row, token = chosen.nonzero(as_tuple=True)
    n = len(groups)
    row, token, group = row.repeat_interleave(n), token.repeat_interleave(n), groups.repeat(len(row))
    keep, gain = {"zero": (0.0, 0.0), "scale": (edit.factor, 0.0), "add": (1.0, edit.factor)}.get(edit.kind, (0.0, 1.0))
    table = source = None
    if edit.values is not None:
        values = edit.values.get(name, edit.values.get("*"))
        table, source = _table(edit, plan.graph[name], values.to(device, view.dtype), view, row, token, group, by_unit)
    fill = view.new_full((len(row),), 1.0)
    return Targets(row, token, group, fill * keep, fill * gain, table, source, by_unit)


def _table(
    edit: Edit, site: SiteInfo, values: Tensor, view: Tensor, row: Tensor, token: Tensor, group: Tensor, by_unit: bool
) -> tuple[Tensor, Tensor]:
    """Values as table rows, and which of them each target takes."""
    n_rows, n_tokens, n_groups, width = view.shape
    positional = edit.kind in ("mean", "mean_positional")
    if edit.kind == "add":
        shape = tuple(_from_view(site, view).shape)
        try:
            full = _to_view(site, values.broadcast_to(shape))
        except RuntimeError as error:
            raise ShapeMismatch(
                f"{edit!r}: a vector of shape {list(values.shape)} does not broadcast to {site.name} "
                f"{list(shape)} ({' '.join(site.axes)})."
            ) from error
        values, origin = full, row
    elif positional:
        values = _to_view(site, values[None])
        origin = torch.zeros_like(row)
    else:
        values = _to_view(site, values)
        if edit.source_rows is None:
            origin = row
            if values.shape[0] != n_rows:
                raise ShapeMismatch(
                    f"{edit!r}: the source has {values.shape[0]} rows, the batch {n_rows}; "
                    "say which goes where with source_rows=."
                )
        else:
            wanted = edit.source_rows * n_rows if len(edit.source_rows) == 1 else edit.source_rows
            if len(wanted) != n_rows or not all(-values.shape[0] <= s < values.shape[0] for s in wanted):
                raise ShapeMismatch(
                    f"{edit!r}: source_rows needs one row of the source (0 to {values.shape[0] - 1}) "
                    f"for each of the {n_rows} rows, got {_few(wanted)}."
                )
            origin = (torch.tensor(wanted, device=row.device) % values.shape[0])[row]
    if values.shape[1:] != (n_tokens, n_groups, width):
        raise ShapeMismatch(
            f"{edit!r}: values of shape {list(values.shape[1:])} do not fit {site.name} "
            f"{[n_tokens, n_groups, width]} (token head d)."
        )
    if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
        raise BadData(f"{edit!r}: the values hold NaN or Inf.")
    if by_unit:
        return values.reshape(-1, 1), (origin * n_tokens + token) * n_groups * width + group
    return values.reshape(-1, width), (origin * n_tokens + token) * n_groups + group


def _few(values: Sequence[int]) -> str:
    return f"{list(values[:5])}{' ...' if len(values) > 5 else ''} ({len(values)})"


def _disjoint(pending: list[Targets], new: Targets, view: Tensor) -> bool:
    """May `new` join the launch: same granularity, no target twice?"""
    if any(done.by_unit != new.by_unit for done in pending):
        return False
    n_groups = view.shape[2] * (view.shape[3] if new.by_unit else 1)
    keys = [(t.row * view.shape[1] + t.token) * n_groups + t.group for t in [*pending, new]]
    together = torch.cat(keys)
    return together.unique().numel() == together.numel()


def _launch(view: Tensor, pending: list[Targets]) -> Tensor:
    if not pending:
        return view
    merged = pending[0] if len(pending) == 1 else _merge(pending)
    x = view.reshape(*view.shape[:2], -1, 1) if merged.by_unit else view
    # `_disjoint` has seen to it that no target comes twice.
    targets = (merged.row, merged.token, merged.group, merged.keep, merged.gain, merged.table, merged.source)
    x = patch_rows(x, *targets, check=False)
    return x.reshape(view.shape)


def _merge(pending: list[Targets]) -> Targets:
    def joined(field: str) -> Tensor:
        return torch.cat([getattr(t, field) for t in pending])

    tables, sources, start = [], [], 0
    for targets in pending:
        if targets.table is None:
            sources.append(torch.full_like(targets.row, -1))
            continue
        # Only the rows in use travel: a source cache can be far larger than what is taken from it.
        used, position = targets.source.unique(return_inverse=True)
        tables.append(targets.table[used])
        sources.append(position + start)
        start += len(used)
    table = torch.cat(tables) if tables else None
    return Targets(
        joined("row"),
        joined("token"),
        joined("group"),
        joined("keep"),
        joined("gain"),
        table,
        torch.cat(sources) if tables else None,
        pending[0].by_unit,
    )


def _apply_function(edit: Edit, plan: Plan, view: Tensor) -> Tensor:
    n_rows, n_tokens, n_groups, width = view.shape
    device = view.device
    rows = _indices(edit.rows, n_rows, "row", edit, device)
    groups = _indices(edit.heads, n_groups, "head", edit, device)
    units = _indices(edit.units, width, "unit", edit, device)
    mask = _tokens(edit, plan.prefix, n_rows, n_tokens, device)[rows]
    if not (mask == mask[:1]).all():
        if edit.kind == "call" and not getattr(edit.fn, "by_vector", False):
            raise BadData(f"{edit!r}: call needs the same tokens in every row; give one edit per row instead.")
        index = mask.nonzero(as_tuple=True)
        rows, tokens = rows[index[0]][:, None], index[1][:, None]
        grid = (rows[..., None], tokens[..., None], groups[None, :, None], units[None, None, :])
    else:
        tokens = mask[0].nonzero().flatten()
        grid = (rows[:, None, None, None], tokens[None, :, None, None], groups[None, None, :, None], units)
    old = view[grid]
    if edit.kind == "project":
        basis = edit.values["*"].to(device)
        if basis.shape[1] != width:
            raise ShapeMismatch(f"{edit!r}: directions have {basis.shape[1]} entries, the site {width}.")
        basis = basis.to(torch.promote_types(old.dtype, torch.float32))
        wide = old.to(basis.dtype)
        new = (wide - (wide @ basis.T) @ basis).to(old.dtype)
    else:
        given = old.squeeze(-2) if n_groups == 1 else old
        new = edit.fn(given)
        if not isinstance(new, Tensor) or new.shape != given.shape:
            seen = list(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise ShapeMismatch(
                f"{edit!r}: the function must return a tensor of shape {list(given.shape)}, got {seen}."
            )
        new = new.reshape(old.shape)
    return view.index_put(tuple(torch.broadcast_tensors(*grid)), new.to(view.dtype))
