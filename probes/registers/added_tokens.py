"""Test-time registers: give the scratch space a token of its own, without training (**C**; methods.md 12).

1. Append tokens that start as zeros (after CLS, before the patches: attention does not care where).
2. At the register neurons, the value of largest magnitude over the patches goes to the new tokens, with its sign, and
   the patches get zero. CLS is left alone.

The user's model is not touched: :func:`with_registers` wraps the same module once more with an embedding that appends
the tokens and a read-out that leaves them out, and the second step is an edit of `mlp.hook_post`. The wrapped model has
the tokens as `register`s in its prefix, so every other method sees patches where patches are.

Zeros are appended to the stream before block 0 (**X**: after the norm that CLIP has there). Models whose attention
depends on the place of a token (rotary positions, position bias) and those with attention pooling are refused: a new
token has no place there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis import edits
from mechvis.edits import Edit
from mechvis.errors import BadData, OutOfRange, RefusedMethod
from mechvis.hooked import HookedViT
from mechvis.models.parts import TowerParts


@dataclass(frozen=True, kw_only=True, eq=False)
class Registered:
    """A model with registers and the edits that fill them."""

    model: HookedViT
    """The same module, wrapped with registers in its prefix."""
    edits: tuple[Edit, ...]
    """What moves the register neurons' activations; pass them with your own to `model.run`."""
    neurons: dict[int, tuple[int, ...]]
    """Units that were moved, by layer."""
    n_registers: int
    """How many tokens were added."""

    def run(self, images: Any, edits: Sequence[Edit] = (), **more: Any) -> Any:
        """One forward pass with the registers at work; arguments as of `HookedViT.run`."""
        return self.model.run(images, edits=[*self.edits, *edits], **more)


def with_registers(model: HookedViT, neurons: Mapping[int, Sequence[int]], *, n: int = 1) -> Registered:
    """The same model with test-time registers.

    Args:
        model: a wrapped image tower that reads CLS, or pools its patches by a fixed rule.
        neurons: layer -> MLP units, from :meth:`RegisterNeurons.by_layer`.
        n: tokens to add; each of them gets the moved value.

    Returns:
        Registered: `.run(images)` answers as `model.run(images)` does.

    Raises:
        RefusedMethod: attention depends on places, or the model pools by attention or reads text.
        BadData: no neuron.
        OutOfRange: a layer or unit that does not exist, or fewer than one token.

    Example:
        >>> registered = with_registers(model, found.by_layer(10))                                 # doctest: +SKIP
        >>> registered.run(images).logits                                                          # doctest: +SKIP
    """
    if n < 1:
        raise OutOfRange(f"n={n}: at least one register is added.")
    chosen = _checked(model, neurons)
    parts = registered_parts(model.parts, n)
    wrapped = HookedViT(
        model.bare, parts, preprocess=model.preprocess, name=f"{model.title or parts.family}, registers"
    )
    base = model.__dict__["family"]
    if base is not None:
        size = model.parts.image_size
        wrapped.__dict__["family"] = lambda module: registered_parts(base(module).at_size(size), n)
    first = len(model.parts.prefix)
    moves = tuple(
        edits.call(f"blocks.{layer}.mlp.hook_post", _Move(first, n), units=units) for layer, units in chosen.items()
    )
    return Registered(model=wrapped, edits=moves, neurons=chosen, n_registers=n)


def registered_parts(parts: TowerParts, n: int) -> TowerParts:
    """A tower with `n` more tokens of zeros after its prefix, which its read-out does not see.

    Raises:
        RefusedMethod: the new tokens would have no place.
    """
    if parts.modality != "image" or callable(parts.reads):
        raise RefusedMethod("registers are for image towers; this one reads text.")
    if parts.layout is not None:
        raise RefusedMethod(
            f"the attention of {parts.family} depends on the place of each token (rotary positions or position bias); "
            "an added token has no place."
        )
    if parts.pooling is not None:
        raise RefusedMethod(
            f"{parts.family} pools by attention over its tokens; what it is to do with more is not known."
        )
    first = len(parts.prefix)

    def embed(pixels: Tensor) -> Tensor:
        stream = parts.embed(pixels)
        added = stream.new_zeros(len(stream), n, stream.shape[-1])
        return torch.cat([stream[:, :first], added, stream[:, first:]], dim=1)

    def pool(tokens: Tensor) -> Tensor:
        return parts.pool(torch.cat([tokens[:, :first], tokens[:, first + n :]], dim=1))

    reads = parts.reads
    if reads is not None:
        reads = tuple(token if token < first else token + n for token in reads)
    return replace(
        parts,
        family=f"{parts.family} with {n} test-time registers",
        embed=embed,
        reads=reads,
        pool=pool if reads is None else parts.pool,
        prefix=(*parts.prefix, *(f"register{_registers(parts) + i}" for i in range(n))),
        n_tokens=parts.n_tokens + n,
        # What the bare model answers is no longer the same; the unhooked pass over these parts is.
        reference=lambda pixels: _plain(parts, embed, reads, pool, pixels),
    )


class _Move:
    """At some neurons: the patches' value of largest magnitude to the registers, zero to the patches."""

    __qualname__ = "move_to_registers"

    def __init__(self, first: int, n: int):
        self.first, self.n = first, n

    def __call__(self, neurons: Float[Tensor, "row token unit"]) -> Float[Tensor, "row token unit"]:
        patches = neurons[:, self.first + self.n :]
        loudest = patches.gather(1, patches.abs().argmax(1, keepdim=True))
        return torch.cat([neurons[:, : self.first], loudest.expand(-1, self.n, -1), torch.zeros_like(patches)], dim=1)


def _registers(parts: TowerParts) -> int:
    return sum(name.startswith("register") for name in parts.prefix)


def _plain(parts: TowerParts, embed: Any, reads: Any, pool: Any, pixels: Tensor) -> Tensor:
    from mechvis import block

    x = embed(pixels)
    for each in parts.blocks:
        x = block.plain(each, x)
    pick = (lambda stream: stream) if reads is None else (lambda stream: stream[:, list(reads)])
    return block.read_out(replace(parts, pool=pool if reads is None else parts.pool), x, pick)


def _checked(model: HookedViT, neurons: Mapping[int, Sequence[int]]) -> dict[int, tuple[int, ...]]:
    n_layers = len(model.parts.blocks)
    chosen = {int(layer): tuple(int(unit) for unit in units) for layer, units in neurons.items() if len(units)}
    if not chosen:
        raise BadData("no register neuron is given: layer -> units, from register_neurons(...).by_layer().")
    for layer, units in chosen.items():
        if not 0 <= layer < n_layers:
            raise OutOfRange(f"layer {layer} does not exist: this model has layers 0 to {n_layers - 1}.")
        d_mlp = model.parts.blocks[layer].d_mlp
        if not all(0 <= unit < d_mlp for unit in units):
            raise OutOfRange(f"neuron {max(units)} does not exist in block {layer}, which has {d_mlp}.")
    return chosen
