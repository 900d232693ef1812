"""What a metric is: its settings and its definition as a value, and one number per image as its answer.

A faithfulness number means nothing without what stands behind it: which operator took patches away, which score was
read, in which order images were averaged, and what happened to images for which it is undefined. So a metric is a
frozen value that says all of it (`describe`), and what it returns (`Measured`) keeps the values of every image.

* larger is not always better: `DIRECTION` says which end is good;
* an undefined image is NaN, with a reason; nothing is dropped silently;
* more than 5 % of undefined images make a mean *unreliable* (faithfulness.md 2.7).
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import NotFinite, OutOfRange, ShapeMismatch, unknown
from mechvis.stats import Estimate, bootstrap, interval_of

UNRELIABLE = 0.05
"""Share of undefined images above which a mean is called unreliable."""

Order = Literal["mean_of_ratios", "ratio_of_means"]
"""How images are put together where a value is a ratio: each image's ratio first, or both sums first."""


class MaskGame(Protocol):
    """What a metric needs to know of a model: `mechvis.removal.Game` is one, and so is any function of masks.

    Optional: `seed` and `ids` (what random draws belong to), `target` and `outputs` (to read several forms of the
    score from one forward pass).
    """

    n_patches: int
    """Patches of an image."""
    grid: tuple[int, int]
    """Patches (down, across)."""

    def scores(self, masks: Float[Tensor, "image row patch"], target: Any = None) -> Float[Tensor, "image row"]:
        """The score of each image under each mask; 1 keeps a patch."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """One number per image, and what belongs to it."""

    name: str
    """Of the metric."""
    values: Float[np.ndarray, " image"]
    """float64; NaN: undefined for this image."""
    curves: Mapping[str, Float[np.ndarray, "image point"]] = field(default_factory=dict)
    """Curves that the numbers come from, by name."""
    points: Float[np.ndarray, " point"] | None = None
    """Where the curves are known: shares of patches, or sizes of sets."""
    extra: Mapping[str, Float[np.ndarray, " image"]] = field(default_factory=dict)
    """Other numbers per image: another correlation, a slope, the two sides of a ratio."""
    baselines: Mapping[str, Float[np.ndarray, " image"]] = field(default_factory=dict)
    """What something that knows nothing of the model would get."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Why images are undefined: reason -> how many."""
    ratio: tuple[str, str] | None = None
    """Names in `extra` of numerator and denominator, if the value is their ratio."""

    @property
    def n(self) -> int:
        """Images with a value."""
        return int((~np.isnan(self.values)).sum())

    @property
    def excluded(self) -> int:
        """Images without one."""
        return len(self.values) - self.n

    @property
    def unreliable(self) -> bool:
        """More than 5 % of the images are undefined, or all of them."""
        return self.n == 0 or self.excluded > UNRELIABLE * len(self.values)

    def estimate(self, *, seed: int = 0, resamples: int = 2000) -> Estimate:
        """Mean over images with a 95 % interval (:func:`mechvis.stats.bootstrap`)."""
        return bootstrap(self.values, seed=seed, resamples=resamples)

    def ratio_of_means(self, *, seed: int = 0, resamples: int = 2000) -> tuple[float, float, float]:
        """The other order: both sides summed over images first; value and the ends of its 95 % interval.

        Raises:
            OutOfRange: the values of this metric are no ratios.
        """
        if self.ratio is None:
            raise OutOfRange(f"{self.name} is not a ratio per image: only the mean of its values is defined.")
        top, bottom = (self.extra[name] for name in self.ratio)
        used = ~(np.isnan(top) | np.isnan(bottom))
        if not used.any():
            return (float("nan"),) * 3
        return interval_of(_ratio, top[used], bottom[used], seed=seed, resamples=resamples)


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """A metric with its settings: prints, compares, and says what it is."""

    NAME: ClassVar[str] = ""
    """Name in tables and files."""
    VERSION: ClassVar[int] = 1
    """Rises when the numbers change."""
    DIRECTION: ClassVar[Literal["low", "high", "none"]] = "high"
    """Which end is good; `none`: it describes, and judges nothing."""
    UNIT: ClassVar[str] = ""
    """Unit of the values."""
    FORMULA: ClassVar[str] = ""
    """The definition, in one line."""
    SOURCE: ClassVar[str] = ""
    """Where it comes from."""
    NEEDS: ClassVar[Literal["game", "masks", "method", "maps"]] = "game"
    """What it is given beside maps: a game, masks of the object, a method to ask again, or nothing."""
    BEST: ClassVar[float | None] = None
    """The best possible value, where there is one."""
    SCALE_FREE: ClassVar[bool] = False
    """A map multiplied by a positive number gets the same value."""

    @property
    def id(self) -> str:
        """Name and version of the formula."""
        return f"{self.NAME}@{self.VERSION}"

    @abstractmethod
    def measure(self, maps: Any, *given: Any) -> Measured:
        """One number per image."""

    def settings(self) -> dict[str, Any]:
        """The settings as JSON can hold them."""
        return {one.name: _plain(getattr(self, one.name)) for one in dataclasses.fields(self)}

    def describe(self) -> dict[str, Any]:
        """Everything that a table must say beside the number."""
        return {
            "metric": self.NAME,
            "version": self.VERSION,
            "direction": self.DIRECTION,
            "unit": self.UNIT,
            "formula": self.FORMULA,
            "source": self.SOURCE,
            "needs": self.NEEDS,
            "settings": self.settings(),
        }


@dataclass(frozen=True, kw_only=True)
class GameMetric(Metric):
    """A metric that takes patches away."""

    operator: str = "mean"
    """Name of the removal operator that the game is to use (`mechvis.removal.OPERATORS`)."""
    form: str | None = None
    """What is read of the explained class: `logit`, `prob`, `logprob`, `logit_diff`; None: what the game reads."""
    order: Order = "mean_of_ratios"
    """How images are put together."""

    @abstractmethod
    def measure(self, maps: Float[Tensor, "image patch"], game: MaskGame) -> Measured:
        """One number per image."""

    def aggregate(self, found: Measured, *, seed: int = 0) -> tuple[float, float, float]:
        """All images as one number with its 95 % interval, in the order of aggregation that the settings name.

        Raises:
            OutOfRange: `order="ratio_of_means"`, and the values are no ratios.
        """
        one_of("order", self.order, get_args(Order))
        if self.order == "ratio_of_means":
            return found.ratio_of_means(seed=seed)
        mean = found.estimate(seed=seed)
        return float(mean.effect[0]), float(mean.low[0]), float(mean.high[0])


def checked_maps(maps: Float[Tensor, "image patch"], n_patches: int | None = None) -> Float[Tensor, "image patch"]:
    """The maps as float64 on the CPU, as a copy: nothing that a metric does reaches the caller's.

    Raises:
        ShapeMismatch: not `[image patch]`, or another number of patches than the game has.
        NotFinite: NaN or Inf.

    Example:
        >>> checked_maps(torch.ones(2, 3, dtype=torch.float16)).dtype
        torch.float64
    """
    maps = torch.as_tensor(maps)
    if maps.ndim != 2 or not maps.numel():
        raise ShapeMismatch(f"maps are [image patch] with at least one of each, got {list(maps.shape)}.")
    if n_patches is not None and maps.shape[1] != n_patches:
        raise ShapeMismatch(f"maps have {maps.shape[1]} patches, the game has {n_patches}.")
    found = maps.detach().to("cpu", torch.float64, copy=True)
    if not bool(torch.isfinite(found).all()):
        image, patch = (int(place) for place in (~torch.isfinite(found)).nonzero()[0])
        raise NotFinite(f"the map of image {image} holds NaN or Inf, the first at patch {patch}: no metric is defined.")
    return found


def measured(
    name: str, values: Tensor | np.ndarray, undefined: Mapping[str, Tensor | np.ndarray] | None = None, **rest: Any
) -> Measured:
    """A :class:`Measured`: values are set to NaN where `undefined` says so, and reasons are counted.

    Args:
        name: of the metric.
        values: `[image]`.
        undefined: reason -> for which images it holds; the first reason that holds is counted.
        **rest: other fields; tensors become arrays.

    Raises:
        NotFinite: a value is NaN or Inf without a reason.
    """
    found = _array(values).copy()
    reasons, gone = {}, np.zeros(len(found), dtype=bool)
    for reason, where in (undefined or {}).items():
        new = np.asarray(where, dtype=bool) & ~gone
        if new.any():
            reasons[reason] = int(new.sum())
        gone |= new
    found[gone] = np.nan
    if not np.isfinite(found[~gone]).all():
        image = int((~np.isfinite(found) & ~gone).nonzero()[0][0])
        raise NotFinite(f"{name} of image {image} is {found[image]} for no known reason.")
    for key in ("curves", "extra", "baselines"):
        rest[key] = {word: _array(one) for word, one in rest.get(key, {}).items()}
    if rest.get("points") is not None:
        rest["points"] = _array(rest["points"])
    return Measured(name=name, values=found, reasons=reasons, **rest)


def in_range(name: str, value: float, low: float, high: float) -> None:
    """Raises OutOfRange unless `low <= value <= high`."""
    if not low <= value <= high:
        raise OutOfRange(f"{name}={value}: give a number from {low} to {high}.")


def one_of(kind: str, value: str, valid: tuple[str, ...]) -> None:
    """Raises UnknownName unless `value` is one of `valid`."""
    if value not in valid:
        raise unknown(kind, value, valid)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> float:
    total = bottom.sum()
    return float(top.sum() / total) if total else float("nan")


def _array(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else repr(value)
