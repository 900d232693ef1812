"""What a node makes of a changed input: the one place where an edge intervention meets the model's own layers.

A node reads the stream through a norm. If something is taken out of what it reads, the norm divides by another length,
and so every other input changes too. Two answers, both offered:

* `recomputed`: the norm sees the changed stream, as it would in the model;
* `frozen`: it divides by what it divided by before (the mean of LayerNorm is taken off anew: that is linear), so that
  an edge carries its own contribution and nothing else (methods2.md 22, pitfalls).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from circuits.causal_paths.runs import Recording, picked
from circuits.edges.inputs import KINDS, LayerInputs, layer_inputs, project
from mechvis import block as plain
from mechvis.axes import Residual
from mechvis.models.parts import BlockParts, Layout
from mechvis.norms import gain_and_bias, is_rms, statistics
from mechvis.units import Unit
from mechvis.wave.same import same

Norm = Literal["frozen", "recomputed"]
Changes = Float[Tensor, "change row token d_model"]
"""What is taken out of what a node reads; several times the same rows."""
Changed = Float[Tensor, "changed token d_model"]
"""Streams after that, changes and rows along one axis."""


def normed(norm: Any, clean: Residual, how: Norm) -> Callable[[Tensor], Tensor]:
    """A norm for changed streams: the model's own, or one that divides by what it divides the clean stream by.

    Args:
        norm: the model's.
        clean: the unchanged stream `[row token d_model]`; the changed one has its rows, any number of times.
        how: `frozen` or `recomputed`.
    """
    if how == "recomputed" or not hasattr(norm, "eps"):
        return norm
    scale = statistics(norm, clean)[1]

    def frozen(x: Tensor) -> Tensor:
        centred = x if is_rms(norm) else x - x.mean(-1, keepdim=True)
        divided = centred.reshape(-1, len(scale), *x.shape[-2:]) / scale
        return gain_and_bias(norm, divided.reshape(x.shape))

    return frozen


@dataclass(frozen=True, eq=False)
class Reader:
    """Recomputes nodes of a model on changed inputs."""

    model: Any
    """A wrapped model."""
    norm: Norm = "frozen"
    """How norms see a changed stream."""
    _columns: dict[int, Any] = field(default_factory=dict, repr=False)
    _inputs: dict[int, LayerInputs] = field(default_factory=dict, repr=False)

    def value(self, node: Unit, run: Recording, layout: Layout, change: Changes) -> Tensor:
        """What a unit does when something is taken out of what it reads.

        Args:
            node: the unit.
            run: the run of these rows.
            layout: of their size.
            change: what is taken out.

        Returns:
            `[change row token]` of a neuron, `[change row token d_head]` of a head.
        """
        block = self.model.parts.blocks[node.layer]
        if node.kind == "neurons":
            clean = run.mid[node.layer]
            x = normed(block.ln2, clean, self.norm)((clean - change).flatten(0, 1))
            return self._neuron(node, block, x, clean).unflatten(0, change.shape[:2])
        clean = run.pre[node.layer]
        block = replace(block, ln1=normed(block.ln1, clean, self.norm))
        return self._head(node, block, (clean - change).flatten(0, 1), clean, layout).unflatten(0, change.shape[:2])

    def without(self, node: Unit, run: Recording, means: Recording, units: Sequence[Unit]) -> Tensor | None:
        """A neuron when it hears each of some units at their mean: what :meth:`value` gives for their changes, without
        ever making a change of the stream.

        With a frozen norm a neuron's pre-activation is linear in what it reads, and what one unit adds to it is its own
        value times one number per pair (for a head `d_head` numbers), over what the norm divides by.

        Args:
            node: the neuron.
            run: the run of these rows.
            means: what takes the units' place.
            units: which.

        Returns:
            `[change row token]`, or None where this does not hold (another norm, a gated or normed MLP).
        """
        block = self.model.parts.blocks[node.layer]
        if self.norm != "frozen" or block.gated or block.mlp_norm is not None:
            return None
        clean = run.mid[node.layer]
        products = self._product(block, node.layer, clean)
        if products is None:
            return None
        (weight, bias), norm = products[0], block.ln2
        heard = weight[:, node.index]
        pre = einsum(norm(clean), heard, "row token d, d -> row token") + bias[node.index]
        if hasattr(norm, "eps"):
            heard = heard if getattr(norm, "weight", None) is None else heard * norm.weight
            heard = heard if is_rms(norm) else heard - heard.mean()
            scale = statistics(norm, clean)[1][..., 0]
        else:
            scale = torch.ones_like(pre)
        parts = []
        for unit in units:
            own, sites = run.value(unit) - means.value(unit), self.model.blocks[unit.layer]
            if unit.kind == "neurons":
                parts.append(own * (sites.mlp.W_out[unit.index] @ heard))
            else:
                parts.append(own @ (sites.attn.W_O[unit.index] @ heard))
        return block.act(pre - torch.stack(parts) / scale)

    def out(self, run: Recording, change: Changes) -> Float[Tensor, "change row class"]:
        """The model's output when something is taken out of what the read-out reads."""
        parts = self.model.parts
        clean, changed = run.final, (run.final - change).flatten(0, 1)
        if self.norm == "frozen":
            parts = replace(parts, ln_final=_frozen_final(parts, clean))
        return plain.read_out(parts, changed, picked(parts)).unflatten(0, change.shape[:2])

    def _product(self, block: BlockParts, layer: int, clean: Residual) -> tuple[tuple[Tensor, Tensor], ...] | None:
        """Weights of an MLP's first layer, made once."""
        if layer not in self._columns:
            self._columns[layer] = _products(block, block.ln2(clean[:2]))
        return self._columns[layer]

    def _neuron(self, node: Unit, block: BlockParts, x: Changed, clean: Residual) -> Float[Tensor, "changed token"]:
        """One neuron of a normalised stream; by its own column where the first layer is one product."""
        products = self._product(block, node.layer, clean)
        if products is None:
            return plain.neurons(block, x)[..., node.index]
        pre = tuple(
            einsum(x, weight[:, node.index], "row token d, d -> row token") + bias[node.index]
            for weight, bias in products
        )
        return plain.activations(block, pre if block.gated else pre[0])

    def _head(self, node: Unit, block: BlockParts, x: Changed, clean: Residual, layout: Layout) -> Tensor:
        own_norm = self.model.parts.blocks[node.layer]
        if node.layer not in self._inputs:
            self._inputs[node.layer] = layer_inputs(own_norm, clean[:2])
        inputs = replace(self._inputs[node.layer], block=block)
        index = torch.tensor([node.index], device=x.device)
        attn, projected = block.attn, []
        normalised = own_norm.ln1(clean)
        for kind in KINDS:
            # The other heads have their clean inputs: position bias and norms over heads want them all.
            whole = project(attn, kind, normalised).repeat(len(x) // len(clean), 1, 1, 1)
            whole[:, :, node.index] = inputs.of(kind, index, x[None])[0]
            projected.append(whole)
        q, k = plain.place(attn, projected[0], projected[1], layout)
        return plain.finish(attn, plain.mix(attn, q, k, projected[2], layout))[:, :, node.index]


def _frozen_final(parts: Any, clean: Residual) -> Callable[[Tensor], Tensor]:
    """The last norm, which may act on tokens, on those that are read, or on the pooled vector."""
    known: dict[str, Any] = {}

    def first(x: Tensor) -> Tensor:
        flat = x if x.ndim == 3 else x[:, None]
        known["norm"] = normed(parts.ln_final, flat, "frozen")
        return parts.ln_final(x)

    plain.read_out(replace(parts, ln_final=first), clean, picked(parts))

    def frozen(x: Tensor) -> Tensor:
        return known["norm"](x) if x.ndim == 3 else known["norm"](x[:, None])[:, 0]

    return frozen


@torch.no_grad()
def _products(block: BlockParts, normalised: Residual) -> tuple[tuple[Tensor, Tensor], ...] | None:
    """Weights and biases `[d_model d_mlp]`, `[d_mlp]` of the MLP's first layer (two where it is gated), read off by
    unit vectors; None where its neurons are not made one by one."""
    if block.mlp_norm is not None:
        return None
    unit = torch.eye(normalised.shape[-1], device=normalised.device, dtype=normalised.dtype)[None]

    def made(x: Tensor) -> tuple[Tensor, ...]:
        found = block.mlp_in(x)
        return tuple(found) if block.gated else (found,)

    biases = made(torch.zeros_like(unit[:, :1]))
    weights = tuple(value[0] - bias[0, 0] for value, bias in zip(made(unit), biases, strict=True))
    products = tuple((weight, bias[0, 0]) for weight, bias in zip(weights, biases, strict=True))
    for (weight, bias), expected in zip(products, made(normalised), strict=True):
        if not same(normalised @ weight + bias, expected):
            return None
    return products


def written(model: Any, unit: Unit, value: Tensor) -> Tensor:
    """What a value of a unit is in the stream `[... token d_model]`, LayerScale included."""
    block = model.blocks[unit.layer]
    if unit.kind == "neurons":
        return value[..., None] * block.mlp.W_out[unit.index]
    return value @ block.attn.W_O[unit.index]


def tail(model: Any, node: Unit, run: Recording, layout: Layout, moved: Tensor) -> Float[Tensor, "change row out"]:
    """The output when a unit does something else, everything after it computed anew.

    Args:
        model: a wrapped model.
        node: the unit.
        run: the run of these rows.
        layout: of their size.
        moved: its new value less its own, `[change row token]` of a neuron, with `d_head` of a head.
    """
    parts, layer = model.parts, node.layer
    last = len(parts.blocks) - 1
    reads = list(parts.reads) if isinstance(parts.reads, tuple) else None
    if node.kind == "heads":
        before = run.mid[layer]
    else:
        before = run.pre[layer + 1] if layer < last else run.final
    if reads is not None and layer == last:
        # From here on every token goes its own way, and only these are read.
        before, moved = before[:, reads], moved[:, :, reads]
    x = (before + written(model, node, moved)).flatten(0, 1)
    if node.kind == "heads":
        x = x + plain.mlp(parts.blocks[layer], x)
    for index in range(layer + 1, last + 1):
        x = _block(parts.blocks[index], x, layout, reads if index == last else None)
    return plain.read_out(parts, x, lambda x: x).unflatten(0, moved.shape[:2])


def _block(
    block: BlockParts, x: Residual, layout: Layout, reads: list[int] | None
) -> Float[Tensor, "row read d_model"]:
    """A block; with `reads`, the stream of these tokens alone comes out: all others are keys and values only."""
    if reads is None:
        return plain.plain(block, x, layout)
    z = plain.heads(block, block.ln1(x), layout, torch.tensor(reads, device=x.device))
    mid = x[:, reads] + plain.scaled(block.scale1, block.attn.out(plain.merge(z)))
    return mid + plain.mlp(block, mid)


def differences(model: Any, units: Iterable[Unit], run: Recording, means: Recording) -> Changes:
    """What each unit writes more than on average."""
    found = [written(model, unit, run.value(unit) - means.value(unit)) for unit in units]
    return torch.stack(found)
