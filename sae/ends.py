"""What a dictionary reads and what it writes: the one difference between SAEs, transcoders and crosscoders.

Codes are read from some sites and written to some sites. A sparse autoencoder reads and writes one and the same; a
transcoder reads an input and writes an output; a crosscoder reads and writes several. The vectors of several sites lie
side by side in one row, so every architecture works for all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, ShapeMismatch


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Sites that are read and written, with their widths.

    Raises:
        BadData: nothing is read, or a width below one.

    Example:
        >>> Ends(reads={"blocks.2.hook_resid_post": 128}).kind
        'autoencoder'
        >>> Ends(reads={"ln2": 128}, writes={"mlp_out": 128}).kind
        'transcoder'
    """

    reads: Mapping[str, int]
    """Width by name, in the order in which they lie side by side."""
    writes: Mapping[str, int] = field(default_factory=dict)
    """The same for what is written; nothing: what is read."""

    def __post_init__(self):
        object.__setattr__(self, "reads", dict(self.reads))
        object.__setattr__(self, "writes", dict(self.writes) or dict(self.reads))
        if not self.reads:
            raise BadData("a dictionary reads at least one site: reads={'blocks.2.hook_resid_post': 128}.")
        for name, width in [*self.reads.items(), *self.writes.items()]:
            if not isinstance(width, int) or width < 1:
                raise BadData(f"the width of {name!r} is {width!r}; it is a whole number above zero.")

    @property
    def d_in(self) -> int:
        """Width of a row that is read."""
        return sum(self.reads.values())

    @property
    def d_out(self) -> int:
        """Width of a row that is written."""
        return sum(self.writes.values())

    @property
    def transcodes(self) -> bool:
        """Is something else written than is read?"""
        return list(self.reads.items()) != list(self.writes.items())

    @property
    def kind(self) -> str:
        """autoencoder, transcoder or crosscoder."""
        if self.transcodes:
            return "transcoder"
        return "autoencoder" if len(self.reads) == 1 else "crosscoder"

    def read(self, batch: Mapping[str, Tensor] | Tensor) -> Float[Tensor, "row d_in"]:
        """The row that is read, of activations by site (or of a tensor that is it already).

        Raises:
            BadData: a site is missing.
            ShapeMismatch: another width.
        """
        return _joined(batch, self.reads, "reads")

    def written(self, batch: Mapping[str, Tensor] | Tensor) -> Float[Tensor, "row d_out"]:
        """The row that has to be written, of activations by site.

        Raises:
            BadData: a site is missing.
            ShapeMismatch: another width.
        """
        return _joined(batch, self.writes, "writes")

    def split(self, rows: Float[Tensor, "*row d_out"]) -> dict[str, Float[Tensor, "*row d"]]:
        """What is written, by site."""
        return dict(zip(self.writes, rows.split(list(self.writes.values()), dim=-1), strict=True))

    def to_json(self) -> dict[str, Any]:
        """For files: lists, since JSON objects have no order that may be relied on."""
        return {"reads": [[n, w] for n, w in self.reads.items()], "writes": [[n, w] for n, w in self.writes.items()]}

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> "Ends":
        """From a file."""
        return cls(reads={n: w for n, w in known["reads"]}, writes={n: w for n, w in known["writes"]})


def _joined(batch: Mapping[str, Tensor] | Tensor, widths: Mapping[str, int], verb: str) -> Tensor:
    if isinstance(batch, Tensor):
        if batch.shape[-1] != sum(widths.values()):
            told = " + ".join(f"{name} {width}" for name, width in widths.items())
            raise ShapeMismatch(
                f"this dictionary {verb} rows of width {sum(widths.values())} ({told}), not {list(batch.shape)}."
            )
        return batch
    if missing := [name for name in widths if name not in batch]:
        raise BadData(
            f"this dictionary {verb} {missing[0]!r}; the activations have {', '.join(map(str, batch)) or 'nothing'}."
        )
    for name, width in widths.items():
        if batch[name].shape[-1] != width:
            raise ShapeMismatch(f"{name} has width {batch[name].shape[-1]}; this dictionary {verb} {width} there.")
    parts = [batch[name] for name in widths]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
