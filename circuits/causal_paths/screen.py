"""Which units are worth an exact measurement: a first-order estimate for all of them at once.

    units:           |(a_u - mean) . dF/da_u|                                    F: the logit of the task's class
    edges into w:    |(a_u - mean) . da_w/da_u . dF/da_w|                         da_w/da_u: through the stream alone

summed over tokens, per image. One forward and backward for the units of all layers; for the edges into w the gradient
at w is handed back through w to what it reads, and every earlier unit is multiplied with that. It is attribution
patching (:mod:`circuits.attribution.atp`) with the mean of each *neuron* as base, which a task does not hold.

A gradient sees nothing where a unit is saturated, so a screen can miss; where there are no more candidates than are
measured exactly, nothing is screened out.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.causal_paths.nodes import unit_of
from circuits.causal_paths.reading import Reader
from circuits.causal_paths.runs import Batch, Recording, Runs
from mechvis.units import Unit

PerImage = Float[np.ndarray, "unit image"]


class Screen:
    """First-order estimates, each made once.

    Args:
        runs: the images.
        means: what takes a unit's place.
        target: the task's class, per image.
        reader: recomputes nodes.
    """

    def __init__(self, runs: Runs, means: Recording, target: Tensor, reader: Reader):
        self.runs, self.means, self.target, self.reader = runs, means, target, reader
        self.model = runs.model
        self._into: dict[str, PerImage] = {}

    def units(self, units: Sequence[Unit]) -> PerImage:
        """Estimates for units, everything after them included."""
        found = np.empty((len(units), len(self.runs)))
        sites = sorted({unit.site for unit in units})
        for batch in self.runs:
            gradient = self._gradients(batch, sites)
            at = slice(batch.rows.start, batch.rows.stop)
            for site in sites:
                here = [place for place, unit in enumerate(units) if unit.site == site]
                change = self._changes(batch, units[here[0]])
                estimate = (change * gradient[site]).flatten(3).sum(-1) if change.ndim == 4 else change * gradient[site]
                index = [units[place].index for place in here]
                found[here, at] = estimate.sum(1).abs().T[index].double().cpu().numpy()
        return found

    def into(self, reader: str, units: Sequence[Unit]) -> PerImage:
        """Estimates for what units contribute to another one; always of the same units.

        Args:
            reader: the unit that reads.
            units: the units before it, by layer and kind.
        """
        if reader in self._into:
            return self._into[reader]
        node, found = unit_of(reader), np.empty((len(units), len(self.runs)))
        for batch in self.runs:
            back = self._back(batch, node)
            at = slice(batch.rows.start, batch.rows.stop)
            for site in sorted({unit.site for unit in units}):
                here = [place for place, unit in enumerate(units) if unit.site == site]
                first, index = units[here[0]], [units[place].index for place in here]
                block = self.model.blocks[first.layer]
                with torch.no_grad():
                    change = self._changes(batch, first)
                    if first.kind == "neurons":
                        estimate = (change * (back @ block.mlp.W_out.T)).sum(1)
                    else:
                        heard = torch.einsum("itd,hed->ithe", back, block.attn.W_O)
                        estimate = (change * heard).sum((1, 3))
                found[here, at] = estimate.abs().T[index].double().cpu().numpy()
        self._into[reader] = found
        return found

    def _changes(self, batch: Batch, like: Unit) -> Tensor:
        """Activations less their mean of all units of a layer and kind."""
        kept = ("post", "z")[like.kind == "heads"]
        return getattr(batch.run, kept)[like.layer] - getattr(self.means, kept)[like.layer]

    def _gradients(self, batch: Batch, sites: Sequence[str]) -> dict[str, Tensor]:
        """Gradient of the task's logit at some sites."""
        run = self.model.run(batch.pixels, capture=sites, grad=True)
        target = self.target[batch.rows.start : batch.rows.stop].to(run.output.device)
        value = run.output.gather(-1, target[:, None]).sum()
        found = torch.autograd.grad(value, [run.cache[site] for site in sites], allow_unused=True)
        pairs = zip(sites, found, strict=True)
        return {site: torch.zeros_like(run.cache[site]) if g is None else g.detach() for site, g in pairs}

    def _back(self, batch: Batch, node: Unit) -> Float[Tensor, "image token d_model"]:
        """The gradient at a unit, handed back to the stream that it reads."""
        gradient = self._gradients(batch, [node.site])[node.site]
        at_node = gradient[..., node.index] if node.kind == "neurons" else gradient[:, :, node.index]
        stream = (batch.run.mid if node.kind == "neurons" else batch.run.pre)[node.layer]
        with torch.enable_grad():
            nothing = torch.zeros_like(stream)[None].requires_grad_(True)
            value = self.reader.value(node, batch.run, batch.layout, nothing)
            (found,) = torch.autograd.grad(value, nothing, at_node[None])
        # What is taken out of the stream lowers it: only the size matters.
        return -found[0]


@torch.no_grad()
def sizes_of(runs: Runs, means: Recording, units: Sequence[Unit]) -> Float[np.ndarray, " unit"]:
    """How much each unit writes more or less than on average: root mean square over images and tokens, in the norm of
    the stream. It is what random units are matched by.

    Args:
        runs: the images.
        means: their reference.
        units: which.
    """
    model, total = runs.model, np.zeros(len(units))
    for batch in runs:
        for site in sorted({unit.site for unit in units}):
            here = [place for place, unit in enumerate(units) if unit.site == site]
            first, index = units[here[0]], [units[place].index for place in here]
            block = model.blocks[first.layer]
            if first.kind == "neurons":
                change = batch.run.post[first.layer] - means.post[first.layer]
                squares = change.square().mean(1).sum(0) * block.mlp.W_out.square().sum(1)
            else:
                change = batch.run.z[first.layer] - means.z[first.layer]
                wrote = torch.einsum("ithe,hed->ithd", change, block.attn.W_O)
                squares = wrote.square().sum(-1).mean(1).sum(0)
            total[here] += squares[index].double().cpu().numpy()
    return np.sqrt(total / len(runs))


@torch.no_grad()
def loudness_of(runs: Runs, units: Sequence[Unit], how: str) -> Float[np.ndarray, " unit"]:
    """Activation of units, over tokens by `max` or `mean` and over images by the mean; of a head the norm of its z."""
    total = np.zeros(len(units))
    for batch in runs:
        for place, unit in enumerate(units):
            value = batch.run.value(unit)
            value = value.norm(dim=-1) if unit.kind == "heads" else value
            value = value.max(1).values if how == "max" else value.mean(1)
            total[place] += float(value.double().sum())
    return total / len(runs)
