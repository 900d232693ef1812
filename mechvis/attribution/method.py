"""What an attribution method is: settings as a value, claims in the open, and one function from a question to maps.

Everything that differs between methods is in one file of `mechvis.attribution.methods`: a frozen dataclass with its
settings. That it is a value is what makes it testable: the same method can be asked again of a model with random
weights, of another class, of the same image in another batch (`mechvis.cards`).
"""

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, unknown

if TYPE_CHECKING:
    from mechvis.attribution.question import Question


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What a method promises; the gates of a card hold it to that."""

    class_specific: bool
    """Its map is about the target; another target gives another map."""
    signed: bool
    """Negative numbers mean evidence against the target."""
    complete: bool = False
    """A map adds up to a known difference of scores."""
    random: bool = False
    """It draws random numbers: another seed gives another map."""
    reads: str = "gradient"
    """What it looks at: `gradient`, `attention` or `outputs`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Maps:
    """What a method finds for a batch."""

    values: Float[Tensor, "image patch"]
    """Attribution of each patch, row by row; larger: more important for the target."""
    total: Float[Tensor, " image"] | None = None
    """What the values should add up to (with `prefix`), for a complete method."""
    prefix: Float[Tensor, "image token"] | None = None
    """What fell on prefix tokens (CLS, registers), which have no place in the map."""
    extra: Mapping[str, Float[Tensor, "image ..."]] = field(default_factory=dict)
    """Anything else per image: standard errors of patches, curves, bits."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A way to say which patches a score comes from: settings, as a value that prints, compares and is saved."""

    NAME: ClassVar[str] = ""
    """Name in calls, tables and files."""
    VERSION: ClassVar[int] = 1
    """Rises when the numbers change."""
    CLAIMS: ClassVar[Claims]
    """What it promises."""
    SOURCE: ClassVar[str] = ""
    """Paper, and the section of the method's description."""

    @abstractmethod
    def maps(self, ask: "Question") -> Maps:
        """Maps for one batch of images. What an image gets must not depend on the others in the batch."""

    def settings(self) -> dict[str, Any]:
        """The settings as JSON can hold them; a tensor is written down by its shape and a hash.

        Raises:
            BadData: a setting is an object that has no name.
        """
        return {one.name: _plain(one.name, getattr(self, one.name)) for one in dataclasses.fields(self)}

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """The method with these settings.

        Raises:
            UnknownName: a setting that it does not have, with the nearest ones.
            BadData: a setting was a tensor, of which only shape and hash are written down.
        """
        known = {one.name for one in dataclasses.fields(cls)}
        for name in settings:
            if name not in known:
                raise unknown(f"setting of {cls.NAME}", name, sorted(known))
            if isinstance(settings[name], Mapping) and "tensor" in settings[name]:
                raise BadData(
                    f"the setting {name!r} of {cls.NAME} was a tensor {settings[name]['tensor']}, which a record does "
                    "not hold; make the method again with the tensor."
                )
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(name, entry) for entry in value]
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return {"tensor": list(value.shape), "sha256": hashlib.sha256(content).hexdigest()[:16]}
    if hasattr(value, "title"):  # an operator
        return value.title
    raise BadData(f"the setting {name!r} is a {type(value).__name__}, which cannot be written down.")
