"""What an architecture is: settings as a value, plus how codes are found and what is minimised.

Everything that differs between kinds of dictionaries is in one file of `sae.architectures`: a frozen dataclass with its
settings, that says how parameters start, how rows become codes, and what the loss of a batch is. The parameters
themselves live in a :class:`sae.Dictionary`, the loop in `sae.training`. A loss is written once, for entries of the
codes; `sae.active` runs it over all latents (the plain twin) or over the active ones alone.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.errors import BadData, unknown
from sae.ends import Ends
from sae.normaliser import Kind
from sae.team import ALONE, Team

if TYPE_CHECKING:
    from sae.active import Values
    from sae.dictionary import Dictionary


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a loss may know about the moment of training."""

    number: int = 0
    """Step, from 0."""
    progress: float = 0.0
    """Share of the training that is done, 0 to 1."""
    sparsity: float = 1.0
    """Factor on sparsity terms: rises during their warm-up."""
    k_factor: float = 1.0
    """Factor on k: falls to 1 while k is annealed."""
    dead: Bool[Tensor, " latent"] | None = None
    """Latents that have not fired for long; None: not counted."""
    n_dead: int = 0
    """How many the host knows of; it looks every few steps, so that no step waits for the device."""
    types: Int[Tensor, " row"] | None = None
    """Type of each row's token (CLS, register, patch, ...), where it is known."""
    fast: bool = True
    """Compute over active latents alone."""
    bf16: bool = False
    """Encoder product in bfloat16; what is kept is computed again in full precision."""
    team: Team = ALONE
    """The processes that train together."""
    known: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What was computed in this step already (`sae.losses`), so that nothing goes over the batch twice."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What a batch gives."""

    total: Float[Tensor, ""]
    """To be minimised."""
    parts: Mapping[str, Float[Tensor, ""]]
    """What it is made of, for the log; detached."""
    y_hat: Float[Tensor, "row d_out"]
    """What was written, normalised; detached."""
    codes: "Values"
    """The codes; detached."""
    seen: Mapping[str, Tensor] = field(default_factory=dict)
    """What `after` needs."""


@dataclass(frozen=True, kw_only=True)
class Architecture(ABC):
    """Settings that every architecture has, and what it must offer."""

    NAME: ClassVar[str] = ""
    """Its name in files and on the command line."""
    UNIT: ClassVar[tuple[str, ...]] = ("W_dec",)
    """Parameters whose rows have norm one where `decoder='unit'`."""
    CALIBRATES: ClassVar[bool] = False
    """Does the encoder start at the length with which the first reconstructions are best? See `sae.initial`."""
    FIXED: ClassVar[tuple[str, ...]] = ()
    """What `parameters` measures on the data but nobody trains (candidates of archetypes): kept as state."""

    n_latents: int
    """Latents."""
    normalise: Kind = "mean_square"
    """How activations are scaled; see `sae.normaliser`."""
    decoder: Literal["unit", "free"] = "unit"
    """Decoder rows of norm one; or free, with every code weighted by the norm of its row."""
    skip: bool = False
    """Add a linear map from what is read to what is written (skip transcoder)."""
    data_init: float = 0.8
    """Share of a data point in the initial directions; the rest is random (Anthropic, October 2024; saev [code])."""
    centre: bool | None = None
    """Is `b_dec` taken off before encoding? None: as the architecture does; set where a file says otherwise."""

    def __post_init__(self):
        if self.n_latents < 1:
            raise BadData(f"n_latents={self.n_latents}: at least one latent is needed.")
        if self.decoder not in ("unit", "free"):
            raise unknown("decoder", self.decoder, ("unit", "free"))
        if not 0 <= self.data_init <= 1:
            raise BadData(f"data_init={self.data_init} is a share, between 0 and 1.")
        self.check()

    def check(self) -> None:  # noqa: B027 - most have nothing to check
        """Refuse settings that cannot be; overridden where there are more settings."""

    # -- how it starts -----------------------------------------------------------------------------------------------

    def parameters(self, ends: Ends, x: Tensor, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Parameters at the start.

        Args:
            ends: what is read and written.
            x: some rows that are read `[row d_in]`, normalised.
            y: the same rows as they have to be written `[row d_out]`, normalised.
            generator: where everything random comes from (on the CPU).
        """
        from sae.initial import usual

        return usual(self, ends, x, y, generator)

    def state(self, ends: Ends) -> dict[str, Tensor]:
        """Numbers that belong to the dictionary and are not trained: thresholds, counters."""
        return {}

    def width(self, ends: Ends) -> int:
        """Numbers per row of codes."""
        return self.n_latents

    # -- how it is used ----------------------------------------------------------------------------------------------

    def subtracts_bias(self, ends: Ends) -> bool:
        """Is `b_dec` taken off before encoding?

        Raises:
            BadData: `centre` asks for it, and it has not the width of what is read.
        """
        if self.centre and ends.d_in != ends.d_out:
            raise BadData(
                f"centre=True takes b_dec, of width {ends.d_out}, off rows of width {ends.d_in}: leave centre out for "
                "this transcoder."
            )
        return not ends.transcodes if self.centre is None else self.centre

    @abstractmethod
    def encode(self, d: "Dictionary", x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row latent"]:
        """Codes of normalised rows, when training is over. Gradients flow as far as the rule of selection is fixed."""

    def decode(self, d: "Dictionary", codes: Float[Tensor, "row latent"]) -> Float[Tensor, "row d_out"]:
        """What codes write, normalised (without a skip connection)."""
        return codes @ d.W_dec + d.b_dec

    def rows(self, d: "Dictionary") -> Float[Tensor, "code d_out"]:
        """What one unit of each code writes, normalised."""
        return d.W_dec

    # -- how it learns -----------------------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, d: "Dictionary", x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"], step: Step) -> Loss:
        """Loss of a batch of normalised rows."""

    def before(self, d: "Dictionary", step: Step) -> None:  # noqa: B027 - most have nothing to do
        """Bring parameters where they have to be before a batch (in place, no gradient)."""

    def after(self, d: "Dictionary", loss: Loss, step: Step) -> None:  # noqa: B027 - most have nothing to do
        """Learn from a batch what is not learned by gradients, after the optimiser's step."""

    def folded(self, d: "Dictionary") -> dict[str, Tensor]:
        """Parameters and state of the same dictionary with decoder rows of norm one."""
        from sae.folding import unit_rows

        return d.state_dict() if self.decoder == "unit" else unit_rows(d)

    # -- files -------------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": self.NAME, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> Self:
        """From a file.

        Raises:
            BadData: settings that this architecture does not have, or lacks.
        """
        known = {name: tuple(v) if isinstance(v, list) else v for name, v in known.items() if name != "name"}
        fields = {f.name for f in dataclasses.fields(cls)}
        if strange := sorted(set(known) - fields):
            raise BadData(f"{cls.NAME} has no setting {strange[0]!r}; it has {', '.join(sorted(fields))}.")
        try:
            return cls(**known)
        except TypeError as error:
            raise BadData(f"{cls.NAME}: {error}") from error
