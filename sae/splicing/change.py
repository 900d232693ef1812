"""A change of latents as a function of vectors: what an ordinary edit of a plain model carries.

With the error term, and F the change of the chosen latents,

    x' = x + (F(f) - f) W          f = encode(x), W the latents' rows of the decoder (times the row's own scale)

so a vector on which nothing changes stays as it is, bit for bit. Without it x' = decode(F(f)).

It is data (`mechvis.edits.SavedFunction`): it prints, compares and saves by what it does and by the dictionary's
fingerprint; the dictionary itself stays in its folder.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, MechvisError, OutOfRange, RefusedMethod, ResultMismatch, StoreCorrupt, unknown
from sae.dictionary import Dictionary
from sae.splicing.splice import check_linear, row_scale

CHANGES = ("zero", "set", "scale", "add", "none")


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentChange:
    """Latents zeroed, set, scaled or raised in every vector that it is given; made by `sae.splicing.ablate` and kin.

    Raises:
        UnknownName, OutOfRange, BadData: a change, latents or values that cannot be.
        RefusedMethod: a dictionary that reads something else than it writes.
    """

    NAME: ClassVar[str] = "sae.latents"
    by_vector: ClassVar[bool] = True
    """Each vector by itself: tokens may differ between rows."""

    dictionary: Dictionary
    """Whose latents."""
    change: str
    """One of `CHANGES`."""
    latents: tuple[int, ...] = ()
    """Which; none for `none`."""
    values: tuple[float, ...] = ()
    """A number for each latent: what it is set to, multiplied with, or raised by."""
    error: bool = True
    """Keep what the dictionary misses."""
    folder: Path | None = None
    """Where the dictionary is saved."""

    def __post_init__(self):
        ends, n = self.dictionary.ends, self.dictionary.n_codes
        if self.change not in CHANGES:
            raise unknown("change of latents", self.change, CHANGES)
        if ends.transcodes or len(ends.reads) != 1:
            raise RefusedMethod(
                f"an edit sees one activation, and this {ends.kind} reads {', '.join(ends.reads)} and writes "
                f"{', '.join(ends.writes)}. Splice it in: sae.splice(model, dictionary), or use written_changes."
            )
        if not self.latents and self.change != "none":
            raise BadData("latents=[] selects no latent.")
        if len(set(self.latents)) < len(self.latents):
            raise BadData(f"latents={list(self.latents)[:8]} repeats a latent.")
        for latent in self.latents:
            if not 0 <= latent < n:
                raise OutOfRange(f"latent {latent} does not exist: this dictionary has {n} (0 to {n - 1}).")
        if len(self.values) != (len(self.latents) if self.change in ("set", "scale", "add") else 0):
            raise BadData(f"{len(self.values)} values for {len(self.latents)} latents: one each.")
        if not all(map(math.isfinite, self.values)):
            raise BadData("a value for a latent is NaN or Inf.")
        check_linear(self.dictionary)

    def __call__(self, x: Tensor) -> Tensor:
        """Vectors `[... d]` (or `[... head d_head]`), changed."""
        d, width = self.dictionary, self.dictionary.ends.d_in
        flat = x if x.shape[-1] == width else x.flatten(-2)
        codes = d.encode(flat)
        index = torch.tensor(self.latents, dtype=torch.long, device=codes.device)
        old = codes[..., index]
        new = self._changed(old)
        if self.error:
            if not self.latents:
                return x
            change = (new - old) @ d.directions[index]
            scale = row_scale(d, flat)
            return x + (change if scale is None else change * scale).to(x).reshape(x.shape)
        return d.decode(codes.index_copy(-1, index, new), like=flat).to(x).reshape(x.shape)

    def _changed(self, old: Float[Tensor, "*row k"]) -> Float[Tensor, "*row k"]:
        if self.change in ("zero", "none"):
            return torch.zeros_like(old)
        values = torch.tensor(self.values, dtype=old.dtype, device=old.device)
        return {"set": values.expand_as(old), "scale": old * values, "add": old + values}[self.change]

    def __repr__(self) -> str:
        kept = "" if self.error else ", error=False"
        shown = [f"{v:g}" for v in self.values[:4]]
        values = f" by {', '.join(shown)}{' ...' if len(self.values) > 4 else ''}" if shown else ""
        which = f" latents {_few(self.latents)}" if self.latents else ""
        return f"{self.change}{which}{values} of {self.dictionary!r}{kept}"

    def describe(self) -> dict[str, Any]:
        """What identifies it."""
        return {
            "dictionary": self.dictionary.fingerprint,
            "change": self.change,
            "latents": list(self.latents),
            "values": list(self.values),
            "error": self.error,
        }

    def tensors(self) -> dict[str, Tensor]:
        """None: a number per latent is written as text."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """What is written: what identifies it, and where the dictionary is.

        Raises:
            BadData: the dictionary's folder is not known, or holds another one.
        """
        if self.folder is None:
            raise BadData(
                f"{self!r}: an edit is saved with its dictionary's folder and fingerprint, but the folder is not "
                "known. Save the dictionary and make the edit from its folder: ablate('my-sae', ...)."
            )
        if Dictionary.load(self.folder).fingerprint != self.dictionary.fingerprint:
            raise BadData(
                f"{self.folder} holds another dictionary than this edit uses (saving makes decoder rows one long). "
                "Make the edit from the folder."
            )
        return {**self.describe(), "folder": str(self.folder)}

    @classmethod
    def from_json(cls, known: Mapping[str, Any], tensors: Mapping[str, Tensor], near: Path) -> "LatentChange":
        """The change again; the dictionary is looked for where it was, then beside the edits' file.

        Raises:
            StoreCorrupt: it is not there, or the description is no description.
            ResultMismatch: another dictionary is there now.
        """
        try:
            folder, wanted = Path(known["folder"]), known["dictionary"]
            settings = {
                "change": known["change"],
                "latents": tuple(known["latents"]),
                "values": tuple(known["values"]),
                "error": known["error"],
            }
        except (KeyError, TypeError) as failure:
            raise StoreCorrupt(f"a saved change of latents lacks {failure}.") from failure
        places = [folder, near / folder, near / folder.name]
        found = next((place for place in places if (place / "cfg.json").exists()), None)
        if found is None:
            raise StoreCorrupt(f"the dictionary of a saved edit is not in {folder}, nor beside the file.")
        dictionary = Dictionary.load(found)
        if dictionary.fingerprint != wanted:
            raise ResultMismatch(f"{found} holds another dictionary than the edit was saved with.")
        try:
            return cls(dictionary=dictionary, folder=found, **settings)
        except MechvisError as failure:
            raise StoreCorrupt(f"a saved change of latents cannot be: {failure}") from failure


def _few(latents: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, latents[:6]))}{' ...' if len(latents) > 6 else ''}"
