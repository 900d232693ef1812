"""Two checks of what a map claims in amounts: does it add up, and do its signs hold?

* `CompletenessGap`: for methods that claim it: the sum of the map against the score with everything minus the score
  with nothing. Tolerances are explicit: one published tool asks for exact equality of floats.
* `SignAgreement`: of the k patches with the largest absolute value, how many have the sign of what really happens
  without them. Complete and linear methods need not know (methods2.md 20.4), so every report says it.

Source: faithfulness.md 2.1; methods2.md 20.4.
"""

from dataclasses import dataclass

from torch import Tensor

from mechvis.errors import OutOfRange
from mechvis.faithfulness.answers import Answers, answers_of
from mechvis.faithfulness.correlation import single_effects
from mechvis.faithfulness.metric import GameMetric, MaskGame, Measured, checked_maps, measured
from mechvis.faithfulness.orders import descending


@dataclass(frozen=True, kw_only=True)
class CompletenessGap(GameMetric):
    """How far a map is from adding up to what it should."""

    NAME = "completeness_gap"
    DIRECTION = "low"
    UNIT = "share"
    FORMULA = "|sum of the map - (s(x) - s(x_b))| / max(|s(x) - s(x_b)|, epsilon), x_b = everything taken away"
    SOURCE = "faithfulness.md 2.1"
    BEST = 0.0
    operator: str = "zero"
    epsilon: float = 1e-6
    """Smallest difference that is divided by, in units of the score."""

    def measure(self, maps: Tensor, game: MaskGame | Answers) -> Measured:
        if not self.epsilon > 0:
            raise OutOfRange(f"epsilon={self.epsilon}: give a positive number.")
        answers = answers_of(game)
        maps = checked_maps(maps, answers.n_patches)
        span = answers.full(len(maps), self.form) - answers.empty(len(maps), self.form)
        error, scale = (maps.sum(1) - span).abs(), span.abs()
        values = error / scale.clamp(min=self.epsilon)
        return measured(self.NAME, values, extra={"error": error, "scale": scale}, ratio=("error", "scale"))


@dataclass(frozen=True, kw_only=True)
class SignAgreement(GameMetric):
    """Do the signs of the largest values hold?"""

    NAME = "sign_agreement"
    UNIT = "share"
    FORMULA = "share of the k patches with the largest |map| for which sign(map_i) = sign(s(x) - s(R(x, {i})))"
    SOURCE = "methods2.md 20.4"
    BEST = 1.0
    SCALE_FREE = True
    k: int = 10
    """Patches that are looked at (at most all)."""

    def measure(self, maps: Tensor, game: MaskGame | Answers) -> Measured:
        if self.k < 1:
            raise OutOfRange(f"k={self.k}: look at least at one patch.")
        answers = answers_of(game)
        maps = checked_maps(maps, answers.n_patches)
        top = descending(maps.abs(), answers)[:, : self.k]
        effects = single_effects(answers, len(maps), self.form)
        agree = maps.gather(1, top).sign() == effects.gather(1, top).sign()
        zero = maps.abs().max(1).values == 0
        return measured(self.NAME, agree.double().mean(1), {"the map is zero": zero})
