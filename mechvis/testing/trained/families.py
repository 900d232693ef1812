"""Pair families: clean and corrupt images that differ in one variable of the program, in all, or in nothing relevant.

=============  ========================================================================================================
family         corrupt half
=============  ========================================================================================================
one variable   the clean image with another value of that variable, everything else kept to the pixel
`all`          another image
`nuisance`     the same variables in another place, size, brightness and noise: *nothing* is active
=============  ========================================================================================================

What a single node does under exchange is known row by row, from the program: :attr:`PairFamily.noised` and
:attr:`PairFamily.denoised`.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from mechvis.axes import Labels, Mask, Pixels
from mechvis.errors import unknown
from mechvis.testing.trained.answers import answer
from mechvis.testing.trained.placement import Placement
from mechvis.testing.trained.places import GROUPS, node_of
from mechvis.testing.trained.scenes import Variables
from mechvis.testing.trained.task import PlantedTask
from mechvis.testing.trained.truth import Truth, truth_of


@dataclass(frozen=True, kw_only=True, eq=False)
class PairFamily:
    """Aligned pairs of a planted task, with what is true about them."""

    task: str
    """Name of the task."""
    name: str
    """Name of the family."""
    clean: Pixels = field(repr=False)
    """Preprocessed clean images."""
    corrupt: Pixels = field(repr=False)
    """Preprocessed corrupt images, aligned token by token."""
    clean_labels: Labels = field(repr=False)
    """The program's answer to the clean images."""
    corrupt_labels: Labels = field(repr=False)
    """The program's answer to the corrupt images."""
    clean_variables: Variables = field(repr=False)
    """Variables of the clean images."""
    corrupt_variables: Variables = field(repr=False)
    """Variables of the corrupt images."""
    masks: Mask = field(repr=False)
    """Objects of the clean images."""
    corrupt_masks: Mask = field(repr=False)
    """Objects of the corrupt images."""
    ids: tuple[str, ...] = field(repr=False)
    """One name per pair."""
    class_names: tuple[str, ...]
    """Name of each label."""
    truth: Truth = field(repr=False)
    """Grade of every node, unit and edge under this family."""
    noised: dict[str, Labels] = field(repr=False)
    """Planted node -> the answer that the program gives to each clean image when this node alone is corrupt."""
    denoised: dict[str, Labels] = field(repr=False)
    """Planted node -> the answer to each corrupt image when this node alone is clean."""

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def flips(self) -> Bool[Tensor, " image"]:
        """Rows whose label differs between the halves; on all others nothing shows at the output."""
        return self.clean_labels != self.corrupt_labels


def family_names(task: PlantedTask) -> tuple[str, ...]:
    """Names of a task's pair families."""
    return (*task.corruptions, "all", "nuisance")


def family(task: PlantedTask, placement: Placement, name: str, n: int, *, seed: int) -> PairFamily:
    """Draw a pair family.

    Args:
        task: images and program.
        placement: where the program is planted: decides the truth.
        name: one of :func:`family_names`.
        n: number of pairs.
        seed: of both halves.

    Returns:
        `n` pairs.

    Raises:
        UnknownName: no such family.
        BadData: `n` below one.

    Example:
        >>> from mechvis.testing.trained.tasks import task_of
        >>> task = task_of("colour-if-shape")
        >>> family(task, task.placement(0), "colour", 8, seed=1).truth.nodes["L1MLP"]
        'active'
    """
    if name not in family_names(task):
        raise unknown(f"pair family of {task.name}", name, family_names(task))
    clean = task.scenes(n, seed=seed)
    generator = torch.Generator().manual_seed(seed + 500_000_000)
    if name in task.corruptions:
        corrupt = task.corruptions[name](clean, generator)
    else:
        others = task.draw(n, generator)
        corrupt = others if name == "all" else clean.with_nuisance_of(others)
    changed = task.changes.get(name, (*clean.variables, "label") if name == "all" else ())
    labels, corrupt_labels = task.labels(clean), task.labels(corrupt)
    nodes = {node_of(place): place for place in placement.planted}
    return PairFamily(
        task=task.name,
        name=name,
        clean=task.render(clean),
        corrupt=task.render(corrupt),
        clean_labels=labels,
        corrupt_labels=corrupt_labels,
        clean_variables=clean.variables,
        corrupt_variables=corrupt.variables,
        masks=task.mask(clean),
        corrupt_masks=task.mask(corrupt),
        ids=tuple(f"{task.name}/{name}/{seed}/{row:06d}" for row in range(n)),
        class_names=task.classes,
        truth=truth_of(placement, changed, GROUPS if task.registers else ("cls", "patch")),
        noised={node: answer(task, placement, clean, corrupt, {place: True}) for node, place in nodes.items()},
        denoised={node: answer(task, placement, corrupt, clean, {place: True}) for node, place in nodes.items()},
    )
