"""The same behaviour under another ablation: same images, same classes, something else in the place of what is cut.

Target and contrast class stay those of the task, so that only the ablation changes. What a task does not hold must be
given: reference images for means (`mean` can be had from `mean_positional`, by averaging over tokens), and the corrupt
half for `patch`.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from circuits.edges.base import ABLATIONS, Outputs, mean_outputs
from circuits.evaluation.image_hashes import image_hashes
from circuits.pairs.pairs import Pairs
from circuits.task import Task, _others
from mechvis.errors import BadData, SplitOverlap, unknown


def with_ablation(
    task: Task, ablation: str, *, reference: Any = None, seed: int = 0, allow_overlap: bool = False
) -> Task:
    """The task with another ablation.

    Args:
        task: images, metric, classes.
        ablation: `patch`, `resample`, `zero`, `mean`, `mean_positional`.
        reference: for means: an `ImageSet`, `Pairs` (their clean half) or pixels.
        seed: of resampling.
        allow_overlap: accept reference images that are measured too.

    Raises:
        BadData: something that this ablation needs is missing; says what.
        SplitOverlap: reference images among the measured ones.
        UnknownName: no such ablation.

    Example:
        >>> with_ablation(task, "mean", reference=others).faithfulness(values)                     # doctest: +SKIP
    """
    if ablation not in ABLATIONS:
        raise unknown("ablation", ablation, ABLATIONS)
    if ablation == task.ablation:
        return task
    bare = replace(task, ablation=ablation, corrupt=None, fixed=None)
    if ablation == "zero":
        return bare
    if ablation == "patch":
        raise BadData("patch takes the corrupt half of pairs, and this task has none.")
    if ablation == "resample":
        return replace(bare, corrupt=task.clean[_others(len(task), seed)], seed=seed)
    if reference is not None:
        pixels = task.model.inputs(reference.clean if isinstance(reference, Pairs) else reference)
        if not allow_overlap:
            _refuse_overlap(task, pixels)
        return replace(bare, fixed=mean_outputs(task.model, pixels, positional=ablation == "mean_positional"))
    if ablation == "mean" and task.ablation == "mean_positional":
        return replace(bare, fixed=over_tokens(task.fixed))
    raise BadData(f"{ablation} needs reference= images, other ones than those that are measured.")


def over_tokens(means: Outputs) -> Outputs:
    """Positional means averaged over all tokens."""
    return means.map(lambda value: value.mean(1, keepdim=True).expand_as(value))


def _refuse_overlap(task: Task, pixels: Tensor) -> None:
    shared = set(image_hashes(task.clean)) & set(image_hashes(pixels))
    if shared:
        raise SplitOverlap(
            f"{len(shared)} of the {len(pixels)} reference images are measured too: means over them would know what is "
            "to be found out. Pass other images, or allow_overlap=True."
        )
