"""Does a certificate hold? The bounds of benchmark plan A.5, and which figures they bind."""

from dataclasses import asdict, dataclass
from typing import Any

from mechvis.errors import FailedCheck

LARGEST_NODE_RATIO, LARGEST_NODE_RATIO_WITH_DECOYS = 0.05, 0.10
SHALLOW_BAND = (0.3, 0.8)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One bound and what was measured."""

    name: str
    """What is bounded."""
    value: float | None
    """Measured; None: infinite."""
    low: float | None = None
    """Smallest value that holds."""
    high: float | None = None
    """Largest value that holds."""

    @property
    def holds(self) -> bool:
        """Is the value within its bounds?"""
        if self.value is None:
            return False
        above = self.low is None or self.value >= self.low
        return above and (self.high is None or self.value <= self.high)

    @property
    def bounds(self) -> str:
        """The bounds in words."""
        pairs = ((">=", self.low), ("<=", self.high))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in pairs if bound is not None)

    def __str__(self) -> str:
        value = "infinite" if self.value is None else f"{self.value:.3f}"
        return f"{self.name}: {value} ({self.bounds}): {'holds' if self.holds else 'does not hold'}"

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {**asdict(self), "holds": self.holds}


def gates(figures: dict[str, Any], *, decoys: bool) -> list[Gate]:
    """The bounds on a certificate's figures; those that were left out (`thorough=False`) are not bound.

    Args:
        figures: from :func:`mechvis.testing.trained.certificate.certify`.
        decoys: was the model trained with decoys? Then outside heads may leak a little more, and the scores that
            need no causal thought must fail.
    """
    changed = min(row["accuracy"] for row in figures["interchange"].values())
    drop = figures["accuracy"] - figures["outside at once"]
    bound = LARGEST_NODE_RATIO_WITH_DECOYS if decoys else LARGEST_NODE_RATIO
    found = [
        Gate(name="accuracy", value=figures["accuracy"], low=0.99),
        Gate(name="interchange on changed rows, worst place", value=changed, low=0.98),
        Gate(name="random joint subsets", value=figures["random subsets"], low=0.98),
        Gate(name="drop, all outside at once", value=drop, high=0.01),
        Gate(
            name="planted inputs resampled, distance from chance",
            value=abs(figures["inputs resampled"] - figures["labels agree"]),
            high=0.05,
        ),
        Gate(name="worst outside head over weakest planted head", value=figures["node ratio"]["ratio"], high=bound),
        Gate(name="survives every one of 32 sources", value=figures["survives sources"], low=0.97),
        Gate(name="AUROC of exact node patching", value=figures["exact"]["nodes"], low=1.0),
        Gate(name="AUROC of exact edge patching", value=figures["exact"]["edges"], low=1.0),
    ]
    if (worst := figures.get("worst subset")) is not None:
        found.append(Gate(name="drop, worst outside subset", value=worst["plain"] - worst["accuracy"], high=0.02))
    if not decoys:
        return found
    for variable, row in figures.get("probes", {}).items():
        lead = row["best outside"] - max(row["carrier"].values())
        found.append(Gate(name=f"probe of {variable}, best decoy minus carrier", value=lead, low=-0.02))
    low, high = SHALLOW_BAND
    return found + [
        Gate(name=f"AUROC of {name}", value=value, low=low, high=high) for name, value in figures["baselines"].items()
    ]


def require(found: list[Gate], name: str) -> None:
    """Refuse a model that misses a gate.

    Raises:
        FailedCheck: names every gate that does not hold.
    """
    if missed := [str(gate) for gate in found if not gate.holds]:
        raise FailedCheck(f"{name} does not pass its certificate:\n" + "\n".join(f"  {line}" for line in missed))
