"""The way from a latent straight to the output: what it writes to the stream, and how the read-out answers it.

Everything between the dictionary and the read-out is left out, and the last norm's scale is held at its clean value
(methods.md 2.1), so the read-out is linear up to a head that is not; its slope is taken there.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechvis import block as plain
from mechvis.axes import Residual
from mechvis.errors import RefusedMethod
from mechvis.models.parts import SpliceParts
from mechvis.norms import gain_and_bias, statistics


def stream_directions(model: Any, splice: SpliceParts) -> Float[Tensor, "latent d_model"]:
    """What one unit of each latent adds to the residual stream.

    Raises:
        RefusedMethod: what is written at that site is not added to the stream.
    """
    directions, words = splice.directions(), splice.site.split(".")
    if words[0] == "blocks":
        layer, place = int(words[1]), ".".join(words[2:])
        if place == "attn.hook_z" and model.parts.blocks[layer].linear_writes:
            weight = model.blocks[layer].attn.W_O
            return directions.to(weight) @ weight.flatten(0, 1)
        if place in ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out"):
            return directions
    if splice.site == "hook_embed":
        return directions
    raise RefusedMethod(f"{splice.site} is not added to the residual stream, so its latents have no direct path.")


def frozen_read_out(model: Any, stream: Residual | None = None) -> Callable[[Residual], Tensor]:
    """The read-out as a function of the last stream, with the last norm's scale held.

    Args:
        model: a wrapped model.
        stream: whose scale; None: of what goes in, without its slope.
    """
    parts, norm, kept = model.parts, model.parts.ln_final, {}
    if hasattr(norm, "eps") and isinstance(norm, nn.Module):

        def frozen(x: Tensor) -> Tensor:
            centred, scale = statistics(norm, x)
            scale = kept["scale"] if "scale" in kept else scale.detach()
            kept["last"] = scale
            return gain_and_bias(norm, centred / scale)

        parts = replace(parts, ln_final=frozen)

    def read(x: Residual) -> Tensor:
        return plain.read_out(parts, x, lambda tokens: model._pick(tokens, tokens))

    if stream is not None:
        with torch.no_grad():
            read(stream)
        kept["scale"] = kept.get("last")
        if kept["scale"] is None:
            del kept["scale"]
    return read
