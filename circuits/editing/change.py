"""What every change of a model offers, whether it goes into the weights or stays outside.

`HeadRemoval`, `Projection` and `EdgeCut` are changes. Each can *run* (the slow truth: the model as it is, with edits at
run time), and say what a random change of the same size is. The first two can also be *folded* into weights, where
that is exact.
"""

from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from mechvis.axes import Logits, Pixels


@runtime_checkable
class Change(Protocol):
    """A change of a model, as data."""

    kind: ClassVar[str]
    """Its name in files."""

    @property
    def words(self) -> str:
        """What is done, in words."""
        ...

    @property
    def reference_ids(self) -> frozenset[str]:
        """Images that means were made of."""
        ...

    def run(self, model: Any, pixels: Pixels) -> Logits:
        """The model's output with the change made at run time."""
        ...

    def fold(self, model: Any) -> Any:
        """An edited copy of the model.

        Raises:
            RefusedMethod: no weights can hold this change exactly; says why.
            UnsupportedModel: these could, but this model keeps them in another form.
        """
        ...

    def random(self, model: Any, images: Any, draws: int, seed: int) -> "list[Change]":
        """Random changes of the same size.

        Raises:
            OutOfRange, BadData: there are none.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON can hold it."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The tensors."""
        ...
