"""Localisation: does the map lie on the object? (That is not faithfulness: a model may look beside the object.)

Masks come in pixels and are brought to the patch grid by area. A patch belongs to the object if at least half of it
does. Beside each score stands what maps get that know nothing: a Gaussian at the centre (`centre_prior`), and any map
in expectation (`mask_area`).

* pointing game: is the largest patch in the object; tied patches share the credit;
* relevance mass: share of the positive relevance on the object, patches weighted by the area that belongs to it;
* rank accuracy: share of the object among as many top patches as it has; ties at the edge share the credit;
* AUROC and average precision of the map against the object.

An image without an object is not a hit (and not a miss): it is undefined and counted. So is an object that covers half
of no patch. Source: faithfulness.md 2.2; published tools differ (one counts an empty mask as a hit).
"""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.faithfulness.metric import Measured, Metric, checked_maps, measured

EMPTY = "the mask is empty"
SMALL = "the object covers too little of every patch"
EVERYWHERE = "the object covers every patch"
NOTHING = "the map has no positive value"


def areas_of(masks: Tensor | np.ndarray, grid: tuple[int, int]) -> Float[Tensor, "image patch"]:
    """The share of each patch that belongs to the object.

    Args:
        masks: `[image height width]`, boolean or between 0 and 1, in the frame that the model sees.
        grid: patches (down, across).

    Raises:
        ShapeMismatch: not three axes, or fewer pixels than patches.
        BadData: NaN, or numbers beyond 0 and 1 (0-255 masks).

    Example:
        >>> areas_of(torch.eye(4)[None], (2, 2)).tolist()
        [[0.5, 0.0, 0.0, 0.5]]
    """
    masks = torch.as_tensor(masks)
    if masks.ndim != 3 or masks.shape[1] < grid[0] or masks.shape[2] < grid[1]:
        raise ShapeMismatch(f"masks are [image height width], at least {list(grid)} pixels, got {list(masks.shape)}.")
    masks = masks.detach().to("cpu", torch.float64)
    if not bool(((masks >= 0) & (masks <= 1)).all()):
        raise BadData("masks lie between 0 and 1 (or are boolean); these do not, or hold NaN.")
    return F.adaptive_avg_pool2d(masks[:, None], grid).flatten(1)


def centre_prior(grid: tuple[int, int], width: float = 0.25) -> Float[Tensor, " patch"]:
    """A Gaussian at the centre; `width` is its standard deviation as a share of the side."""
    lines = [(torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / (n * width) for n in grid]
    return torch.exp(-0.5 * (lines[0][:, None] ** 2 + lines[1] ** 2)).flatten()


@dataclass(frozen=True, kw_only=True)
class MaskMetric(Metric):
    """A metric that compares maps with masks of the object."""

    UNIT = "share"
    SOURCE = "faithfulness.md 2.2"
    NEEDS = "masks"
    BEST = 1.0
    SCALE_FREE = True
    threshold: float = 0.5
    """A patch belongs to the object if at least this share of it does."""

    def measure(
        self, maps: Float[Tensor, "image patch"], masks: Tensor | np.ndarray, grid: tuple[int, int]
    ) -> Measured:
        """One number per image.

        Args:
            maps: larger is more relevant.
            masks: `[image height width]`, where the object is, in the frame that the model sees.
            grid: patches (down, across).

        Raises:
            ShapeMismatch, NotFinite, BadData: see `checked_maps` and `areas_of`.
        """
        if not 0 < self.threshold <= 1:
            raise OutOfRange(f"threshold={self.threshold}: give a share above 0, at most 1.")
        maps = checked_maps(maps, grid[0] * grid[1])
        areas = areas_of(masks, grid)
        if len(areas) != len(maps):
            raise ShapeMismatch(f"{len(maps)} maps, {len(areas)} masks: they belong together.")
        inside = areas >= self.threshold
        undefined = {EMPTY: areas.sum(1) == 0, SMALL: ~inside.any(1)} | self._undefined(maps, inside)
        prior = centre_prior(grid).expand_as(maps)
        known = ~torch.stack([torch.as_tensor(where) for where in undefined.values()]).any(0)
        baselines = {"centre_prior": self._score(prior, areas, inside), "mask_area": self._chance(areas, inside)}
        return measured(
            self.NAME,
            self._score(maps, areas, inside),
            undefined,
            baselines={name: torch.where(known, one, torch.nan) for name, one in baselines.items()},
        )

    def _undefined(self, maps: Tensor, inside: Tensor) -> dict[str, Tensor]:
        return {}

    @abstractmethod
    def _score(self, maps: Tensor, areas: Tensor, inside: Tensor) -> Tensor: ...

    def _chance(self, areas: Tensor, inside: Tensor) -> Tensor:
        return inside.double().mean(1)


@dataclass(frozen=True, kw_only=True)
class PointingGame(MaskMetric):
    """Is the largest patch in the object?"""

    NAME = "pointing_game"
    FORMULA = "share of the patches with the largest value that are in the object (1 or 0 without ties)"

    def _score(self, maps: Tensor, areas: Tensor, inside: Tensor) -> Tensor:
        top = maps == maps.max(1, keepdim=True).values
        return (top & inside).sum(1) / top.sum(1).double()


@dataclass(frozen=True, kw_only=True)
class RelevanceMass(MaskMetric):
    """How much of the positive relevance lies on the object?"""

    NAME = "relevance_mass"
    FORMULA = "sum of area_i max(map_i, 0) / sum of max(map_i, 0)"

    def _undefined(self, maps: Tensor, inside: Tensor) -> dict[str, Tensor]:
        return {NOTHING: maps.max(1).values <= 0}

    def _score(self, maps: Tensor, areas: Tensor, inside: Tensor) -> Tensor:
        positive = maps.clamp(min=0)
        return (positive * areas).sum(1) / positive.sum(1)

    def _chance(self, areas: Tensor, inside: Tensor) -> Tensor:
        return areas.mean(1)


@dataclass(frozen=True, kw_only=True)
class RankAccuracy(MaskMetric):
    """How much of the object is among as many top patches as it has?"""

    NAME = "rank_accuracy"
    FORMULA = "|top-|M| patches of the map in M| / |M|; ties at the edge share the places that are left"

    def _score(self, maps: Tensor, areas: Tensor, inside: Tensor) -> Tensor:
        size = inside.sum(1)
        edge = maps.sort(1, descending=True).values.gather(1, (size - 1).clamp(min=0)[:, None])
        above, tied = maps > edge, maps == edge
        left = (size - above.sum(1)).double()
        hits = (above & inside).sum(1) + left * (tied & inside).sum(1) / tied.sum(1)
        return hits / size.double()


@dataclass(frozen=True, kw_only=True)
class Auroc(MaskMetric):
    """How often has a patch of the object a larger value than one beside it?"""

    NAME = "auroc"
    FORMULA = "P(map_i > map_j) + P(map_i = map_j) / 2 for i in M, j not in M"

    def _undefined(self, maps: Tensor, inside: Tensor) -> dict[str, Tensor]:
        return {EVERYWHERE: inside.all(1)}

    def _score(self, maps: Tensor, areas: Tensor, inside: Tensor) -> Tensor:
        ranks = torch.from_numpy(rankdata(maps.numpy(), axis=1))
        n, m = inside.sum(1).double(), (~inside).sum(1).double()
        return ((ranks * inside).sum(1) - n * (n + 1) / 2) / (n * m)

    def _chance(self, areas: Tensor, inside: Tensor) -> Tensor:
        return torch.full((len(inside),), 0.5, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class AveragePrecision(MaskMetric):
    """Mean precision over the recall that each threshold adds."""

    NAME = "average_precision"
    FORMULA = "sum over thresholds of (recall_k - recall_(k-1)) precision_k; equal values are one threshold"

    def _score(self, maps: Tensor, areas: Tensor, inside: Tensor) -> Tensor:
        ordered, order = maps.sort(1, descending=True)
        hits = inside.gather(1, order).double().cumsum(1)
        seen = torch.arange(1, maps.shape[1] + 1, dtype=torch.float64).expand_as(hits)
        # A threshold takes all patches of the same value: only the last of equals is one.
        last = F.pad(ordered[:, 1:] != ordered[:, :-1], (0, 1), value=True)
        found = torch.zeros(len(maps), dtype=torch.float64)
        for image in range(len(maps)):
            here = hits[image, last[image]]
            gained = torch.diff(here, prepend=torch.zeros(1, dtype=torch.float64))
            found[image] = (gained * here / seen[image, last[image]]).sum() / hits[image, -1]
        return found
