"""Edited copies of a model: how they are made, and how it is checked that the weights do what the edit says."""

import copy
from typing import Any

import torch
from torch import Tensor

from circuits.editing.change import Change
from mechvis.errors import UnsupportedModel
from mechvis.models.load import TOLERANCE, wrap


def copied(model: Any, title: str | None = None) -> Any:
    """A wrapped copy of a wrapped model that shares no weight with it.

    Args:
        model: a `HookedViT`.
        title: what to call it; default: the model's own title.
    """
    bare, family = copy.deepcopy(model.bare), model.__dict__["family"]
    # A model that was asked for at another image size: its map says the size that it was trained with.
    size = model.parts.image_size
    size = None if size is None or family(bare).image_size == size else size
    title = model.title if title is None else title
    made = wrap(bare, preprocess=model.preprocess, title=title, family=family, image_size=size)
    for fact in ("pruned", "edits"):
        if fact in model.__dict__:
            made.__dict__[fact] = model.__dict__[fact]
    return made


def own(model: Any, tensor: Tensor | None, what: str) -> Tensor:
    """A weight that can be written into: a view of one of the model's own parameters.

    Raises:
        UnsupportedModel: it is made of others (adapters, quantised layers), or there is none.
    """
    if tensor is None:
        raise UnsupportedModel(f"{what} has no bias, and the edit needs one to go into. Keep it a run-time edit.")
    parameters = {p.untyped_storage().data_ptr() for p in model.bare.parameters() if p.is_floating_point()}
    if tensor.untyped_storage().data_ptr() not in parameters:
        raise UnsupportedModel(
            f"{what} is not a plain layer with a weight of its own: merge adapters or dequantise first, or keep it a "
            "run-time edit."
        )
    return tensor


@torch.no_grad()
def deviation(model: Any, edited: Any, change: Change) -> tuple[float, float]:
    """How far the edited copy is from the change at run time, on a random batch: largest difference of outputs relative
    to the largest output, and what rounding explains for the model's type.

    Args:
        model: the model before the edit.
        edited: its edited copy.
        change: what was done.

    Raises:
        UnsupportedModel: they differ by more than rounding: a layer does more than its weight says.
    """
    inputs = model.parts.example_batch(model.bare, torch.Generator().manual_seed(0))
    expected = change.run(model, inputs)
    far = float((edited(inputs) - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    allowed = 10 * TOLERANCE.get(model.dtype, 1e-5)
    if not far <= allowed:
        raise UnsupportedModel(
            f"{change.words}: the edited weights do not do what the edit says (outputs differ by {far:.1e}, allowed "
            f"{allowed:.0e}): a layer does more than its weight says. Merge adapters first, or keep it a run-time edit."
        )
    return far, allowed
