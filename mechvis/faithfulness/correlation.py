"""Does what a map says of a set of patches go with what happens without it? Correlations over sets.

* `MuFidelity` (Bhatt et al. 2020 "faithfulness correlation", Fel et al. "mu-fidelity"): random sets of one size,
  correlation of the map's sum over the set with the effect of taking it away. Spearman and Pearson are both there; the
  published tools differ in which they take, and one turns undefined into 0: here it is NaN and counted.
* `SensitivityN` (Ancona et al. 2018): the same, Pearson, for several sizes: a curve.
* `Monotonicity` (after Nguyen and Martinez 2020): rank correlation of the size of each patch's value with the size of
  the effect of taking away this patch alone.

Source: faithfulness.md 2.1 [K].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mechvis.errors import OutOfRange
from mechvis.faithfulness.answers import Answers, answers_of
from mechvis.faithfulness.metric import GameMetric, MaskGame, Measured, checked_maps, measured, one_of
from mechvis.faithfulness.subsets import (
    effects_of,
    is_flat,
    pearson,
    size_of,
    spearman,
    subsets,
    sums_over,
    without_effect,
)

FLAT_MAP = "the map says the same of every set"
FLAT_SCORE = "the score does not depend on what is taken away"


@dataclass(frozen=True, kw_only=True)
class MuFidelity(GameMetric):
    """Correlation of map sums and effects over random sets of one size."""

    NAME = "mu_fidelity"
    UNIT = "correlation"
    FORMULA = "corr over random S of one size of (sum of the map over S, s(x) - s(R(x, S)))"
    SOURCE = "faithfulness.md 2.1"
    BEST = 1.0
    SCALE_FREE = True
    share: float = 0.2
    """Patches of a set, as a share of all."""
    n: int = 100
    """Sets per image."""
    correlation: str = "spearman"
    """Which one is the value: `spearman` or `pearson`; both are in `extra`."""

    def measure(self, maps: Tensor, game: MaskGame | Answers) -> Measured:
        one_of("correlation", self.correlation, ("spearman", "pearson"))
        if self.n < 3:
            raise OutOfRange(f"n={self.n}: a correlation needs at least 3 sets.")
        answers = answers_of(game)
        maps = checked_maps(maps, answers.n_patches)
        sets = subsets(answers, len(maps), self.n, size_of(self.share, answers.n_patches))
        said, effects = sums_over(maps, sets), effects_of(answers, sets, self.form)
        both = {"spearman": spearman(said, effects), "pearson": pearson(said, effects)}
        undefined = {FLAT_MAP: is_flat(said), FLAT_SCORE: without_effect(effects, answers.full(len(maps), self.form))}
        return measured(self.NAME, both[self.correlation], undefined, extra=both)


@dataclass(frozen=True, kw_only=True)
class SensitivityN(GameMetric):
    """Pearson correlation of map sums and effects for sets of each of several sizes; the value is their mean."""

    NAME = "sensitivity_n"
    UNIT = "correlation"
    FORMULA = (
        "for each n: Pearson over random S with |S| = n of (sum of the map over S, s(x) - s(R(x, S))); mean over n"
    )
    SOURCE = "faithfulness.md 2.1"
    BEST = 1.0
    SCALE_FREE = True
    shares: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Sizes of the sets, as shares of all patches."""
    n: int = 50
    """Sets per image and size."""

    def measure(self, maps: Tensor, game: MaskGame | Answers) -> Measured:
        if not self.shares:
            raise OutOfRange("no sizes: give at least one share.")
        if self.n < 3:
            raise OutOfRange(f"n={self.n}: a correlation needs at least 3 sets.")
        answers = answers_of(game)
        maps = checked_maps(maps, answers.n_patches)
        sizes = sorted({size_of(share, answers.n_patches) for share in self.shares})
        sets = torch.cat([subsets(answers, len(maps), self.n, size) for size in sizes], 1)
        said = sums_over(maps, sets).unflatten(1, (len(sizes), self.n))
        effects = effects_of(answers, sets, self.form).unflatten(1, (len(sizes), self.n))
        places, full = range(len(sizes)), answers.full(len(maps), self.form)
        curve = torch.stack([pearson(said[:, place], effects[:, place]) for place in places], 1)
        undefined = {
            FLAT_MAP: torch.stack([is_flat(said[:, place]) for place in places]).any(0),
            FLAT_SCORE: torch.stack([without_effect(effects[:, place], full) for place in places]).any(0),
        }
        return measured(
            self.NAME, curve.mean(1), undefined, curves={"pearson": curve}, points=torch.tensor(sizes).double()
        )


@dataclass(frozen=True, kw_only=True)
class Monotonicity(GameMetric):
    """Rank correlation of |map| and |effect| of single patches."""

    NAME = "monotonicity"
    UNIT = "correlation"
    FORMULA = "Spearman over patches i of (|map_i|, |s(x) - s(R(x, {i}))|)"
    SOURCE = "faithfulness.md 2.1"
    BEST = 1.0
    SCALE_FREE = True

    def measure(self, maps: Tensor, game: MaskGame | Answers) -> Measured:
        answers = answers_of(game)
        maps = checked_maps(maps, answers.n_patches).abs()
        effects = single_effects(answers, len(maps), self.form).abs()
        undefined = {FLAT_MAP: is_flat(maps), FLAT_SCORE: without_effect(effects, answers.full(len(maps), self.form))}
        return measured(self.NAME, spearman(maps, effects), undefined)


def single_effects(answers: Answers, n_images: int, form: str | None = None) -> Tensor:
    """Effect `[image patch]` of taking away each patch alone."""
    alone = torch.eye(answers.n_patches, dtype=torch.bool).expand(n_images, -1, -1)
    return effects_of(answers, alone, form)
