"""What the high-level program answers when some of its variables take another image's value."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from mechvis.axes import Labels
from mechvis.testing.trained.placement import Placement
from mechvis.testing.trained.scenes import Scenes
from mechvis.testing.trained.task import PlantedTask


def answer(
    task: PlantedTask,
    placement: Placement,
    base: Scenes,
    source: Scenes,
    chosen: Mapping[str, Bool[Tensor, " image"] | bool],
) -> Labels:
    """The program's answer where some planted places take their value from a source.

    Args:
        task: the program.
        placement: which place carries which variable.
        base: the images that are run.
        source: row by row, the images that give.
        chosen: planted place -> rows that take it. Places that share a variable: either exchanges it.

    Returns:
        Label per image.
    """
    variables = dict(base.variables)
    result = None
    for place, rows in chosen.items():
        rows = torch.full((len(base),), rows) if isinstance(rows, bool) else rows
        variable = placement.planted[place]
        if variable == "label":
            result = rows
        else:
            variables[variable] = torch.where(rows, source.variables[variable], variables[variable])
    labels = task.program(variables)
    return labels if result is None else torch.where(result, task.labels(source), labels)
