"""The rest of a model from the stream before some block, with gradients: what methods that change activations run.

It computes the same as `model.run(pixels, [edits.call("blocks.l.hook_resid_pre", ...)])` without the blocks before, and
without hooks: twins in `tests/mechvis/attribution/test_pert_iba.py`.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from mechvis import block as plain
from mechvis.attribution.question import Question


def stream_at(ask: Question, layer: int) -> Float[Tensor, "image token d_model"]:
    """The clean stream before block `layer`; counts as a pass."""
    return ask.captured([f"blocks.{layer}.hook_resid_pre"])[1][f"blocks.{layer}.hook_resid_pre"].detach()


def tail(
    model: Any, stream: Float[Tensor, "row token d_model"], layer: int, size: tuple[int, int]
) -> Float[Tensor, "row class"]:
    """The output for a given stream before block `layer`.

    Args:
        model: a wrapped vision model.
        stream: rows of images of one size.
        layer: the first block that runs.
        size: (height, width) of the images in pixels: attention of some models depends on it.
    """
    model._check_mode()
    parts = model._for_size(size)[0]
    layout = None if parts.layout is None else parts.layout(size)
    for one in parts.blocks[layer:]:
        stream = plain.plain(one, stream, layout)
    return model._read_out(stream, stream, None)
