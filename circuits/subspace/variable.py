"""The high-level variable: its value in each image, and the answer that the high-level model gives when it is swapped.

An interchange is right if the model's answer becomes `y*(base, source)`: what the high-level model answers on the base
with the variable taken from the source. A `Variable` holds exactly these two: values, and `y*`. The label of an image
as it is follows from them: `Y(b) = y*(b, b)`.

* The variable *is* the label: :func:`label_variable`, `y*(b, s) = V(s)`.
* The answer depends on the base as well: :func:`table_variable`, one row of answers per image and one column per value.
* Scenes with known factors: :func:`circuits.subspace.scene_variable`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechvis.errors import BadData, OutOfRange, ShapeMismatch

Images = Int[Tensor, " pair"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Variable:
    """A high-level variable of images.

    Raises:
        ShapeMismatch: values or answers that do not fit each other.
        BadData: fewer than two values, or names that do not fit.
    """

    name: str
    """What it is called: `shape`."""
    values: Int[Tensor, " image"] = field(repr=False)
    """Value per image, 0 and up."""
    answer: Callable[[Images, Images], Images] = field(repr=False)
    """(base images, source images) -> the class that the model should name after the interchange, pair by pair."""
    value_names: tuple[str, ...] = ()
    """Name of each value."""
    own: Int[Tensor, " image"] | None = field(default=None, repr=False)
    """The right class of each image as it is, where that is not `answer` of the image with itself (controls)."""

    def __post_init__(self):
        values = torch.as_tensor(self.values)
        if values.ndim != 1 or values.is_floating_point() or values.dtype == torch.bool or not len(values):
            raise ShapeMismatch(
                f"the values of {self.name!r} are whole numbers [image], got {values.dtype} {list(values.shape)}."
            )
        object.__setattr__(self, "values", values.long())
        if int(values.min()) < 0 or len(values.unique()) < 2:
            raise BadData(
                f"the variable {self.name!r} needs at least two values, 0 and up; it has "
                f"{values.unique().tolist()[:5]}."
            )
        if self.value_names and int(values.max()) >= len(self.value_names):
            raise BadData(
                f"{self.name!r} has the value {int(values.max())}, but names for 0 to {len(self.value_names) - 1} only."
            )
        every = torch.arange(len(values))
        labels = torch.as_tensor(self.answer(every, every) if self.own is None else self.own)
        if labels.shape != values.shape or labels.is_floating_point():
            raise ShapeMismatch(
                f"the answers of {self.name!r} must be one class per pair; {len(values)} pairs gave "
                f"{labels.dtype} {list(labels.shape)}."
            )
        object.__setattr__(self, "_labels", labels.long())

    @property
    def labels(self) -> Int[Tensor, " image"]:
        """The high-level model's answer to each image as it is, `Y`."""
        return self.__dict__["_labels"]

    def __len__(self) -> int:
        return len(self.values)

    def shuffled(self, groups: Sequence[Tensor], seed: int) -> "Variable":
        """The control: each image's value is another image's, drawn inside each group of images (the splits, so that
        none of them sees another's values). What is learnt then, the subspace learns and the model does not hold.
        """
        other = torch.arange(len(self))
        generator = torch.Generator().manual_seed(seed)
        for group in groups:
            other[group] = group[torch.randperm(len(group), generator=generator)]
        return replace(
            self,
            name=f"{self.name}, shuffled",
            values=self.values[other],
            answer=lambda base, source: self.answer(base, other[source]),
            own=self.labels,
        )


def label_variable(labels: Any, *, name: str = "label", value_names: Sequence[str] = ()) -> Variable:
    """The variable that the model names: `y*(b, s) = V(s)`.

    Args:
        labels: class per image, or an `ImageSet` with labels.
        name: what it is called.
        value_names: name of each class.

    Example:
        >>> label_variable(torch.tensor([0, 1, 1]), name="shape").labels
        tensor([0, 1, 1])
    """
    if hasattr(labels, "label_tensor"):
        value_names = value_names or labels.class_names
        labels = labels.label_tensor
    values = torch.as_tensor(labels)
    return Variable(
        name=name, values=values, answer=lambda base, source: values[source], value_names=tuple(value_names)
    )


def table_variable(
    values: Int[Tensor, " image"], answers: Int[Tensor, "image value"], *, name: str, value_names: Sequence[str] = ()
) -> Variable:
    """A variable whose swap means something else in each base: `y*(b, s) = answers[b, V(s)]`.

    Args:
        values: value per image.
        answers: the class that is right for each image with the variable set to each value.
        name: what it is called.
        value_names: name of each value.

    Raises:
        ShapeMismatch: the table has another number of images, or is no table of classes.
        OutOfRange: a value without a column.

    Example:
        >>> colour = torch.tensor([0, 1])
        >>> table_variable(colour, torch.tensor([[0, 1], [2, 3]]), name="colour").labels
        tensor([0, 3])
    """
    values, answers = torch.as_tensor(values), torch.as_tensor(answers)
    if answers.ndim != 2 or len(answers) != len(values) or answers.is_floating_point():
        raise ShapeMismatch(
            f"the table of {name!r} holds classes [image value] for {len(values)} images, got {answers.dtype} "
            f"{list(answers.shape)}."
        )
    if int(values.max()) >= answers.shape[1]:
        raise OutOfRange(
            f"the variable {name!r} has the value {int(values.max())}, the table {answers.shape[1]} columns."
        )
    return Variable(
        name=name,
        values=values,
        answer=lambda base, source: answers[base, values[source]],
        value_names=tuple(value_names),
    )
