"""Remove heads for good: a model whose output projections no longer read them.

Zeroing a head's columns of W_O equals setting its `z` to zero, in any framework, without hooks.
Mean ablation has no such form (a positional mean cannot be written into a bias), so a pruned model is always the
zero-ablated one, and the study says what that costs.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mechvis import files
from mechvis.errors import BadData, OutputNotWritable, UnsupportedModel
from mechvis.units import Unit, units_of

HEADING = "# Model with attention heads removed"
"""First line of the README of a folder that :func:`save_pruned` has written, and may write again."""


def prune(model: Any, heads: Sequence[Unit]) -> Any:
    """A wrapped copy of `model` without these heads; the user's own model is not touched.

    Returns:
        HookedViT: parity-checked like any loaded model; `.pruned` lists all heads that were ever removed from it.

    Raises:
        UnsupportedModel: the output projection is not a plain linear layer with a weight of its own.
        OutOfRange: a head that the model does not have.
        BadData: a unit that is not a head.

    Example:
        >>> pruned = prune(model, head_units([(2, 1)]))                 # doctest: +SKIP
        >>> save_pruned(pruned, "runs/pruned")                          # doctest: +SKIP
    """
    from mechvis.models.load import wrap

    gone = tuple(dict.fromkeys((*model.__dict__.get("pruned", ()), *heads)))
    if wrong := [unit.name for unit in gone if unit.kind != "heads"]:
        raise BadData(f"only heads can be pruned, got {wrong[0]}.")
    heads = units_of(model, gone) if gone else []
    bare = copy.deepcopy(model.bare)
    title = f"{model.title.split(' without ')[0]} without {len(heads)} head{'s' * (len(heads) != 1)}"
    copied = wrap(bare, preprocess=model.preprocess, title=title, family=model.__dict__["family"])
    with torch.no_grad():
        for unit in heads:
            block = copied.parts.blocks[unit.layer]
            linear, width = block.attn.out, block.attn.d_head
            if type(linear) is not torch.nn.Linear or "weight" not in linear._parameters:
                raise UnsupportedModel(
                    f"the output projection of block {unit.layer} is {type(linear).__name__}, not a plain Linear: "
                    "merge adapters or dequantise first."
                )
            linear.weight[:, unit.index * width : (unit.index + 1) * width] = 0
    copied.__dict__["pruned"] = gone
    return copied


def save_pruned(model: Any, folder: str | Path, *, note: str = "") -> Path:
    """Write the model as an ordinary model folder: it opens with plain `transformers`, and gives the same logits.

    Raises:
        OutputNotWritable: the folder cannot be written, or holds another model.
        BadData: not a Hugging Face model.
    """
    folder = files.ensure_writable(folder)
    readme = folder / "README.md"
    ours = readme.is_file() and readme.read_text(encoding="utf-8", errors="replace").startswith(HEADING)
    if (folder / "config.json").exists() and not ours:
        raise OutputNotWritable(f"{folder} holds another model, which would be overwritten. Give a folder of its own.")
    if not hasattr(model.bare, "save_pretrained"):
        raise BadData(f"{type(model.bare).__name__} has no save_pretrained; save its state_dict yourself.")
    model.bare.save_pretrained(folder)
    if hasattr(getattr(model.preprocess, "processor", None), "save_pretrained"):
        model.preprocess.processor.save_pretrained(folder)
    gone = [unit.name for unit in model.__dict__.get("pruned", ())]
    lines = [
        HEADING,
        "",
        note,
        "",
        f"Removed (columns of the output projection set to zero): {', '.join(gone) or 'none'}.",
        "",
        "Opens with `transformers`, or `mechvis.load(folder)`.",
    ]
    files.write_text(readme, "\n".join(lines) + "\n")
    return folder
