"""The published convention for what belongs to no component: everything is shared out (methods.md 2.1 **C**).

What the last norm takes off and puts on is spread evenly over the `2 n_layers + 1` writes (an attention's share evenly
over its heads). The sum is that of the convention `linear`; a single head differs by some percent.
"""

from typing import Any

import torch
from einops import einsum, rearrange
from torch import Tensor

from mechvis.decompose.readout import Frozen
from mechvis.norms import gain, is_rms


def spread(fixed: Any, frozen: Frozen, stream: Tensor, found: Any) -> None:
    """`linear` to `even_split`: what the norm takes off and puts on is shared evenly by all writes.

    In `linear` a term has had its own mean taken off. That is given back, and every write gets an equal share of the
    whole stream's mean and of the norm's bias.
    """
    model, norm = fixed.model, fixed.model.parts.ln_final
    n_writes = 2 * len(model.parts.blocks) + 1
    centred = not is_rms(norm) and hasattr(norm, "eps")
    weight = rearrange(fixed.readout.weight, "(slot d) out -> slot d out", slot=frozen.mix.shape[1])
    # The gain alone, without taking the mean off: what a vector of equal entries would add.
    raw = rearrange(gain(norm, rearrange(weight, "slot d out -> slot out d")), "slot out d -> slot d out").sum(1)

    def mean_part(x: Tensor) -> Tensor:
        """What the mean of a part of the stream adds, `[image out]`; zero for an RMS norm."""
        if not centred:
            return torch.zeros_like(frozen.constant)
        means = frozen.mixed(x.mean(-1, keepdim=True))[..., 0]
        return frozen.scaled(einsum(means, raw, "image slot, slot out -> image out"))

    share = (frozen.scaled(frozen.constant) - mean_part(stream)) / n_writes
    for place, (kind, layer) in enumerate(zip(found.kinds, found.layers, strict=True)):
        own = _own_mean(fixed, frozen, found, place, mean_part)
        if kind == "embed":
            writes = 1 + 2 * fixed.layers[0]
        elif kind == "head":
            writes = 1 / model.parts.blocks[layer].attn.n_heads
        else:
            writes = 1
        found.values[place] = found.values[place] + own + share * writes


def _own_mean(fixed: Any, frozen: Frozen, found: Any, place: int, mean_part: Any) -> Tensor:
    """What the mean of one write adds; a head's includes its share of the output bias."""
    cache, layer, kind = found.cache, found.layers[place], found.kinds[place]
    if kind == "embed":
        return mean_part(cache[f"blocks.{fixed.layers[0]}.hook_resid_pre"])
    if kind == "mlp":
        return mean_part(cache[f"blocks.{layer}.hook_mlp_out"])
    attn = fixed.model.blocks[layer].attn
    head = found.names[place].rpartition("H")[2]
    written = cache[f"blocks.{layer}.attn.hook_z"][:, :, int(head)] @ attn.W_O[int(head)].mean(-1, keepdim=True)
    if attn.b_O is not None:
        written = written + attn.b_O.mean() / attn.W_O.shape[0]
    return mean_part(written)
