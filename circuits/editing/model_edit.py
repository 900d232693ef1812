"""An edit of a model: what is changed, where it is kept, and how it is taken back.

An edit is either *folded* (boxes of weights, as they were and as they become) or kept *at run time* (a wrapper applies
it at every call). Folded edits are preferred where they are exact; where they are not, `note` says why.

Fingerprints chain edits. An edit knows the fingerprint of the model that it was made for, and the one that it leads to:

    original --edit 1--> A --edit 2--> B          undo edit 2, then edit 1

It is applied to a model of the first fingerprint only, and undone on one of the second only. Since numbers are put in
their places and nothing is computed again, the model is afterwards bit by bit what it was, and its fingerprint the old
one.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuits.editing.change import Change
from circuits.editing.edited_model import EditedModel
from circuits.editing.slices import Slice, write
from circuits.editing.weights import copied
from mechvis import files
from mechvis.errors import BadData, FailedCheck, ResultMismatch


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ModelEdit:
    """A change of a model, made by `remove_heads`, `remove_edges`, `keep_only` or `project_out`."""

    change: Change
    """What is changed."""
    folded: bool
    """It is in the weights; otherwise it is applied at run time."""
    slices: tuple[Slice, ...] = ()
    """Of a folded edit: the entries that change."""
    before: str
    """Fingerprint of the model that it was made for."""
    after: str
    """Fingerprint of the edited model."""
    chain: tuple[str, ...] = ()
    """Fingerprints of the models before `before`, where that one is an edited model itself; the first is the
    original."""
    deviation: float | None = None
    """Of a folded edit: largest difference from the same change at run time on a random batch, relative to the largest
    output."""
    allowed: float | None = None
    """What rounding explains in the model's type."""
    note: str = ""
    """Why it is not folded, where it could not be."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Model, versions, command, time."""

    @property
    def title(self) -> str:
        """What is done, and where it is kept."""
        return f"{self.change.words}, {'in the weights' if self.folded else 'at run time'}"

    @property
    def n_numbers(self) -> int:
        """Entries of weights inside the boxes."""
        return sum(part.old.numel() for part in self.slices)

    def apply(self, model: Any, *, in_place: bool = False) -> Any:
        """The edited model.

        Args:
            model: the model that the edit was made for, or one with the same weights.
            in_place: write into this very model instead of a copy. Every other reference to it is edited too.

        Returns:
            HookedViT if the edit is folded, else :class:`EditedModel`.

        Raises:
            ResultMismatch: another model, or an edited one.
            BadData: `in_place` for an edit that is not in the weights.

        Example:
            >>> edited = edit.apply(model)                                                         # doctest: +SKIP
            >>> edit.undo(edited).fingerprint == model.fingerprint                                 # doctest: +SKIP
            True
        """
        self._check(model, self.before, self.after, "applied")
        if not self.folded:
            if in_place:
                raise BadData(
                    "this edit is not in the weights, so there is nothing to write into the model: leave in_place= out "
                    "and use the edited model that apply gives back."
                )
            return EditedModel(model=model, edit=self)
        title = f"{model.title}, {self.change.words}" if model.title else self.change.words
        edited = model if in_place else copied(model, title)
        self._write(edited, "new", self.after)
        edited.__dict__["edits"] = (*model.__dict__.get("edits", ()), self.before)
        if self.change.kind == "heads":
            gone = (*model.__dict__.get("pruned", ()), *self.change.heads)
            edited.__dict__["pruned"] = tuple(dict.fromkeys(gone))
        return edited

    def undo(self, model: Any, *, in_place: bool = False) -> Any:
        """The model before the edit, bit by bit.

        Args:
            model: an edited model; of several edits the last one is undone first.
            in_place: write into this very model instead of a copy.

        Raises:
            ResultMismatch: the model does not carry this edit as its last one.
        """
        if isinstance(model, EditedModel):
            self._check(model, self.after, self.before, "undone")
            return model.model
        self._check(model, self.after, self.before, "undone")
        restored = model if in_place else copied(model)
        self._write(restored, "old", self.before)
        restored.__dict__["edits"] = tuple(model.__dict__.get("edits", ())[:-1])
        if self.change.kind == "heads":
            # A head that an earlier edit had removed stays removed.
            earlier = [unit for unit in model.__dict__.get("pruned", ()) if unit not in self.change.heads]
            restored.__dict__["pruned"] = tuple(earlier)
        return restored

    def _write(self, model: Any, which: str, wanted: str) -> None:
        write(model.bare, self.slices, which)
        if (found := model.fingerprint) != wanted:
            write(model.bare, self.slices, "old" if which == "new" else "new")
            raise FailedCheck(
                f"after writing the edit the model's fingerprint is {found}, expected {wanted}; the weights were put "
                "back. The file of the edit and the model do not belong together."
            )

    def _check(self, model: Any, wanted: str, other: str, word: str) -> None:
        found = model.fingerprint
        if found == wanted:
            return
        why = "it is another model"
        if found == other:
            why = f"it {'carries the edit already' if word == 'applied' else 'does not carry the edit'}"
        elif found in self.chain or wanted in model.__dict__.get("edits", ()):
            why = "other edits lie between; edits are undone in the reverse of their order"
        raise ResultMismatch(
            f"this edit ({self.title}) is {word} {'to' if word == 'applied' else 'on'} the model {wanted}, the model "
            f"given is {found}: {why}."
        )

    def save(self, folder: str | Path) -> Path:
        """Write the edit into a folder: `edit.json`, the tensors, and `undo.safetensors` with the original entries.

        Raises:
            OutputNotWritable: says what and why.
        """
        from circuits.editing.store import save

        return save(self, folder)

    @classmethod
    def load(cls, folder: str | Path, model: Any = None) -> "ModelEdit":
        """Read an edit that :meth:`save` wrote; see :func:`circuits.editing.store.load_edit`."""
        from circuits.editing.store import load_edit

        return load_edit(folder, model)

    def __repr__(self) -> str:
        lines = [f"ModelEdit({self.title}: {self.before} -> {self.after})"]
        if self.folded and not self.slices:
            lines.append("  changes nothing: the weights were so already")
        elif self.folded:
            lines.append(
                f"  {self.n_numbers} weights in {len({part.name for part in self.slices})} tensors; differs from the "
                f"same change at run time by {self.deviation:.1e} of the largest output (rounding allows "
                f"{self.allowed:.0e})"
            )
        if self.chain:
            lines.append(f"  on top of {len(self.chain)} earlier edit{'s' * (len(self.chain) != 1)}")
        if self.note:
            lines.append(f"  not in the weights: {self.note}")
        return "\n".join(lines)


def run_time_fingerprint(before: str, change: Change) -> str:
    """Fingerprint of a model that carries a change at run time."""
    digest = hashlib.sha256(f"{before} {change.kind} {files.canonical_json(change.describe())}".encode())
    for name, value in sorted(change.tensors().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()[:16]


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
