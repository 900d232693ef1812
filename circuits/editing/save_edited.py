"""Edited models as ordinary model folders, which open without this library."""

from pathlib import Path
from typing import Any

from circuits.editing.model_edit import ModelEdit
from mechvis import files
from mechvis.errors import BadData, OutputNotWritable, ResultMismatch

HEADING = "# Edited model"
"""First line of the README of a folder that :func:`save_edited` has written, and may write again."""


def save_edited(edited: Any, edit: ModelEdit, folder: str | Path, *, note: str = "") -> Path:
    """Write an edited model as a folder that opens with plain `transformers`, with the edit (and its undo) beside it in
    `edit/`. Of a model that is not from there, the folder holds `model.safetensors`, to be loaded into the same
    architecture.

    Args:
        edited: from `edit.apply(model)`.
        edit: the edit, which must be in the weights.
        folder: of its own.
        note: more words for the README.

    Raises:
        BadData: an edit at run time: the weights do not have it. Save the edit instead.
        ResultMismatch: another model.
        OutputNotWritable: the folder cannot be written, or holds another model.

    Example:
        >>> save_edited(edit.apply(model), edit, "runs/edited")                                    # doctest: +SKIP
    """
    if not edit.folded:
        raise BadData(
            f"this edit is not in the weights ({edit.title}), so a model folder would not have it. Use "
            "edit.save(folder) and load_edit(folder).apply(model)."
        )
    if (found := edited.fingerprint) != edit.after:
        raise ResultMismatch(f"the edit leads to the model {edit.after}, the model given is {found}.")
    folder = files.ensure_writable(folder)
    readme = folder / "README.md"
    ours = readme.is_file() and readme.read_text(encoding="utf-8", errors="replace").startswith(HEADING)
    if any((folder / name).exists() for name in ("config.json", "model.safetensors")) and not ours:
        raise OutputNotWritable(f"{folder} holds another model, which would be overwritten. Give a folder of its own.")
    how = "Opens with `transformers`, or `mechvis.load(folder)`."
    if hasattr(edited.bare, "save_pretrained"):
        edited.bare.save_pretrained(folder)
    else:
        from safetensors.torch import save_model

        save_model(edited.bare, str(folder / "model.safetensors"))
        how = (
            f"Weights of a {type(edited.bare).__module__}.{type(edited.bare).__name__}: make the same architecture, "
            "then `safetensors.torch.load_model(module, 'model.safetensors')`."
        )
    if hasattr(getattr(edited.preprocess, "processor", None), "save_pretrained"):
        edited.preprocess.processor.save_pretrained(folder)
    edit.save(folder / "edit")
    undo = "`edit/` holds the edit and the original weights: `load_edit(folder).undo(model)` takes it back, bit by bit."
    lines = [HEADING, "", f"{edit.title}.", "", *([note, ""] if note else []), how, "", undo]
    files.write_text(readme, "\n".join(lines) + "\n")
    return folder
