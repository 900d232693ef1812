"""Rows in memory."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechvis.errors import BadData, NotFinite, ResultMismatch, ShapeMismatch
from mechvis.store.order import ROWS, permutation
from sae.data.rows import Rows


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
