"""How much does a map change when the image changes hardly at all?

n copies of the image with uniform noise in a box of radius r go to the method, for the same class. Copies for which the
model predicts something else are left out (a map may change with the prediction); an image that has none left is
undefined.

===========================  ==========================================================================
`MaxSensitivity`             largest `|map' - map| / |map|` (2-norms)
`AverageSensitivity`         their mean
`LocalLipschitz`             largest `|map' - map| / |x' - x|`
`RelativeInputStability`     largest `(|map' - map| / |map|) / (|x' - x| / |x|)`
`RelativeOutputStability`    the same over the relative change of the logits
`RelativeRepresentation...`  the same over the relative change of given activations
===========================  ==========================================================================

Relative changes are of norms: element by element, as in Agarwal et al. 2022, one patch near zero decides alone. All
say nothing about faithfulness (a constant map is perfectly stable) and mean nothing without r. Source: faithfulness.md
2.3 [K].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.faithfulness.metric import Measured, Metric, checked_maps, measured
from mechvis.keyed import numpy_of

Explain = Callable[[Float[Tensor, "image channel height width"]], Float[Tensor, "image patch"]]

ZERO = "the map is zero"
CHANGED = "every disturbed copy is predicted differently"
NOTHING = "what the change is relative to is zero"
STILL = "what the change is divided by does not change"


@dataclass(frozen=True, kw_only=True)
class _Stability(Metric):
    UNIT = "ratio"
    SOURCE = "faithfulness.md 2.3"
    NEEDS = "method"
    DIRECTION = "low"
    AVERAGE: ClassVar[bool] = False
    RELATIVE: ClassVar[bool] = True
    radius: float = 0.05
    """Half the side of the box of noise, in units of the preprocessed pixels."""
    n: int = 8
    """Copies per image."""
    seed: int = 0
    """Of the noise."""

    def measure(
        self,
        pixels: Float[Tensor, "image channel height width"],
        explain: Explain,
        *,
        predict: Callable[[Tensor], Tensor] | None = None,
        read: Callable[[Tensor], Float[Tensor, "image ..."]] | None = None,
        ids: Sequence[int] | None = None,
    ) -> Measured:
        """One number per image.

        Args:
            pixels: the images.
            explain: pixels -> maps, for the same classes (see `explainers.by_pixels`).
            predict: pixels -> predicted classes `[image]`; None: no copy is left out.
            read: pixels -> what the change is divided by (logits, activations), where the metric needs it.
            ids: which example each image is: noise belongs to it.
        """
        maps = checked_maps(explain(pixels))
        before = self._below(pixels, read)
        predicted = None if predict is None else predict(pixels)
        ratios, used, still = [], [], []
        for noise in self.noise(pixels, ids):
            other = pixels + noise
            change = (checked_maps(explain(other)) - maps).norm(dim=1)
            change = change / maps.norm(dim=1) if self.RELATIVE else change
            if before is None:
                below = torch.ones_like(change)
            else:
                below = (self._below(other, read) - before).norm(dim=1)
                below = below / before.norm(dim=1) if self.RELATIVE else below
            still.append(below == 0)
            ratios.append(change / below)
            used.append(torch.ones(len(maps), dtype=torch.bool) if predict is None else predict(other) == predicted)
        table, known = torch.stack(ratios, 1), torch.stack([one.cpu() for one in used], 1)
        if self.AVERAGE:
            values = torch.where(known, table, 0).sum(1) / known.sum(1)
        else:
            values = torch.where(known, table, -torch.inf).max(1).values
        undefined = {ZERO: self.RELATIVE & (maps.norm(dim=1) == 0), CHANGED: ~known.any(1)}
        if before is not None and self.RELATIVE:
            undefined[NOTHING] = before.norm(dim=1) == 0
        undefined[STILL] = (torch.stack(still, 1) & known).any(1)
        return measured(self.NAME, values, undefined, extra={"copies": known.sum(1)})

    def noise(self, pixels: Tensor, ids: Sequence[int] | None = None) -> Float[Tensor, "copy image ..."]:
        """The disturbances `[copy image channel height width]`."""
        if not self.radius > 0 or self.n < 1:
            raise OutOfRange(f"radius={self.radius}, n={self.n}: give a positive radius and at least one copy.")
        numbers = range(len(pixels)) if ids is None else [int(one) for one in ids]
        if len(numbers) != len(pixels):
            raise ShapeMismatch(f"{len(numbers)} ids for {len(pixels)} images.")
        drawn = [
            torch.from_numpy(numpy_of(self.seed, number, "stability").uniform(-1, 1, (self.n, *pixels.shape[1:])))
            for number in numbers
        ]
        return (self.radius * torch.stack(drawn, 1)).to(pixels)

    def _below(self, pixels: Tensor, read: Callable | None) -> Tensor | None:
        return None


@dataclass(frozen=True, kw_only=True)
class MaxSensitivity(_Stability):
    """Largest relative change of the map in a box around the image."""

    NAME = "max_sensitivity"
    FORMULA = "max over |d|_inf <= r of |map(x + d) - map(x)|_2 / |map(x)|_2, prediction unchanged"
    SCALE_FREE = True


@dataclass(frozen=True, kw_only=True)
class AverageSensitivity(_Stability):
    """Mean relative change of the map in a box around the image."""

    NAME = "average_sensitivity"
    FORMULA = "mean over |d|_inf <= r of |map(x + d) - map(x)|_2 / |map(x)|_2, prediction unchanged"
    SCALE_FREE = True
    AVERAGE = True


class _OverPixels(_Stability):
    def _below(self, pixels: Tensor, read: Callable | None) -> Tensor:
        return pixels.detach().cpu().double().flatten(1)


@dataclass(frozen=True, kw_only=True)
class LocalLipschitz(_OverPixels):
    """Largest change of the map per change of the image; depends on the map's scale."""

    NAME = "local_lipschitz"
    UNIT = "map per pixel"
    FORMULA = "max over |d|_inf <= r of |map(x + d) - map(x)|_2 / |d|_2, prediction unchanged"
    RELATIVE = False


@dataclass(frozen=True, kw_only=True)
class RelativeInputStability(_OverPixels):
    """Largest relative change of the map per relative change of the image."""

    NAME = "relative_input_stability"
    FORMULA = "max of (|map' - map| / |map|) / (|x' - x| / |x|), prediction unchanged"
    SCALE_FREE = True


@dataclass(frozen=True, kw_only=True)
class _OverRead(_Stability):
    SCALE_FREE = True

    def _below(self, pixels: Tensor, read: Callable | None) -> Tensor:
        if read is None:
            raise BadData(f"{self.NAME} divides by the change of something: give read= (logits, activations).")
        with torch.no_grad():
            return read(pixels).detach().cpu().double().flatten(1)


@dataclass(frozen=True, kw_only=True)
class RelativeOutputStability(_OverRead):
    """Largest relative change of the map per relative change of the logits (`read`: pixels -> logits)."""

    NAME = "relative_output_stability"
    FORMULA = "max of (|map' - map| / |map|) / (|logits' - logits| / |logits|), prediction unchanged"


@dataclass(frozen=True, kw_only=True)
class RelativeRepresentationStability(_OverRead):
    """Largest relative change of the map per relative change of activations (`read`: pixels -> activations)."""

    NAME = "relative_representation_stability"
    FORMULA = "max of (|map' - map| / |map|) / (|a' - a| / |a|) for activations a, prediction unchanged"
