"""Where training rows come from: a store, a model with its images, tensors, or any iterator; one face for all.

A source hands out batches for ever (epoch after epoch, each in an order of its own) and can say where it is: a position
is a few numbers, and a run continues from it bit by bit. An iterator that cannot say where it is can be trained from
too; then a resumed run starts it anew and skips what was seen, which is exact if it begins the same way every time.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechvis.errors import BadData, MixedDevices, NotFinite, ResultMismatch, ShapeMismatch
from mechvis.store.order import ROWS, permutation
from sae.team import ALONE, Team

READ_ALL = 10_000
"""Images of a set that are read once more to know the set again; a larger one is known by its name alone."""
FOREVER = 10**9
"""Epochs of a source: training ends by tokens, not by epochs."""


@dataclass(frozen=True, eq=False)
class Rows:
    """A batch: activations by site, and what is known of the rows."""

    activations: dict[str, Tensor]
    """`[row d]` by site; the same rows everywhere."""
    types: Int[Tensor, " row"] | None = None
    """Number of each row's type of token in `type_names`."""
    image: Int[Tensor, " row"] | None = None
    """Each row's image, its position in the set."""
    token: Int[Tensor, " row"] | None = None
    """Each row's token."""

    def __len__(self) -> int:
        return len(next(iter(self.activations.values())))

    def where(self, row: int) -> str:
        """What a row is about, for messages."""
        return (
            f"row {row}"
            if self.image is None
            else f"row {row} (image {int(self.image[row])}, token {int(self.token[row])})"
        )


@runtime_checkable
class Source(Protocol):
    """What training reads from."""

    type_names: tuple[str, ...]
    """Types of tokens, by number; nothing if they are not known."""

    def __next__(self) -> Rows: ...

    def state_dict(self) -> dict[str, Any]:
        """Where it is: plain JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go there."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the rows are, for the file of a dictionary: plain JSON."""
        ...


class TensorRows:
    """Rows in memory, shuffled anew in every epoch."""

    type_names: tuple[str, ...] = ()

    def __init__(
        self,
        rows: Tensor | np.ndarray | Mapping[str, Tensor | np.ndarray],
        *,
        size: int,
        seed: int = 0,
        types: Tensor | None = None,
        type_names: Sequence[str] = (),
        part: tuple[int, int] = (0, 1),
    ):
        """Args:
            rows: `[row d]`, or several of the same length by site; a matrix alone is called `site`.
            size: rows per batch; what fills no batch is left for the next epoch's order.
            seed: of the order.
            types: number of each row's type of token.
            type_names: what the numbers mean.
            part: `(rank, ranks)`: only this share of each batch.

        Raises:
            BadData: no rows, fewer than a batch.
            ShapeMismatch: sites of different lengths.
            NotFinite: NaN or Inf; says where.
        """
        self._rows = {
            name: torch.as_tensor(t) for name, t in (rows if isinstance(rows, Mapping) else {"site": rows}).items()
        }
        lengths = {len(t) for t in self._rows.values()}
        if len(lengths) != 1 or any(t.ndim != 2 for t in self._rows.values()):
            told = ", ".join(f"{name} {list(t.shape)}" for name, t in self._rows.items())
            raise ShapeMismatch(f"rows are [row d] and as many at every site; got {told or 'nothing'}.")
        for name, t in self._rows.items():
            if not torch.isfinite(t).all():
                bad = int((~torch.isfinite(t)).any(1).nonzero()[0, 0])
                raise NotFinite(f"row {bad} of {name} holds NaN or Inf.")
        self.n_rows, self._size, self._seed, self._part = lengths.pop(), size, seed, part
        if not 1 <= size <= self.n_rows:
            raise BadData(f"batches of {size} rows from {self.n_rows}: give fewer per batch, or more rows.")
        if types is not None and len(types) != self.n_rows:
            raise ShapeMismatch(f"{len(types)} types for {self.n_rows} rows.")
        self._types, self.type_names = types, tuple(type_names)
        self.epoch, self.row = 0, 0
        self._order: tuple[int, np.ndarray] | None = None

    def __iter__(self) -> Iterator[Rows]:
        return self

    def __next__(self) -> Rows:
        if self._order is None or self._order[0] != self.epoch:
            self._order = self.epoch, permutation(self.n_rows, self._seed, ROWS, self.epoch)
        rank, ranks = self._part
        start, stop = (self.row + self._size * r // ranks for r in (rank, rank + 1))
        index = torch.from_numpy(self._order[1][start:stop])
        self.row += self._size
        if self.row + self._size > self.n_rows:
            self.epoch, self.row = self.epoch + 1, 0
        found = {name: t[index.to(t.device)] for name, t in self._rows.items()}
        return Rows(found, None if self._types is None else self._types[index])

    def state_dict(self) -> dict[str, Any]:
        """Epoch and row."""
        return {"epoch": self.epoch, "row": self.row, "size": self._size, "seed": self._seed, "rows": self.n_rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position.

        Raises:
            ResultMismatch: a position in other rows.
        """
        known = self.state_dict()
        differ = [key for key in ("size", "seed", "rows") if state.get(key) != known[key]]
        if differ:
            name = differ[0]
            raise ResultMismatch(
                f"this position belongs to other rows: their {name} was {state.get(name)}, not {known[name]}."
            )
        self.epoch, self.row = int(state["epoch"]), int(state["row"])

    def describe(self) -> dict[str, Any]:
        """Shapes."""
        return {
            "kind": "tensors",
            "rows": self.n_rows,
            "seed": self._seed,
            "sites": {n: t.shape[1] for n, t in self._rows.items()},
        }


class ReaderRows:
    """Batches of a store, or of a model that runs beside the training (`mechvis.store`)."""

    def __init__(self, reader: Any, *, prefix: Sequence[str] = (), described: Mapping[str, Any] | None = None):
        """Args:
        reader: a `mechvis.store` reader.
        prefix: names of the tokens before the patches; nothing: types are not known.
        described: what the rows are.
        """
        self.reader, self._described = reader, dict(described or {})
        kinds = [name.rstrip("0123456789") for name in prefix]
        self.type_names = tuple(dict.fromkeys([*kinds, "patch"])) if prefix else ()
        self._kinds = torch.tensor(
            [*(self.type_names.index(kind) for kind in kinds), 0][: len(kinds)], dtype=torch.long
        )

    def __iter__(self) -> Iterator[Rows]:
        return self

    def __next__(self) -> Rows:
        batch = next(self.reader)
        types = None
        if self.type_names and (len(batch.token) == 0 or int(batch.token.min()) >= 0):
            types = torch.full_like(batch.token, len(self.type_names) - 1)
            early = batch.token < len(self._kinds)
            types[early] = self._kinds[batch.token[early]]
        return Rows(dict(batch.activations), types, batch.image, batch.token)

    def state_dict(self) -> dict[str, Any]:
        """Position of the reader."""
        return self.reader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position."""
        self.reader.load_state_dict(state)

    def describe(self) -> dict[str, Any]:
        """Model, images, sites, tokens."""
        return dict(self._described)


class IteratorRows:
    """Anything that yields activations: `[row d]` tensors, or mappings of them by site."""

    type_names: tuple[str, ...] = ()

    def __init__(self, make: Iterable | Callable[[], Iterable]):
        """Args:
            make: an iterable, or (to resume and to run for more than one epoch) a function that makes one. If the
                iterator has `state_dict` and `load_state_dict`, they are used.

        Raises:
            BadData: it is empty, or ends and cannot be started again.
        """
        self._make = make if callable(make) else lambda: make
        self._again = callable(make) or not isinstance(make, Iterator)
        self._iterator = iter(self._make())
        self._seen, self._back = 0, []

    def __iter__(self) -> Iterator[Rows]:
        return self

    def __next__(self) -> Rows:
        if self._back:
            self._seen += 1
            return self._back.pop()
        try:
            batch = next(self._iterator)
        except StopIteration:
            if not self._again:
                raise BadData(
                    f"the iterator ended after {self._seen} batches, before the training did. Give a function that "
                    "makes a new one, a longer one, or ask for fewer tokens."
                ) from None
            self._iterator = iter(self._make())
            batch = next(self._iterator, None)
            if batch is None:
                raise BadData("the iterator yields nothing.") from None
        self._seen += 1
        activations = dict(batch) if isinstance(batch, Mapping) else {"site": batch}
        if any(not isinstance(t, Tensor) or t.ndim != 2 for t in activations.values()):
            raise ShapeMismatch("an iterator yields tensors [row d], or mappings of them by site.")
        return Rows(activations)

    def put_back(self, batches: Sequence[Rows]) -> None:
        """Hand these out once more, first to last: they were only looked at."""
        self._back = [*self._back, *reversed(batches)]
        self._seen -= len(batches)

    def state_dict(self) -> dict[str, Any]:
        """Batches that were seen, and the iterator's own position where it has one."""
        own = getattr(self._iterator, "state_dict", None)
        return {"seen": self._seen, **({"iterator": own()} if own else {})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position: by the iterator's own, or by skipping.

        Raises:
            BadData: it can do neither.
        """
        if "iterator" in state and hasattr(self._iterator, "load_state_dict"):
            self._iterator.load_state_dict(state["iterator"])
            self._seen = int(state["seen"])
            return
        if int(state["seen"]) == self._seen:
            return
        if not self._again:
            raise BadData(
                "this iterator can neither be started again nor told where to go on, so the run cannot resume."
            )
        self._iterator, self._seen, self._back = iter(self._make()), 0, []
        while self._seen < int(state["seen"]):
            next(self)

    def describe(self) -> dict[str, Any]:
        """Nothing is known."""
        return {"kind": "iterator"}


class Together:
    """Sources side by side whose rows are about the same tokens of the same images: two models, for a crosscoder.

    Site names get the source's name before: `base/blocks.2.hook_resid_post`.
    """

    def __init__(self, sources: Mapping[str, Source]):
        """Raises:
        BadData: fewer than two, or names with a slash.
        """
        if len(sources) < 2 or any("/" in name for name in sources):
            raise BadData(f"two sources or more, with plain names, make one; got {list(sources)}.")
        self._sources = dict(sources)
        self.type_names = next(iter(sources.values())).type_names

    def __iter__(self) -> Iterator[Rows]:
        return self

    def __next__(self) -> Rows:
        batches = {name: next(source) for name, source in self._sources.items()}
        first = next(iter(batches.values()))
        for name, batch in batches.items():
            same = len(batch) == len(first) and all(
                a is None or b is None or torch.equal(a, b)
                for a, b in ((batch.image, first.image), (batch.token, first.token))
            )
            if not same:
                raise ResultMismatch(
                    f"rows of {name} are not about the same tokens as those of {next(iter(batches))}: give both the "
                    "same images, tokens, seed and buffer."
                )
        joined = {f"{name}/{site}": t for name, batch in batches.items() for site, t in batch.activations.items()}
        return Rows(joined, first.types, first.image, first.token)

    def state_dict(self) -> dict[str, Any]:
        """Positions by source."""
        return {name: source.state_dict() for name, source in self._sources.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to positions."""
        for name, source in self._sources.items():
            source.load_state_dict(state[name])

    def describe(self) -> dict[str, Any]:
        """Each source."""
        return {"kind": "together", "sources": {name: source.describe() for name, source in self._sources.items()}}


def from_store(
    store: Any,
    sites: str | Sequence[str],
    *,
    size: int,
    seed: int = 0,
    images: range | None = None,
    part: tuple[int, int] = (0, 1),
    buffer: str | int = "512MB",
) -> ReaderRows:
    """Rows of a store of activations (`mechvis.store.open`), shuffled.

    Args:
        store: opened.
        sites: one, or several whose rows are about the same tokens.
        size: rows per batch.
        seed: of the order.
        images: only these; keep some for the evaluation.
        part: `(rank, ranks)`.
        buffer: memory for shuffling.

    Raises:
        UnknownSite, ShapeMismatch, OutOfRange, BadData.
    """
    reader = store.batches(
        sites, size=size, seed=seed, epochs=FOREVER, images=images, part=part, buffer=buffer, drop_last=True
    )
    known = {"kind": "store", "fingerprint": store.fingerprint, "model": store.provenance.get("model", {}),
             "data": store.provenance.get("data", {}), "tokens": store.manifest.plan["tokens"]}  # fmt: skip
    return ReaderRows(reader, prefix=store.manifest.prefix, described=known)


def from_model(
    model: Any,
    images: Any,
    sites: str | Sequence[str],
    *,
    size: int,
    seed: int = 0,
    which: str | int = "all",
    dtype: Any = None,
    part: tuple[int, int] = (0, 1),
    buffer: str | int = "512MB",
    block: int = 1,
    budget: str | int | None = None,
) -> ReaderRows:
    """Rows that a model computes while the dictionary learns: one forward per image, which stops at the last site.

    Args:
        model: a wrapped image tower.
        images: an `ImageSet`, or pixels.
        sites: names or patterns.
        size: rows per batch.
        seed: of the order, and of tokens that are drawn.
        which: which tokens become rows, as `tokens` of `mechvis.harvest`.
        dtype: type of the rows; None: the model's own.
        part: `(rank, ranks)`.
        buffer: memory for shuffling.
        block: images that stay together in the order.
        budget: memory for pixels and activations.

    Raises:
        UnknownSite, BadData, ShapeMismatch, OutOfMemory.
    """
    from mechvis.store import stream

    reader = stream(
        model,
        images,
        sites,
        size=size,
        seed=seed,
        tokens=which,
        dtype=dtype,
        epochs=FOREVER,
        part=part,
        buffer=buffer,
        drop_last=True,
        block=block,
        budget=budget,
    )
    data = {"name": getattr(images, "name", "pixels"), "n": len(images)}
    if getattr(images, "recipe", None) or (hasattr(images, "recipe") and len(images) <= READ_ALL):
        data["fingerprint"] = images.fingerprint  # so that an evaluation on the same images can be refused
    described = {"name": model.name, "fingerprint": model.fingerprint}
    known = {"kind": "model", "model": described, "tokens": str(which), "data": data}
    return ReaderRows(reader, prefix=model.parts.prefix, described=known)


def source(data: Any, *, size: int, seed: int = 0, sites: Any = None, part: tuple[int, int] = (0, 1)) -> Source:
    """Whatever people have, as a source: a source, a store, tensors, an iterator.

    Args:
        data: a source of this module, a `mechvis.store.Store`, a tensor `[row d]`, a mapping of tensors by site, an
            iterator of batches or a function that makes one.
        size: rows per batch (a source and an iterator have their own).
        seed: of the order.
        sites: of a store; all where left out.
        part: `(rank, ranks)`.

    Raises:
        BadData, ShapeMismatch, NotFinite, UnknownSite.
    """
    from mechvis.store import Store

    if isinstance(data, Store):
        return from_store(data, list(data) if sites is None else sites, size=size, seed=seed, part=part)
    if hasattr(data, "state_dict") and hasattr(data, "describe"):
        return data
    if isinstance(data, Tensor | np.ndarray) or (
        isinstance(data, Mapping) and all(isinstance(t, Tensor | np.ndarray) for t in data.values())
    ):
        return TensorRows(data, size=size, seed=seed, part=part)
    if callable(data) or isinstance(data, Iterable):
        return IteratorRows(data)
    raise BadData(
        f"rows come from a store, a tensor [row d], tensors by site, an iterator or sae.from_model(...), not from a "
        f"{type(data).__name__}."
    )


def sample(source: Source, n_rows: int, team: Team = ALONE) -> dict[str, Tensor]:
    """Some rows from where a source stands; it is put back to where it was. All processes of a team get all shares."""
    before = source.state_dict()
    batches: list[Rows] = []
    while sum(map(len, batches)) * team.size < n_rows:
        batches.append(next(source))
    if isinstance(source, IteratorRows):
        source.put_back(batches)
    else:
        source.load_state_dict(before)
    found = [batch.activations for batch in batches]
    devices = {t.device for batch in found for t in batch.values()}
    if len(devices) > 1:
        raise MixedDevices(f"batches lie on {', '.join(sorted(map(str, devices)))}.")
    return {name: torch.cat([team.gather(batch[name]) for batch in found])[:n_rows] for name in found[0]}
