"""SaCo: do the sizes of a map's values, and not only their order, agree with effects? Made for vision transformers.

1. Sort the patches by the map and cut them into K groups of equal size (but for one patch).
2. Salience G of a group: the sum of its values. Effect d: `s(x) - s(x without the group)`; both per patch.
3. Every pair of groups has a weight, the difference of its saliences. It counts for the map if the more salient group
   has at least the effect of the other, else against it: `SaCo = sum signed weights / sum |weights|`, in [-1, 1].

Where K does not divide the number of patches, sizes differ by a patch, and larger groups would have larger sums and
larger effects whatever the map says (with 16 patches in 10 groups a random map had 0.56). So both are divided by the
group's size, which changes nothing where sizes are equal. Undefined where all saliences, or all effects, are the same:
then there is nothing to agree with (the formula would call that 1). Source: Salience-guided Faithfulness Coefficient
(Wu et al. 2024) as in faithfulness.md 2.1 [K].
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import OutOfRange
from mechvis.faithfulness.answers import Answers, answers_of
from mechvis.faithfulness.correlation import FLAT_MAP, FLAT_SCORE
from mechvis.faithfulness.metric import GameMetric, MaskGame, Measured, checked_maps, measured
from mechvis.faithfulness.orders import descending
from mechvis.faithfulness.subsets import effects_of, is_flat, sums_over, without_effect


@dataclass(frozen=True, kw_only=True)
class SaCo(GameMetric):
    """Agreement of saliences and effects over pairs of groups of patches."""

    NAME = "saco"
    UNIT = "coefficient"
    FORMULA = (
        "sum over pairs i<j of groups by rank of (G_i - G_j) sign(d_i >= d_j) / sum of |G_i - G_j|; G, d per patch"
    )
    SOURCE = "faithfulness.md 2.1"
    BEST = 1.0
    SCALE_FREE = True
    groups: int = 10
    """Groups of patches (at most as many as there are patches)."""

    def measure(self, maps: Tensor, game: MaskGame | Answers) -> Measured:
        if self.groups < 2:
            raise OutOfRange(f"groups={self.groups}: pairs need at least two.")
        answers = answers_of(game)
        maps = checked_maps(maps, answers.n_patches)
        if answers.n_patches < 2:
            raise OutOfRange("one patch makes no pair of groups: this metric needs at least two patches.")
        order = descending(maps, answers)
        parts = torch.arange(answers.n_patches).tensor_split(min(self.groups, answers.n_patches))
        sets = torch.stack(
            [torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, part], True) for part in parts], 1
        )
        size = sets.sum(2)
        salience, effects = sums_over(maps, sets) / size, effects_of(answers, sets, self.form) / size
        signed, total = signed_weights(salience, effects)
        return measured(
            self.NAME,
            signed / total,
            {FLAT_MAP: is_flat(salience), FLAT_SCORE: without_effect(effects, answers.full(len(maps), self.form))},
            curves={"salience": salience, "effect": effects},
            points=torch.arange(len(parts)).double(),
            extra={"signed": signed, "total": total},
            ratio=("signed", "total"),
        )


def signed_weights(
    salience: Float[Tensor, "image group"], effects: Float[Tensor, "image group"]
) -> tuple[Float[Tensor, " image"], Float[Tensor, " image"]]:
    """Sums over pairs of groups of the signed weights, and of their sizes; SaCo is their ratio.

    Example:
        >>> signed_weights(torch.tensor([[5.0, 3.0, 1.0]]), torch.tensor([[2.0, 3.0, 0.0]]))
        (tensor([4.]), tensor([8.]))
    """
    first, second = torch.triu_indices(salience.shape[1], salience.shape[1], 1)
    weights = salience[:, first] - salience[:, second]
    # Saliences are in descending order up to ties and rounding; a pair that is not is read the other way round.
    ahead = (effects[:, first] - effects[:, second]) * weights.sign()
    return torch.where(ahead >= 0, weights.abs(), -weights.abs()).sum(1), weights.abs().sum(1)
