"""PGI and PGU: how much does the score move when only what a map calls important (unimportant) is disturbed?

A random half of the top-k patches is taken away, many times; the mean of `|s(x) - s(x')|` is the prediction gap on
important features (PGI, high). The same for the other patches is the gap on unimportant ones (PGU, low). OpenXAI
(Agarwal et al. 2022) adds noise to columns of tables; taking away random patches is our form for images. Source:
faithfulness.md 2.1 [K], disturbance [X].
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mechvis.errors import OutOfRange
from mechvis.faithfulness.answers import Answers, answers_of
from mechvis.faithfulness.metric import GameMetric, MaskGame, Measured, checked_maps, measured
from mechvis.faithfulness.orders import descending
from mechvis.faithfulness.subsets import size_of
from mechvis.keyed import numpy_of


@dataclass(frozen=True, kw_only=True)
class _Gap(GameMetric):
    UNIT = "score"
    SOURCE = "faithfulness.md 2.1"
    SCALE_FREE = True
    TOP: ClassVar[bool] = True
    """The top patches are disturbed."""
    share: float = 0.25
    """Patches that count as important, as a share of all."""
    n: int = 32
    """Disturbances per image."""
    rate: float = 0.5
    """Chance of each of these patches to be taken away."""

    def measure(self, maps: Tensor, game: MaskGame | Answers) -> Measured:
        if not 0 < self.rate <= 1 or self.n < 1:
            raise OutOfRange(f"rate={self.rate}, n={self.n}: give a chance above 0, at most 1, and at least one draw.")
        answers = answers_of(game)
        maps = checked_maps(maps, answers.n_patches)
        size = size_of(self.share, answers.n_patches)
        order = descending(maps, answers)
        chosen = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :size], True)
        chosen = chosen if self.TOP else ~chosen
        drawn = torch.stack(
            [
                torch.from_numpy(numpy_of(answers.seed, number, "gaps").random((self.n, answers.n_patches)))
                for number in answers.ids(len(maps))
            ]
        )
        masks = ~(chosen[:, None] & (drawn < self.rate))
        gaps = (answers.full(len(maps), self.form)[:, None] - answers.scores(masks, self.form)).abs()
        return measured(self.NAME, gaps.mean(1))


@dataclass(frozen=True, kw_only=True)
class Pgi(_Gap):
    """Prediction gap when important patches are disturbed."""

    NAME = "pgi"
    FORMULA = "E |s(x) - s(x')|, x' = x without a random part of the top-k patches"


@dataclass(frozen=True, kw_only=True)
class Pgu(_Gap):
    """Prediction gap when the other patches are disturbed."""

    NAME = "pgu"
    DIRECTION = "low"
    BEST = 0.0
    FORMULA = "E |s(x) - s(x')|, x' = x without a random part of the patches that are not top-k"
    TOP = False
