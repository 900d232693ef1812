"""Images as what they are made of: the variables a planted program speaks of, and everything else.

A pair of images that differ in one variable only is made by changing that variable in the factors and drawing again:
position, size, brightness and noise stay what they were, so the halves are aligned token by token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor

from mechvis.errors import OutOfRange, ShapeMismatch, unknown

Variables = Mapping[str, Int[Tensor, " image"]]
"""Value of every variable of the program, per image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scenes:
    """Factors of some images, drawn by a task's `draw` and rendered by its `render`."""

    variables: Variables
    """Variables of the program: name -> value per image."""
    sizes: Mapping[str, int]
    """Number of values of each variable."""
    nuisance: Mapping[str, Tensor] = field(repr=False)
    """Everything else (places, sizes, brightness, noise): name -> one row per image."""

    def __len__(self) -> int:
        return len(next(iter(self.variables.values())))

    def __getitem__(self, rows: Tensor | slice) -> "Scenes":
        """Some of the images: by slice, index tensor or bool mask."""
        return replace(
            self,
            variables={name: values[rows] for name, values in self.variables.items()},
            nuisance={name: values[rows] for name, values in self.nuisance.items()},
        )

    def changed(self, **values: Int[Tensor, " image"]) -> "Scenes":
        """The same images with other values of some variables.

        Raises:
            UnknownName: no such variable.
            ShapeMismatch: not one value per image.
            OutOfRange: a value that the variable does not have.

        Example:
            >>> scenes = TASKS["colour-if-shape"].scenes(4, seed=0)                     # doctest: +SKIP
            >>> scenes.changed(colour=(scenes.variables["colour"] + 1) % 3)             # doctest: +SKIP
        """
        for name, new in values.items():
            if name not in self.variables:
                raise unknown("variable", name, self.variables)
            if new.shape != self.variables[name].shape:
                raise ShapeMismatch(
                    f"variable {name!r}: {len(self)} images need {len(self)} values, got {list(new.shape)}."
                )
            if len(new) and (int(new.min()) < 0 or int(new.max()) >= self.sizes[name]):
                raise OutOfRange(f"variable {name!r} has the values 0 to {self.sizes[name] - 1}, got {new.unique()}.")
        return replace(self, variables={**self.variables, **values})

    def with_nuisance_of(self, others: "Scenes") -> "Scenes":
        """The same variables in other places, sizes, brightness and noise: a pair in which nothing relevant differs."""
        if len(others) != len(self):
            raise ShapeMismatch(f"{len(self)} images cannot take the nuisance of {len(others)}.")
        return replace(self, nuisance=others.nuisance)


def other_value(values: Int[Tensor, " image"], size: int, generator: torch.Generator) -> Int[Tensor, " image"]:
    """A random value that differs from the given one, uniform over the `size - 1` others."""
    return (values + torch.randint(1, size, values.shape, generator=generator)) % size
