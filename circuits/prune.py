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
from mechvis.models.load import TOLERANCE, wrap
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
    gone = tuple(dict.fromkeys((*model.__dict__.get("pruned", ()), *heads)))
    if wrong := [unit.name for unit in gone if unit.kind != "heads"]:
        raise BadData(f"only heads can be pruned, got {wrong[0]}.")
    heads = units_of(model, gone) if gone else []
    bare = copy.deepcopy(model.bare)
    title = f"{model.title.split(' without ')[0]} without {len(heads)} head{'s' * (len(heads) != 1)}"
    family, size = model.__dict__["family"], model.parts.image_size
    # A model that was asked for at another image size: its map says the size that it was trained with.
    size = None if size is None or family(bare).image_size == size else size
    copied = wrap(bare, preprocess=model.preprocess, title=title, family=family, image_size=size)
    own = {p.untyped_storage().data_ptr() for p in bare.parameters() if p.is_floating_point()}
    with torch.no_grad():
        for unit in heads:
            weight = copied.parts.blocks[unit.layer].attn.out_weight()
            # A view of the parameter can be written; a weight that is made from others (adapters) cannot.
            if weight.untyped_storage().data_ptr() not in own:
                raise UnsupportedModel(
                    f"the output projection of block {unit.layer} is not a plain layer with a weight of its own: merge "
                    "adapters or dequantise first."
                )
            weight[unit.index] = 0
    _check(model, copied, heads)
    copied.__dict__["pruned"] = gone
    return copied


@torch.no_grad()
def _check(model: Any, pruned: Any, heads: Sequence[Unit]) -> None:
    """The pruned model computes what the edits say, on a random batch: an output projection that does more than its
    weight says (an adapter) would not."""
    inputs = model.parts.example_batch(model.bare, torch.Generator().manual_seed(0))
    expected = model.run(inputs, edits=[unit.edit("zero") for unit in heads], capture=model.output_site).output
    far = float((pruned(inputs) - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    if not far <= 10 * TOLERANCE.get(model.dtype, 1e-5):
        raise UnsupportedModel(
            f"setting the heads' part of the output projection to zero is not removing them here (outputs differ by "
            f"{far:.1e}): the projection does more than its weight says. Merge adapters first."
        )


def save_pruned(model: Any, folder: str | Path, *, note: str = "") -> Path:
    """Write the model as an ordinary model folder: it opens with plain `transformers`, and gives the same logits.

    Of a model that is not from there, the folder holds `model.safetensors`, to be loaded into the same architecture.

    Raises:
        OutputNotWritable: the folder cannot be written, or holds another model.
    """
    folder = files.ensure_writable(folder)
    readme = folder / "README.md"
    ours = readme.is_file() and readme.read_text(encoding="utf-8", errors="replace").startswith(HEADING)
    if any((folder / name).exists() for name in ("config.json", "model.safetensors")) and not ours:
        raise OutputNotWritable(f"{folder} holds another model, which would be overwritten. Give a folder of its own.")
    how = "Opens with `transformers`, or `mechvis.load(folder)`."
    if hasattr(model.bare, "save_pretrained"):
        model.bare.save_pretrained(folder)
    else:
        from safetensors.torch import save_model

        save_model(model.bare, str(folder / "model.safetensors"))
        how = (
            f"Weights of a {type(model.bare).__module__}.{type(model.bare).__name__}: make the same architecture, then "
            "`safetensors.torch.load_model(module, 'model.safetensors')`."
        )
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
        how,
    ]
    files.write_text(readme, "\n".join(lines) + "\n")
    return folder
