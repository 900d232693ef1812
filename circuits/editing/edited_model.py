"""A model with an edit that is not in its weights: called like the model, it answers as the edited one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mechvis.axes import Logits, Pixels

if TYPE_CHECKING:
    from circuits.editing.model_edit import ModelEdit


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EditedModel:
    """The user's model and an edit; made by `edit.apply(model)`. The model itself stays as it is, so taking the edit
    back is using `model` again.

    Example:
        >>> edited = remove_edges(model, ["L0H1->L1H2.q"]).apply(model)                            # doctest: +SKIP
        >>> edited(pixels).shape                                                                   # doctest: +SKIP
        torch.Size([8, 10])
    """

    model: Any
    """The model without the edit."""
    edit: "ModelEdit"
    """The edit."""

    @torch.no_grad()
    def __call__(self, pixels: Pixels) -> Logits:
        """The output of the edited model.

        Args:
            pixels: `[image channel height width]`, or an `ImageSet`.
        """
        return self.edit.change.run(self.model, self.model.inputs(pixels))

    @property
    def fingerprint(self) -> str:
        """Hash of the model's weights and of the edit."""
        from circuits.editing.model_edit import run_time_fingerprint

        return run_time_fingerprint(self.model.fingerprint, self.edit.change)

    @property
    def title(self) -> str:
        """What to call it."""
        return f"{self.model.title}, {self.edit.change.words}"

    def __repr__(self) -> str:
        return f"EditedModel({self.model.title!r} with {self.edit.title})"
