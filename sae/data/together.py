"""Several sources side by side: two models on the same images, for a crosscoder."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from mechvis.errors import BadData, ResultMismatch
from sae.data.rows import Rows, Source


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
