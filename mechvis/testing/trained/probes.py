"""Linear probes on carriers and decoys: the classical false positive, with a known answer.

A probe that reads a variable from a head does not show that the head matters. In a model with decoys it reads shape and
colour from heads that must not influence the output, as well as from the heads that carry them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mechvis.models.parts import TowerParts
from mechvis.testing.trained.exact import write_of
from mechvis.testing.trained.interchange import forward
from mechvis.testing.trained.placement import Placement
from mechvis.testing.trained.places import groups_of, node_of, place
from mechvis.testing.trained.task import PlantedTask


@torch.no_grad()
def probe_table(
    parts: TowerParts, task: PlantedTask, placement: Placement, *, seed: int, n: tuple[int, int] = (1500, 1000)
) -> dict[str, dict[str, Any]]:
    """How well each variable is read from its carrier and from the outside heads.

    Args:
        parts: `model.parts`.
        task: images and variables.
        placement: carriers and outside heads.
        seed: of the images.
        n: images to fit and to test a probe on.

    Returns:
        Variable -> `carrier` (place, accuracy), `outside` (head -> accuracy at CLS), `best outside`.
    """
    scenes = task.scenes(sum(n), seed=seed)
    trace = forward(parts, task.render(scenes))
    groups = groups_of(parts)

    def accuracy(at: str, values: Tensor, size: int) -> float:
        write = write_of(trace, node_of(at))[:, groups[place(at).group].start]
        return _held_out(write, values, size, fit=n[0])

    found = {}
    for variable, values in scenes.variables.items():
        size = scenes.sizes[variable]
        carriers = {at: accuracy(at, values, size) for at in placement.inputs if placement.planted[at] == variable}
        outside = {head: accuracy(f"{head}@cls", values, size) for head in placement.outside_heads}
        found[variable] = {
            "carrier": carriers,
            "outside": outside,
            "best outside": max(outside.values()),
            "chance": 1 / size,
        }
    return found


def _held_out(features: Tensor, values: Tensor, size: int, *, fit: int) -> float:
    """Accuracy of a ridge-regularised logistic regression on images it was not fitted to."""
    from mechvis.models.training.classifier import fit_logistic

    with torch.enable_grad():
        weight, bias = fit_logistic(features[:fit], values[:fit], classes=size, ridge=1e-3)
    return float((F.linear(features[fit:], weight, bias).argmax(-1) == values[fit:]).float().mean())
