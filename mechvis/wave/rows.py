"""The growing batch of a wave front."""

from collections.abc import Sequence

from mechvis.axes import Residual
from mechvis.units import Unit


class Rows:
    """The growing batch: clean rows first, then `n` rows per unit that has entered, in one buffer."""

    def __init__(self, clean: Residual, blocks: int, late: int, at_once: int | None):
        """Room for `blocks` times the clean rows, of which `late` enter when only the tokens that are read are left."""
        self.n, self.most = len(clean), blocks * len(clean)
        self.buffer = clean.new_empty(self.most - late * self.n, *clean.shape[1:])
        self.buffer[: self.n] = clean
        self.entered: list[Unit] = []
        self.step = blocks * self.n if at_once is None else max(1, at_once // self.n) * self.n

    @property
    def clean(self) -> Residual:
        return self.buffer[: self.n]

    @property
    def all(self) -> Residual:
        return self.buffer[: self.stop]

    @property
    def stop(self) -> int:
        return (1 + len(self.entered)) * self.n

    def groups(self, start: int = 0, stop: int | None = None) -> list[slice]:
        """Rows from `start` to `stop` (None: the last) in groups of whole units; the clean rows are the first."""
        stop = self.stop if stop is None else stop
        return [slice(at, min(at + self.step, stop)) for at in range(start, stop, self.step)]

    def enter(self, *units: Unit) -> Residual:
        """Places `[unit*image token d_model]` of new rows, to be filled."""
        start = self.stop
        self.entered += units
        return self.buffer[start : self.stop]

    def narrow(self, tokens: Sequence[int]) -> None:
        """Keep only these tokens from here on."""
        kept = self.buffer.new_empty(self.most, len(tokens), self.buffer.shape[2])
        kept[: self.stop] = self.all[:, list(tokens)]
        self.buffer = kept

    def order(self, units: Sequence[Unit]) -> list[int]:
        where = {unit: i for i, unit in enumerate(self.entered)}
        return [where[unit] for unit in units]
