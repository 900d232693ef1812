"""Whatever people have, as a source; and a look at its first rows."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechvis.errors import BadData, MixedDevices
from sae.data.activations import from_store
from sae.data.iterator import IteratorRows
from sae.data.rows import Rows, Source
from sae.data.tensors import TensorRows
from sae.team import ALONE, Team


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
