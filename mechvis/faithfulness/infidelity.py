"""Infidelity: how wrong is a map as a prediction of what happens when patches go?

A map that claims amounts predicts the effect of taking away a set S: the sum of its values over S. Infidelity is the
mean squared error of that prediction over random sets (Yeh et al. 2019, with the indicator of S as perturbation). It
depends on the map's scale, which most methods choose freely; `NInf` scales each map by its best factor first and
divides by what predicting nothing would get:

    beta* = E[a d] / E[a^2],   nInf = E[(beta* a - d)^2] / E[d^2] = 1 - E[a d]^2 / (E[a^2] E[d^2])   in [0, 1]

with a = sum of the map over S and d = s(x) - s(R(x, S)). Note that beta* may be negative: a map that is right but for
its sign has nInf 0. `beta` is in `extra`, and `nonnegative=True` forbids it (such a map then gets 1). Effects grow with
the size of a set, so a constant map explains much of them: what it gets stands beside the value as the baseline
`constant_map`. Source: faithfulness.md 2.1 [K]; the non-negative form and the baseline are ours.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.faithfulness.answers import Answers, answers_of
from mechvis.faithfulness.correlation import FLAT_SCORE
from mechvis.faithfulness.metric import GameMetric, MaskGame, Measured, checked_maps, measured
from mechvis.faithfulness.subsets import ROUNDING, effects_of, size_of, subsets, sums_over


@dataclass(frozen=True, kw_only=True)
class _OverSets(GameMetric):
    SOURCE = "faithfulness.md 2.1"
    DIRECTION = "low"
    BEST = 0.0
    n: int = 100
    """Sets per image."""
    share: float | None = None
    """Patches of a set, as a share of all; None: every size from 1 to all but one equally likely."""

    def _sets(self, n_images: int, answers: Answers) -> Tensor:
        size = None if self.share is None else size_of(self.share, answers.n_patches)
        return subsets(answers, n_images, self.n, size)


@dataclass(frozen=True, kw_only=True)
class Infidelity(_OverSets):
    """Mean squared error of map sums as predictions of effects; depends on the map's scale."""

    NAME = "infidelity"
    UNIT = "score^2"
    FORMULA = "E over random S of (sum of the map over S - (s(x) - s(R(x, S))))^2"

    def measure(self, maps: Tensor, game: MaskGame | Answers) -> Measured:
        answers = answers_of(game)
        maps = checked_maps(maps, answers.n_patches)
        sets = self._sets(len(maps), answers)
        said, effects = sums_over(maps, sets), effects_of(answers, sets, self.form)
        return measured(self.NAME, (said - effects).square().mean(1))


@dataclass(frozen=True, kw_only=True)
class NInf(_OverSets):
    """Infidelity after the best scaling, as a share of the effects' mean square: 0 perfect, 1 useless."""

    NAME = "n_inf"
    UNIT = "share"
    FORMULA = "E[(beta a - d)^2] / E[d^2], beta = E[a d] / E[a^2], a = sum of the map over S, d = s(x) - s(R(x, S))"
    SCALE_FREE = True
    nonnegative: bool = False
    """Forbid a negative factor: a map with the wrong sign then gets 1 and not 0."""

    def measure(self, maps: Tensor, game: MaskGame | Answers) -> Measured:
        answers = answers_of(game)
        maps = checked_maps(maps, answers.n_patches)
        sets = self._sets(len(maps), answers)
        said, effects = sums_over(maps, sets), effects_of(answers, sets, self.form)
        beta, error, scale = scaled_error(said, effects, nonnegative=self.nonnegative)
        gone = effects.abs().max(1).values <= ROUNDING * answers.full(len(maps), self.form).abs()
        sizes = sets.sum(2).to(maps.dtype)
        _, constant, _ = scaled_error(sizes, effects, nonnegative=self.nonnegative)
        return measured(
            self.NAME,
            error / scale,
            {FLAT_SCORE: gone},
            baselines={"constant_map": torch.where(gone, torch.nan, constant / scale)},
            extra={"beta": beta, "error": error, "scale": scale},
            ratio=("error", "scale"),
        )


def scaled_error(
    said: Float[Tensor, "image row"], effects: Float[Tensor, "image row"], *, nonnegative: bool = False
) -> tuple[Float[Tensor, " image"], Float[Tensor, " image"], Float[Tensor, " image"]]:
    """Best factor `beta`, mean squared error with it, and mean square of the effects; nInf is their ratio.

    Args:
        said: what a map says of each set.
        effects: what happens without it.
        nonnegative: no negative factor.

    Example:
        >>> beta, error, scale = scaled_error(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 2.0, 5.0]]))
        >>> beta.item(), error.item(), scale.item()
        (1.5, 0.5, 11.0)
    """
    power = said.square().mean(1)
    # A map of zeros predicts nothing, whatever it is multiplied with: error = E[d^2], so nInf = 1.
    beta = torch.where(power > 0, (said * effects).mean(1) / power.clamp(min=1e-300), 0.0)
    beta = beta.clamp(min=0) if nonnegative else beta
    return beta, (beta[:, None] * said - effects).square().mean(1), effects.square().mean(1)
