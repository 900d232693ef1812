"""Rows of a store of activations, or of a model that runs beside the training."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from sae.data.rows import Rows

READ_ALL = 10_000
"""Images of a set that are read once more to know the set again; a larger one is known by its name alone."""
FOREVER = 10**9
"""Epochs of a source: training ends by tokens, not by epochs."""


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
