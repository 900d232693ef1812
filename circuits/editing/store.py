"""Edits as folders.

`edit.json` holds what is done, the chain of fingerprints and the checksum of every file; `change.safetensors` means or
directions; of a folded edit `weights.safetensors` holds the new entries and `undo.safetensors` the original ones. All
files are verified before they are used, and nothing in them can run code.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from circuits.editing.edge_cut import EdgeCut
from circuits.editing.head_removal import HeadRemoval
from circuits.editing.model_edit import ModelEdit
from circuits.editing.projection import Projection
from circuits.editing.slices import Slice
from mechvis import files
from mechvis.errors import MechvisError, ResultMismatch, StoreCorrupt

FORMAT = "mechvis.edit"
FORMAT_VERSION = 1
MANIFEST = "edit.json"
CHANGE, WEIGHTS, UNDO = "change.safetensors", "weights.safetensors", "undo.safetensors"
KINDS = {made.kind: made for made in (HeadRemoval, Projection, EdgeCut)}
_PLAIN = ("folded", "before", "after", "chain", "deviation", "allowed", "note", "provenance")


def save(edit: ModelEdit, folder: str | Path) -> Path:
    """Write an edit into `folder`; an older one there is replaced as a whole or not at all.

    Raises:
        OutputNotWritable: says what and why.
    """
    from safetensors.torch import save as packed

    def plain(tensors: dict) -> bytes:
        return packed({name: value.detach().cpu().contiguous() for name, value in tensors.items()})

    folder = files.ensure_writable(folder)
    content = {}
    if tensors := edit.change.tensors():
        content[CHANGE] = plain(tensors)
    if edit.folded:
        content[WEIGHTS] = plain({str(place): part.new for place, part in enumerate(edit.slices)})
        content[UNDO] = plain({str(place): part.old for place, part in enumerate(edit.slices)})
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "title": edit.title,
        "kind": edit.change.kind,
        "change": edit.change.describe(),
        "slices": [{"name": part.name, "start": list(part.start)} for part in edit.slices],
        **{name: getattr(edit, name) for name in _PLAIN},
    }
    files.write_together(folder, content, MANIFEST, files.plain_json(manifest, "edit"))
    for name in {CHANGE, WEIGHTS, UNDO} - set(content):  # of an older edit
        with suppress(FileNotFoundError):
            (folder / name).unlink()
    return folder


def load_edit(folder: str | Path, model: Any = None) -> ModelEdit:
    """Read an edit that was saved; every file is verified first.

    Args:
        folder: where it is.
        model: if given, refuse an edit of another model, unless the model carries it.

    Raises:
        StoreCorrupt: a file is missing, truncated or changed; names it.
        ResultMismatch: not an edit, one of a later version, or of another model.

    Example:
        >>> edit = load_edit("runs/edit")                                                          # doctest: +SKIP
        >>> restored = edit.undo(edited)                                                           # doctest: +SKIP
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as unpacked

    folder = Path(folder)
    check = files.only_format(folder / MANIFEST, FORMAT, FORMAT_VERSION, "an edit")
    manifest = files.read_manifest(folder, MANIFEST, check=check)
    content = {name: files.read_together(folder, manifest, name) for name in manifest["files"]}
    try:
        tensors = {name: unpacked(data) for name, data in content.items()}
        change = KINDS[manifest["kind"]].read(manifest["change"], tensors.get(CHANGE, {}))
        slices = tuple(
            Slice(
                name=known["name"],
                start=tuple(known["start"]),
                old=tensors[UNDO][str(place)],
                new=tensors[WEIGHTS][str(place)],
            )
            for place, known in enumerate(manifest["slices"])
        )
        known = {name: manifest[name] for name in _PLAIN}
        edit = ModelEdit(change=change, slices=slices, **{**known, "chain": tuple(known["chain"])})
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, MechvisError) as error:
        raise StoreCorrupt(f"{folder / MANIFEST} does not hold what an edit needs: {error}") from error
    if model is not None and model.fingerprint not in (edit.before, edit.after):
        raise ResultMismatch(
            f"the edit in {folder} was made for the model {edit.before} (edited: {edit.after}); the model given is "
            f"{model.fingerprint}."
        )
    return edit
