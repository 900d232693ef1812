"""Perturbation curves that read accuracy: is the explained class still the largest while patches go?

* `PositivePerturbation`, `NegativePerturbation` (Chefer et al. 2021): the most (least) relevant 10, 20, ..., 90 % go;
  area under the share of images whose explained class is still the largest. Always of the *explained* class: the
  published script follows whatever class is largest at the moment.
* `RoadMorf`, `RoadLerf` (Rong et al. 2022): the same with ROAD's operator, `noisy_linear`, most (least) relevant first.
  ROAD works on pixels; this is its patch form.

The value of an image is the share of the curve (by width) over which it keeps its class. Source: faithfulness.md 2.1.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mechvis.errors import BadData, OutOfRange
from mechvis.faithfulness.answers import Answers, answers_of
from mechvis.faithfulness.metric import GameMetric, MaskGame, Measured, checked_maps, measured
from mechvis.faithfulness.orders import area, descending, removed_first

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, kw_only=True)
class _AccuracyCurve(GameMetric):
    UNIT = "accuracy"
    SOURCE = "faithfulness.md 2.1"
    SCALE_FREE = True
    MOST: ClassVar[bool] = True
    """The most relevant patches go first."""
    shares: tuple[float, ...] = SHARES
    """Shares of the patches that are gone."""

    def measure(self, maps: Tensor, game: MaskGame | Answers) -> Measured:
        if self.form is not None:
            raise BadData(f"{self.NAME} reads which class is largest: form={self.form!r} has no meaning here.")
        answers = answers_of(game)
        maps = checked_maps(maps, answers.n_patches)
        counts = counts_for(self.shares, answers.n_patches)
        order = descending(maps, answers)
        curve = answers.right(removed_first(order if self.MOST else order.flip(1), counts))
        points = torch.tensor(counts, dtype=torch.float64) / answers.n_patches
        values = area(curve, points) if len(counts) > 1 else curve[:, 0]
        return measured(self.NAME, values, curves={"accuracy": curve}, points=points)


def counts_for(shares: tuple[float, ...], n_patches: int) -> list[int]:
    """Shares as different whole numbers of patches.

    Raises:
        OutOfRange: no share, or one beyond 0 and 1.

    Example:
        >>> counts_for((0.1, 0.2, 0.9), 9)
        [1, 2, 8]
    """
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise OutOfRange(f"shares={shares}: give shares of the patches between 0 and 1, at least one.")
    return sorted({round(share * n_patches) for share in shares})


@dataclass(frozen=True, kw_only=True)
class PositivePerturbation(_AccuracyCurve):
    """Accuracy while the most relevant patches go: should fall."""

    NAME = "positive_perturbation"
    DIRECTION = "low"
    FORMULA = "area under 1[argmax = explained class] while the most relevant 10..90 % of the patches are gone"


@dataclass(frozen=True, kw_only=True)
class NegativePerturbation(_AccuracyCurve):
    """Accuracy while the least relevant patches go: should stay."""

    NAME = "negative_perturbation"
    FORMULA = "area under 1[argmax = explained class] while the least relevant 10..90 % of the patches are gone"
    MOST = False


@dataclass(frozen=True, kw_only=True)
class RoadMorf(_AccuracyCurve):
    """ROAD, most relevant first."""

    NAME = "road_morf"
    DIRECTION = "low"
    FORMULA = "as positive_perturbation; missing patches solve x_i = sum_j w_ij x_j + noise over their neighbours"
    operator: str = "noisy_linear"


@dataclass(frozen=True, kw_only=True)
class RoadLerf(_AccuracyCurve):
    """ROAD, least relevant first."""

    NAME = "road_lerf"
    FORMULA = "as negative_perturbation; missing patches solve x_i = sum_j w_ij x_j + noise over their neighbours"
    MOST = False
    operator: str = "noisy_linear"
