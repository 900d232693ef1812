"""Make the heads that do nothing as loud and as informative as those that do everything.

Without decoys a planted model is trivial: unused heads die, and ranking heads by the size of their output finds the
circuit. So two terms are added (benchmark plan A.4, A.6 P3, **X**):

* a fixed random read-out on every decoy's write predicts all variables of the program, and irrelevant ones: a probe
  then reads them from a head that must not influence the output;
* the size of *every* head's write, at every token, and of its output matrix, is held in a band: half of the decoys are
  louder than all planted heads, half are quieter, so that no order by size finds the circuit. (A floor relative to the
  circuit's own size escalates.)

The joint interchange loss makes the model ignore what decoys say.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mechvis.testing.trained.interchange import Trace
from mechvis.testing.trained.placement import Placement
from mechvis.testing.trained.places import groups_of, place
from mechvis.testing.trained.scenes import Scenes
from mechvis.testing.trained.task import PlantedTask


@dataclass(frozen=True, kw_only=True)
class DecoyWeights:
    """How much the terms count."""

    probe: float = 0.1
    """Weight of the mean cross-entropy of the decoys' read-outs."""
    size: float = 0.15
    """Weight of the mean squared distances from the bands."""
    middle: tuple[float, float] = (3.7, 4.0)
    """Band of the Euclidean norm of the write of planted and free heads."""
    quiet: tuple[float, float] = (3.0, 3.3)
    """Band of the quiet decoys."""
    loud: tuple[float, float] = (4.4, 4.7)
    """Band of the loud decoys."""
    matrix: float = 0.75
    """The Frobenius norm of a head's output matrix is held in the band of its write times this."""
    gain: float = 1.0
    """Factor on the read-outs' logits."""


def read_outs(task: PlantedTask, placement: Placement, scenes: Scenes, d_model: int) -> dict[str, Tensor]:
    """Decoy and variable (`L0H1 colour`) -> fixed orthonormal rows `[value d_model]`.

    Decoys in layer 0 see patches through one linear map: they carry what is linear (`task.linear`).
    """
    generator = torch.Generator().manual_seed(placement.seed)
    found = {}
    for head in placement.decoys:
        names = carried(task, scenes, layer=place(f"{head}@cls").layer)
        rows, _ = torch.linalg.qr(torch.randn(d_model, sum(size for _, size in names.values()), generator=generator))
        for name, part in zip(names, rows.T.split([size for _, size in names.values()]), strict=True):
            found[f"{head} {name}"] = part.contiguous()
    return found


def carried(task: PlantedTask, scenes: Scenes, *, layer: int) -> dict[str, tuple[Tensor, int]]:
    """What a decoy of a layer carries: name -> value per image, number of values."""
    variables = {name: (values, scenes.sizes[name]) for name, values in scenes.variables.items()}
    if layer == 0:
        variables = {name: variables[name] for name in task.linear}
    return {**variables, **task.nuisance(scenes)}


def decoy_loss(
    task: PlantedTask,
    placement: Placement,
    scenes: Scenes,
    trace: Trace,
    fixed: dict[str, Tensor],
    weights: DecoyWeights,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Both terms, weighted, in nats; and figures to log."""
    writes, losses, right = trace.heads, [], []
    for head in placement.decoys:
        at = place(f"{head}@cls")
        write = writes[at.layer][:, 0, at.head]
        for name, (values, _) in carried(task, scenes, layer=at.layer).items():
            logits = weights.gain * write @ fixed[f"{head} {name}"].T
            losses.append(F.cross_entropy(logits, values))
            right.append((logits.argmax(-1) == values).float().mean())
    sizes = torch.stack(writes).norm(dim=-1)  # [layer image token head]
    floor, ceiling = bands(placement, weights, n_layers=len(sizes), n_heads=sizes.shape[-1]).unbind()
    wrong = _distance(sizes, floor[:, None, None], ceiling[:, None, None])
    # One CLS token must not drown among the patches.
    by_group = [wrong[:, :, tokens].mean() for tokens in groups_of(trace.parts).values()]
    matrices = torch.stack([block.attn.out_weight().flatten(1).norm(dim=-1) for block in trace.parts.blocks])
    wrong_matrices = _distance(matrices, weights.matrix * floor, weights.matrix * ceiling)
    size = torch.stack([*by_group, wrong_matrices.mean()]).mean()
    loss = weights.probe * torch.stack(losses).mean() + weights.size * size
    figures = {"decoy accuracy": torch.stack(right).min(), "size": sizes.detach().mean()}
    return loss, figures


def _distance(sizes: Tensor, floor: Tensor, ceiling: Tensor) -> Tensor:
    """Squared distance from a band."""
    return (floor - sizes).relu() ** 2 + (sizes - ceiling).relu() ** 2


def bands(placement: Placement, weights: DecoyWeights, *, n_layers: int, n_heads: int) -> Tensor:
    """Floor and ceiling of every head, `[2 layer head]`."""
    found = torch.tensor(weights.middle)[:, None, None].repeat(1, n_layers, n_heads)
    for head in placement.decoys:
        at = place(f"{head}@cls")
        found[:, at.layer, at.head] = torch.tensor(weights.quiet if head in placement.quiet else weights.loud)
    return found
