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
from mechvis.errors import BadData, UnsupportedModel
from mechvis.units import Unit


def prune(model: Any, heads: Sequence[Unit]) -> Any:
    """A wrapped copy of `model` without these heads; the user's own model is not touched.

    Returns:
        HookedViT: parity-checked like any loaded model; `.pruned` lists the heads.

    Raises:
        UnsupportedModel: the output projection is not a plain linear layer with a weight of its own.

    Example:
        >>> pruned = prune(model, head_units([(2, 1)]))                 # doctest: +SKIP
        >>> save_pruned(pruned, "runs/pruned")                          # doctest: +SKIP
    """
    from mechvis.models.load import wrap

    bare = copy.deepcopy(model.bare)
    title = f"{model.title} without {len(heads)} heads"
    copied = wrap(bare, preprocess=model.preprocess, title=title, family=model.__dict__["family"])
    with torch.no_grad():
        for unit in heads:
            block = copied.parts.blocks[unit.layer]
            linear, width = block.attn.out, block.attn.d_head
            if type(linear) is not torch.nn.Linear:
                raise UnsupportedModel(
                    f"the output projection of block {unit.layer} is {type(linear).__name__}, not a plain Linear: "
                    "merge adapters or dequantise first."
                )
            linear.weight[:, unit.index * width : (unit.index + 1) * width] = 0
    copied.__dict__["pruned"] = tuple(heads)
    return copied


def save_pruned(model: Any, folder: str | Path, *, note: str = "") -> Path:
    """Write the model as an ordinary model folder: it opens with plain `transformers`, and gives the same logits.

    Raises:
        OutputNotWritable: the folder cannot be written.
        BadData: not a Hugging Face model.
    """
    folder = files.ensure_writable(folder)
    if not hasattr(model.bare, "save_pretrained"):
        raise BadData(f"{type(model.bare).__name__} has no save_pretrained; save its state_dict yourself.")
    model.bare.save_pretrained(folder)
    if hasattr(model.preprocess.processor, "save_pretrained"):
        model.preprocess.processor.save_pretrained(folder)
    gone = [unit.name for unit in model.__dict__.get("pruned", ())]
    lines = [
        "# Model with attention heads removed",
        "",
        note,
        "",
        f"Removed (columns of the output projection set to zero): {', '.join(gone) or 'none'}.",
        "",
        "Opens with `transformers`, or `mechvis.load(folder)`.",
    ]
    files.write_text(folder / "README.md", "\n".join(lines) + "\n")
    return folder
