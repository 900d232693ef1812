"""Interventions as values: what to change, where, for which rows, tokens, heads and units.

An edit is a small frozen object. It prints, compares, hashes by content, and saves to JSON with its tensors beside it
in safetensors. `model.run(images, edits=[...])` applies a list of them in order; different rows of a batch may carry
different edits.

Selections are rectangles: rows x tokens x heads (x units). `tokens` may also be a name (`"cls"`, `"registers"`,
`"prefix"`, `"patches"`) or a bool mask `[token]` or `[row token]`.
"""

import hashlib
import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from mechvis.errors import BadData, OutputNotWritable, ShapeMismatch, StoreCorrupt, unknown

if TYPE_CHECKING:
    from mechvis.cards.data import CardData
    from mechvis.cards.faithfulness_card import FaithfulnessCard

KINDS = ("zero", "mean", "mean_positional", "resample", "patch", "add", "scale", "project", "freeze", "call")
TOKEN_NAMES = ("cls", "registers", "prefix", "patches")

Rows = Sequence[int] | None
Tokens = str | Sequence[int] | Tensor | None


@runtime_checkable
class SavedFunction(Protocol):
    """A function for `call` that is data: it prints, compares and saves by its content.

    Loading looks its name up among the entry points `mechvis.edit_functions` of installed packages; nothing of the file
    is run. One with `by_vector = True` changes each vector by itself, so its edit may have other tokens in every row.
    """

    NAME: ClassVar[str]
    """Its name in files."""

    def __call__(self, x: Tensor) -> Tensor:
        """The selected slice, changed."""
        ...

    def describe(self) -> dict[str, Any]:
        """What identifies it, as JSON."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Its numbers."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What is written, beside the tensors; may refuse."""
        ...

    @classmethod
    def from_json(cls, known: Mapping[str, Any], tensors: Mapping[str, Tensor], near: Path) -> Self:
        """The function again; `near`: folder of the edits' file."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Edit:
    """One intervention. Make it with the functions of this module."""

    kind: str
    """One of `KINDS`."""
    site: str
    """Site name or glob pattern over canonical names."""
    rows: tuple[int, ...] | None = None
    """Batch rows; None for all."""
    tokens: str | tuple[int, ...] | Tensor | None = None
    """Token positions; None for all."""
    heads: tuple[int, ...] | None = None
    """Heads; None for all."""
    units: tuple[int, ...] | None = None
    """Indices on the last axis (neurons, channels); None for all."""
    values: Mapping[str, Tensor] | None = None
    """Values per canonical site (means, another run's activations, a vector under the key `*`)."""
    source_rows: tuple[int, ...] | None = None
    """For patch and resample: which row of the source goes to each row of the batch."""
    factor: float = 1.0
    """For add and scale."""
    fn: Callable[[Tensor], Tensor] | None = None
    """For call: gets the selected slice and returns its replacement."""

    def __repr__(self) -> str:
        selection = [
            f"{name}={_short(value)}"
            for name in ("rows", "tokens", "heads", "units")
            if (value := getattr(self, name)) is not None
        ]
        extra = [f"factor={self.factor:g}"] if self.kind in ("add", "scale") else []
        extra += [repr(self.fn)] if isinstance(self.fn, SavedFunction) else []
        return f"edits.{self.kind}({', '.join([repr(self.site), *selection, *extra])})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Edit) or self.fingerprint != other.fingerprint:
            return False
        return self.fn is other.fn or isinstance(self.fn, SavedFunction)

    def __hash__(self) -> int:
        return hash((self.fingerprint, None if isinstance(self.fn, SavedFunction) else self.fn))

    @property
    def fingerprint(self) -> str:
        """Hash of the edit's content (a function that is no data counts by its name)."""
        digest = hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Plain JSON of everything but the tensors."""
        return {
            "kind": self.kind,
            "site": self.site,
            "rows": self.rows,
            "heads": self.heads,
            "units": self.units,
            "tokens": "tensor" if isinstance(self.tokens, Tensor) else self.tokens,
            "source_rows": self.source_rows,
            "factor": self.factor,
            "fn": self._function(),
            "shapes": {name: [str(t.dtype), *t.shape] for name, t in sorted(self._tensors().items())},
        }

    def card(self, data: "CardData", level: str = "smoke", seed: int = 0) -> "FaithfulnessCard":
        """How far to believe that this edit does what it should: see :func:`mechvis.cards.edit_card` (which takes
        several edits, and the metric and images that they are meant for)."""
        from mechvis.cards.of_edit import edit_card

        return edit_card(self, data, level=level, seed=seed)

    def _function(self) -> Any:
        if isinstance(self.fn, SavedFunction):
            return {"name": self.fn.NAME, **self.fn.describe()}
        return None if self.fn is None else getattr(self.fn, "__qualname__", repr(type(self.fn)))

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"values/{name}": t for name, t in (self.values or {}).items()}
        if isinstance(self.fn, SavedFunction):
            tensors |= {f"fn/{name}": t for name, t in self.fn.tensors().items()}
        if isinstance(self.tokens, Tensor):
            tensors["tokens"] = self.tokens
        return tensors


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"mask{list(value.shape)}"
    text = repr(list(value)) if isinstance(value, tuple) else repr(value)
    return text if len(text) < 40 else text[:36] + "...]"


def _ints(name: str, value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        chosen = (value,) if isinstance(value, int) else tuple(operator.index(v) for v in value)
    except TypeError as error:
        raise BadData(f"{name}={value!r}: expected an index or a list of them.") from error
    if not chosen:
        raise BadData(f"{name}=[] selects nothing; leave it out to select all.")
    if len(set(chosen)) != len(chosen):
        raise BadData(f"{name}={list(chosen)} repeats an index.")
    return chosen


def _edit(kind: str, site: str, rows: Rows, tokens: Tokens, heads: Rows, units: Rows, **more: Any) -> Edit:
    if not isinstance(site, str):
        raise BadData(f"a site is a string such as 'blocks.3.attn.hook_z', got {type(site).__name__}.")
    if isinstance(tokens, str):
        if tokens not in TOKEN_NAMES:
            raise unknown("token group", tokens, TOKEN_NAMES)
    elif isinstance(tokens, Tensor):
        if tokens.dtype != torch.bool or tokens.ndim not in (1, 2):
            raise ShapeMismatch(
                f"a token mask is bool [token] or [row token], got {tokens.dtype} {list(tokens.shape)}."
            )
        if not tokens.any():
            raise BadData("the token mask selects no token of any row.")
    else:
        tokens = _ints("tokens", tokens)
    return Edit(
        kind=kind,
        site=site,
        rows=_ints("rows", rows),
        tokens=tokens,
        heads=_ints("heads", heads),
        units=_ints("units", units),
        **more,
    )


def zero(site: str, *, rows: Rows = None, tokens: Tokens = None, heads: Rows = None, units: Rows = None) -> Edit:
    """Set to zero. Off-distribution where the component has a large mean: compare with `mean` (methods.md 0.3).

    Args:
        site: site name or pattern.
        rows, tokens, heads, units: the selection; all where left out.

    Example:
        >>> zero("blocks.3.attn.hook_z", heads=[1])
        edits.zero('blocks.3.attn.hook_z', heads=[1])
    """
    return _edit("zero", site, rows, tokens, heads, units)


def mean(
    site: str,
    reference: Mapping[str, Tensor],
    *,
    rows: Rows = None,
    tokens: Tokens = None,
    heads: Rows = None,
    units: Rows = None,
) -> Edit:
    """Replace by the mean over reference images and token positions.

    Args:
        site: site name or pattern.
        reference: `mechvis.means(model, images, sites)`: positional means `[token ...]` per site.
    """
    values = {name: value.mean(0, keepdim=True).expand_as(value) for name, value in dict(reference).items()}
    return _edit("mean", site, rows, tokens, heads, units, values=values)


def mean_positional(
    site: str,
    reference: Mapping[str, Tensor],
    *,
    rows: Rows = None,
    tokens: Tokens = None,
    heads: Rows = None,
    units: Rows = None,
) -> Edit:
    """Replace by the mean over reference images at the same token position: the default ablation for vision.

    Args:
        site: site name or pattern.
        reference: `mechvis.means(model, images, sites)`: positional means `[token ...]` per site.
    """
    return _edit("mean_positional", site, rows, tokens, heads, units, values=dict(reference))


def resample(
    site: str,
    source: Mapping[str, Tensor] | Tensor,
    source_rows: Sequence[int] | int | None = None,
    *,
    rows: Rows = None,
    tokens: Tokens = None,
    heads: Rows = None,
    units: Rows = None,
    seed: int | None = None,
) -> Edit:
    """Replace by the value on another image, drawn by `seed` or named by `source_rows`.

    Args:
        site: site name or pattern.
        source: a run's cache with the sites, or one tensor `[image ...]`.
        source_rows: image of the source for each row of the batch.
        seed: draw the images at random instead; one of the two is needed.
    """
    values = _sources(source)
    if source_rows is None:
        if seed is None:
            raise BadData("resample needs source_rows= (which image for which row) or seed= (draw them).")
        n = next(iter(values.values())).shape[0]
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        source_rows = order.tolist()
    return _edit("resample", site, rows, tokens, heads, units, values=values, source_rows=_source_rows(source_rows))


def patch(
    site: str,
    source: Mapping[str, Tensor] | Tensor,
    source_rows: Sequence[int] | int | None = None,
    *,
    rows: Rows = None,
    tokens: Tokens = None,
    heads: Rows = None,
    units: Rows = None,
) -> Edit:
    """Replace by the value of another run (activation patching).

    Args:
        site: site name or pattern.
        source: the other run's cache, or one tensor `[image ...]`.
        source_rows: row of the source for each row of the batch; the same row where left out.

    Example:
        >>> corrupt = model.run(pixels_b, capture=["blocks.3.attn.hook_z"])                      # doctest: +SKIP
        >>> model.run(pixels_a, edits=[patch("blocks.3.attn.hook_z", corrupt.cache, heads=[1])])  # doctest: +SKIP
    """
    return _edit(
        "patch",
        site,
        rows,
        tokens,
        heads,
        units,
        values=_sources(source),
        source_rows=None if source_rows is None else _source_rows(source_rows),
    )


def freeze(
    site: str,
    cache: Mapping[str, Tensor],
    *,
    rows: Rows = None,
    tokens: Tokens = None,
    heads: Rows = None,
    units: Rows = None,
) -> Edit:
    """Hold at the value cached on the clean run of the same images (path patching)."""
    return _edit("freeze", site, rows, tokens, heads, units, values=_sources(cache))


def add(
    site: str,
    vector: Tensor,
    factor: float | int = 1.0,
    *,
    rows: Rows = None,
    tokens: Tokens = None,
    heads: Rows = None,
    units: Rows = None,
) -> Edit:
    """Add `factor * vector` (steering).

    Args:
        vector: `[d]` for the last axis, or anything that broadcasts to the activation, e.g. `[token (head) d]`.
    """
    return _edit("add", site, rows, tokens, heads, units, values={"*": torch.as_tensor(vector)}, factor=_finite(factor))


def scale(
    site: str, factor: float | int, *, rows: Rows = None, tokens: Tokens = None, heads: Rows = None, units: Rows = None
) -> Edit:
    """Multiply by `factor` (a gate: 0 removes, 1 keeps)."""
    return _edit("scale", site, rows, tokens, heads, units, factor=_finite(factor))


def project(site: str, directions: Tensor, *, rows: Rows = None, tokens: Tokens = None, heads: Rows = None) -> Edit:
    """Remove the part that lies in the span of `directions` `[d]` or `[direction d]` (orthonormalised here)."""
    directions = torch.as_tensor(directions)
    directions = directions[None] if directions.ndim == 1 else directions
    if directions.ndim != 2 or not torch.isfinite(directions).all() or (directions.norm(dim=1) == 0).any():
        raise ShapeMismatch(f"directions are finite, non-zero, [d] or [direction d]; got {list(directions.shape)}.")
    basis = torch.linalg.qr(directions.T.double()).Q.T
    return _edit("project", site, rows, tokens, heads, None, values={"*": basis})


def call(
    site: str,
    fn: Callable[[Tensor], Tensor],
    *,
    rows: Rows = None,
    tokens: Tokens = None,
    heads: Rows = None,
    units: Rows = None,
) -> Edit:
    """Replace by `fn(slice)`, where the slice is `[row token (head) d]` of the selection. Cannot be saved, unless the
    function is data (:class:`SavedFunction`)."""
    if not callable(fn):
        raise BadData(f"call needs a function that takes the selected slice, got {type(fn).__name__}.")
    return _edit("call", site, rows, tokens, heads, units, fn=fn)


def _finite(factor: float | int) -> float:
    if not math.isfinite(factor):
        raise BadData(f"factor={factor}: expected a finite number.")
    return float(factor)


def _sources(source: Mapping[str, Tensor] | Tensor) -> dict[str, Tensor]:
    return {"*": source} if isinstance(source, Tensor) else dict(source.items())


def _source_rows(value: Sequence[int] | int) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(int(v) for v in value)


def save(edits: Sequence[Edit], path: str | Path) -> Path:
    """Write edits as `<path>.json` with their tensors in `<path>.safetensors`.

    Raises:
        BadData: an edit carries a Python function, which is not data (see :class:`SavedFunction`).
        OutputNotWritable: the place cannot be written.
    """
    from safetensors.torch import save_file

    path = Path(path).with_suffix(".json")
    items = []
    for edit in edits:
        items.append(edit.describe())
        if isinstance(edit.fn, SavedFunction):
            items[-1]["fn"] = {"name": edit.fn.NAME, **edit.fn.to_json()}
        elif edit.fn is not None:
            raise BadData(f"{edit!r} carries a Python function and cannot be saved; use the other kinds.")
    tensors = {
        f"{i}/{name}": tensor.detach().cpu().contiguous()
        for i, edit in enumerate(edits)
        for name, tensor in edit._tensors().items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path.with_suffix(".safetensors"))
        # Version 2 has functions.
        version = 2 if any(edit.fn is not None for edit in edits) else 1
        text = json.dumps({"format": "mechvis-edits", "version": version, "edits": items}, indent=1)
        path.write_text(text)
    except OSError as error:
        raise OutputNotWritable(f"cannot write edits to {path}: {error}") from error
    return path


def load(path: str | Path, functions: Mapping[str, type[SavedFunction]] | None = None) -> list[Edit]:
    """Edits written by :func:`save`.

    Args:
        path: of the JSON file.
        functions: classes of functions by name, beside those of the installed packages.

    Raises:
        StoreCorrupt: not a readable edit file.
        UnknownName: an edit, or a function of one, that this installation does not know.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path).with_suffix(".json")
    try:
        document = json.loads(path.read_text())
        tensors = load_file(path.with_suffix(".safetensors"))
        items = document["edits"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise StoreCorrupt(f"{path} is not a readable edit file: {error}") from error
    loaded = []
    for i, item in enumerate(items):
        if item.get("kind") not in KINDS:
            raise unknown("edit kind", item.get("kind"), KINDS)
        values = {name.split("/", 2)[2]: t for name, t in tensors.items() if name.startswith(f"{i}/values/")}
        tokens = tensors[f"{i}/tokens"] if item["tokens"] == "tensor" else item["tokens"]
        fn = item.get("fn")
        if (fn is None) != (item["kind"] != "call"):
            raise StoreCorrupt(f"{path} holds an edit {item['kind']!r} {'with' if fn else 'without'} a function.")
        if fn is not None:
            own = {name.split("/", 2)[2]: t for name, t in tensors.items() if name.startswith(f"{i}/fn/")}
            fn = _function_class(fn.get("name"), functions or {}).from_json(fn, own, path.parent)
        tuples = {
            key: None if item[key] is None else tuple(item[key]) for key in ("rows", "heads", "units", "source_rows")
        }
        loaded.append(
            Edit(
                kind=item["kind"],
                site=item["site"],
                factor=item["factor"],
                values=values or None,
                fn=fn,
                tokens=tuple(tokens) if isinstance(tokens, list) else tokens,
                **tuples,
            )
        )
    return loaded


def _function_class(name: Any, given: Mapping[str, type[SavedFunction]]) -> type[SavedFunction]:
    """The class of a saved function: given, or of an installed package."""
    if name in given:
        return given[name]
    known = {point.name: point for point in entry_points(group="mechvis.edit_functions")}
    if name not in known:
        raise unknown("function of an edit", name, [*given, *known])
    return known[name].load()
