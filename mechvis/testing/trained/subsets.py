"""Random joint interchanges: every row of a batch exchanges its own subset of places."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from mechvis.axes import Labels
from mechvis.testing.trained.answers import answer
from mechvis.testing.trained.interchange import Donor, Trace
from mechvis.testing.trained.placement import Placement
from mechvis.testing.trained.scenes import Scenes
from mechvis.testing.trained.task import PlantedTask


@dataclass(frozen=True, kw_only=True)
class Interchange:
    """What one random pass exchanges, and what the program then answers."""

    donors: tuple[Donor, ...]
    """Planted places from A, outside places from B."""
    labels: Labels
    """The program's answer under the exchange."""
    alone: Bool[Tensor, " row"]
    """Rows in which outside places only are exchanged: there nothing may change."""


def random_interchange(
    task: PlantedTask,
    placement: Placement,
    scenes: Scenes,
    trace: Trace,
    generator: torch.Generator,
    *,
    p_planted: float = 0.4,
    p_outside: float = 0.6,
    p_alone: float = 0.0,
) -> Interchange:
    """A random interchange within a batch, by rows.

    Args:
        task: images and program.
        placement: where the program is.
        scenes: the batch.
        trace: its plain forward.
        generator: draws sources and subsets.
        p_planted: probability of every planted place.
        p_outside: probability of every outside place.
        p_alone: share of rows in which no planted place is exchanged.

    Returns:
        What to exchange, and the label to expect.
    """
    n = len(scenes)

    def draw(names: tuple[str, ...], p: float) -> dict[str, Tensor]:
        return {name: torch.rand(n, generator=generator) < p for name in names}

    from_a, from_b = (torch.randperm(n, generator=generator) for _ in range(2))
    planted, outside = draw(tuple(placement.planted), p_planted), draw(placement.outside_places, p_outside)
    alone = torch.rand(n, generator=generator) < p_alone
    planted = {name: rows & ~alone for name, rows in planted.items()}
    donors = (
        Donor(trace=trace, order=from_a, chosen=planted),
        Donor(trace=trace, order=from_b, chosen=outside),
    )
    return Interchange(
        donors=donors,
        labels=answer(task, placement, scenes, scenes[from_a], planted),
        alone=~torch.stack(list(planted.values())).any(0),
    )
