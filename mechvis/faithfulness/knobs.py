"""How much of a map is the method's own settings? The same images explained under a grid of knobs and seeds.

Maps come as `[setting image patch]`. Per image: mean rank correlation, and mean overlap of the top 10 % of the patches,
over all pairs of settings. The distribution over images is the result, since an average hides images that flip. Where
the grid is knob x seed, `shares` splits the variance of maps into seed, knob and image. Source: methods2.md 20.3.
"""

from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.faithfulness.metric import Measured, Metric, checked_maps, measured
from mechvis.faithfulness.subsets import is_flat, size_of, spearman

FLAT = "a map is the same number everywhere"


@dataclass(frozen=True, kw_only=True)
class KnobAgreement(Metric):
    """Mean rank correlation of an image's maps over pairs of settings."""

    NAME = "knob_agreement"
    UNIT = "correlation"
    FORMULA = (
        "mean over pairs of settings of Spearman over patches; extra: |top 10 % of a and b| / |top 10 % of a or b|"
    )
    SOURCE = "methods2.md 20.3"
    NEEDS = "maps"
    BEST = 1.0
    SCALE_FREE = True
    top: float = 0.1
    """Share of the patches whose overlap is taken."""

    def measure(self, maps: Float[Tensor, "setting image patch"]) -> Measured:
        """One number per image.

        Args:
            maps: the same images under each setting, at least two.
        """
        maps = torch.as_tensor(maps)
        if maps.ndim != 3 or len(maps) < 2:
            raise ShapeMismatch(f"maps are [setting image patch] with at least two settings, got {list(maps.shape)}.")
        every = [checked_maps(one) for one in maps]
        k = size_of(self.top, maps.shape[2]) if maps.shape[2] > 1 else 1
        tops = [torch.zeros_like(one, dtype=torch.bool).scatter_(1, one.topk(k, 1).indices, True) for one in every]
        pairs = list(combinations(range(len(every)), 2))
        ranks = torch.stack([spearman(every[a], every[b]) for a, b in pairs])
        overlaps = torch.stack([(tops[a] & tops[b]).sum(1) / (tops[a] | tops[b]).sum(1).double() for a, b in pairs])
        flat = torch.stack([is_flat(one) for one in every]).any(0)
        extra = {"top_overlap": overlaps.mean(0), "worst_pair": ranks.min(0).values}
        return measured(self.NAME, ranks.mean(0), {FLAT: flat}, extra=extra)


def map_shares(maps: Float[Tensor, "knob seed image patch"]) -> dict[str, float]:
    """How much of the variance of maps comes from the image, the knob, the seed.

    Maps are standardised first (each to mean 0 and length 1), so that a knob that only scales them counts as nothing.
    Sums of squares of the nested means: image = what all settings share, knob = what its seeds share beyond that, seed
    = the rest; shares add up to 1.

    Args:
        maps: at least one knob and one seed; none of them constant.

    Example:
        >>> map_shares(torch.rand(1, 1, 4, 9))["image"]
        1.0
    """
    if maps.ndim != 4 or not maps.numel():
        raise ShapeMismatch(f"maps are [knob seed image patch], got {list(maps.shape)}.")
    values = maps.double() - maps.double().mean(-1, keepdim=True)
    size = values.norm(dim=-1, keepdim=True)
    if not bool((size > 0).all()):
        raise OutOfRange("a map is the same number everywhere: it has no pattern to compare.")
    values = values / size
    total = float(values.square().sum())
    shared, by_knob = values.mean((0, 1), keepdim=True), values.mean(1, keepdim=True)
    image = float(shared.square().sum()) * maps.shape[0] * maps.shape[1]
    knob = float((by_knob - shared).square().sum()) * maps.shape[1]
    return {"image": image / total, "knob": knob / total, "seed": max(0.0, 1 - (image + knob) / total)}
