"""What a card is made of: gates, measures, and where its numbers come from. Values; nothing here computes."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["pass", "fail", "not applicable", "not run"]
Level = Literal["smoke", "standard", "full"]

LEVELS: dict[str, int] = {"smoke": 64, "standard": 512, "full": 2048}
"""Images that a level looks at, at the most (faithfulness.md 2.7)."""

GATES: dict[str, str] = {
    "G1": "no-op: an edit that changes nothing changes nothing",
    "G2": "completeness: what should add up adds up",
    "G3": "random weights: the explanation is of this model",
    "G4": "target: the explanation is of this output",
    "G5": "invariance: batch and order change nothing, seeds little",
    "G6": "better than chance and no worse than what knows nothing, under at least two ways to remove",
    "G7": "planted: finds what is known to be there",
    "G8": "finite and not the same number everywhere",
    "G9": "fresh data: the numbers come back on other images",
}
"""What each gate asks. G1 to G8 are those of faithfulness.md 3.1; G9 is ours: a stored ranking whose numbers do not
come back when they are measured again was shuffled, shifted by a layer, or is noise."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A question with an answer: what fails it must not be believed, whatever the measures say."""

    id: str
    """`G1` to `G9`, see :data:`GATES`; a letter after it where a gate has several parts."""
    name: str
    """What was asked, in words."""
    status: Status
    """The answer."""
    statistic: float | None = None
    """The number that decided."""
    threshold: float | None = None
    """What it was compared with."""
    rule: str = ""
    """How: `<=`, `>=`, `<`, `>`."""
    why: str = ""
    """What the number is; for a gate without an answer, why there is none."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number with its interval, and how it was made."""

    id: str
    """Short name of what is measured."""
    formula: str
    """Definition with its version."""
    direction: Literal["high", "low", "none"]
    """Which is better; `none`: descriptive."""
    operator: str = ""
    """How patches or units were removed, where that matters."""
    control: str = ""
    """Name of the control that this is the number of; empty: of the explanation itself."""
    value: float | None
    """Mean over examples (or what `statistic` says); None: undefined for all of them."""
    low: float | None = None
    """Lower end of the 95 % interval."""
    high: float | None = None
    """Upper end of the 95 % interval."""
    n: int
    """Examples used."""
    excluded: int = 0
    """Examples for which it is undefined."""
    statistic: Literal["mean", "ratio", "given"] = "mean"
    """How it follows from the examples: mean, ratio of sums, or not at all (computed elsewhere)."""
    unit: str = ""
    """Unit of the value."""

    @property
    def key(self) -> str:
        """Name of its column of per-example values."""
        return "/".join(part for part in (self.id, self.operator, self.control or "this") if part)

    @property
    def unreliable(self) -> bool:
        """More than 5 % of the examples are undefined."""
        return self.excluded > 0.05 * max(1, self.n + self.excluded)
