"""Rows of anything that yields activations."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from mechvis.errors import BadData, ShapeMismatch
from sae.data.rows import Rows


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
