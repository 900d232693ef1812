"""Deletion, insertion, and the area between curves: does the score go when the patches go that a map names first?

1. Order the patches of each image by its map (:mod:`mechvis.faithfulness.orders`: ties are drawn, not read top to
   bottom).
2. Take away the first 0, 1, ..., all of them, and read the score: the *deletion* curve. A good map makes it fall early.
3. Keep only the first 0, 1, ..., all: the *insertion* curve. A good map makes it rise early. It is the deletion curve
   of the ascending order read backwards, so both come from the same masks.
4. ABPC = area of insertion - area of deletion. What taking patches away does by itself (it leaves the distribution of
   images) is in both and cancels: a random order has 0 on average.

The normalised form puts every image on the scale from "all taken away" (0) to "all there" (1), and is undefined where
the two are the same; those images are counted. Source: faithfulness.md 2.1 [K]; deletion and insertion as in Petsiuk et
al. 2018, ABPC as in Samek et al. 2017, per image and for patches.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import OutOfRange
from mechvis.faithfulness.answers import Answers, answers_of
from mechvis.faithfulness.metric import GameMetric, MaskGame, Measured, checked_maps, measured
from mechvis.faithfulness.orders import area, counts_of, descending, kept_first, removed_first

STEPS = 32
"""Points of a curve by default, less one."""

EPSILON = 1e-3
"""A span between "all" and "none" below this share of the larger of both is called zero."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """Scores while patches go or come, by the same map."""

    points: Float[Tensor, " point"]
    """Shares of the patches that are gone (deletion) or there (insertion)."""
    deletion: Float[Tensor, "image point"]
    """Scores without the first patches of the descending order."""
    insertion: Float[Tensor, "image point"]
    """Scores with nothing else."""

    @property
    def span(self) -> Float[Tensor, " image"]:
        """Score with everything minus score with nothing."""
        return self.deletion[:, 0] - self.deletion[:, -1]

    def undefined(self, epsilon: float = EPSILON) -> Tensor:
        """For which images the span is too small to divide by."""
        scale = torch.maximum(self.deletion[:, 0].abs(), self.deletion[:, -1].abs())
        return self.span.abs() <= epsilon * scale

    def normalised(self, curve: Float[Tensor, "image point"]) -> Float[Tensor, "image point"]:
        """A curve on the scale from nothing (0) to everything (1); infinite or NaN where the span is zero."""
        return (curve - self.deletion[:, -1:]) / self.span[:, None]


def curves(
    maps: Float[Tensor, "image patch"], game: MaskGame | Answers, *, steps: int = STEPS, form: str | None = None
) -> Curves:
    """Both curves of each image.

    Args:
        maps: larger is more relevant.
        game: with an `Answers`, what was asked before is not asked again.
        steps: points less one (about; see `counts_of`). At least the number of patches: every patch on its own.
        form: which form of the score; None: what the game reads.

    Raises:
        ShapeMismatch, NotFinite: see `checked_maps`.

    Example:
        >>> found = curves(maps, game, form="prob")                             # doctest: +SKIP
        >>> area(found.insertion, found.points)                                 # doctest: +SKIP
    """
    answers = answers_of(game)
    maps = checked_maps(maps, answers.n_patches)
    counts = counts_of(answers.n_patches, steps)
    order = descending(maps, answers)
    masks = torch.cat([removed_first(order, counts), kept_first(order, counts)], 1)
    scores = answers.scores(masks, form)
    points = torch.tensor(counts, dtype=torch.float64) / answers.n_patches
    return Curves(points=points, deletion=scores[:, : len(counts)], insertion=scores[:, len(counts) :])


@dataclass(frozen=True, kw_only=True)
class _OfCurves(GameMetric):
    UNIT = "score"
    SOURCE = "faithfulness.md 2.1"
    SCALE_FREE = True
    steps: int = STEPS
    """Points of a curve, less one."""
    normalise: bool = False
    """On the scale from nothing (0) to everything (1)."""
    epsilon: float = EPSILON
    """Spans below this share of the larger end make the normalised form undefined."""

    def measure(self, maps: Tensor, game: MaskGame | Answers) -> Measured:
        if not self.epsilon > 0:
            raise OutOfRange(f"epsilon={self.epsilon}: give a positive share.")
        found = curves(maps, game, steps=self.steps, form=self.form)
        both = {"deletion": found.deletion, "insertion": found.insertion}
        areas = {name: area(curve, found.points) for name, curve in both.items()}
        top = self._value(areas["deletion"], areas["insertion"], found)
        extra = areas | {"span": found.span, "top": top}
        if not self.normalise:
            return measured(self.NAME, top, curves=both, points=found.points, extra=extra)
        gone = found.undefined(self.epsilon)
        return measured(
            self.NAME,
            top / found.span,
            {"the score is the same with all patches and with none": gone},
            curves={name: torch.where(gone[:, None], torch.nan, found.normalised(c)) for name, c in both.items()},
            points=found.points,
            extra=extra,
            ratio=("top", "span"),
        )

    @abstractmethod
    def _value(self, deletion: Tensor, insertion: Tensor, found: Curves) -> Tensor: ...

    def _above_nothing(self, areas: Tensor, found: Curves) -> Tensor:
        return areas - found.deletion[:, -1] if self.normalise else areas


@dataclass(frozen=True, kw_only=True)
class Deletion(_OfCurves):
    """Area under the score while the most relevant patches go first (MoRF)."""

    NAME = "deletion"
    DIRECTION = "low"
    FORMULA = "integral over u of s(R(x, S_u)) du, S_u the share u of patches largest in the map; trapezoid"

    def _value(self, deletion: Tensor, insertion: Tensor, found: Curves) -> Tensor:
        return self._above_nothing(deletion, found)


@dataclass(frozen=True, kw_only=True)
class Insertion(_OfCurves):
    """Area under the score while the most relevant patches come first."""

    NAME = "insertion"
    FORMULA = "integral over u of s(R(x, complement of S_u)) du; trapezoid"

    def _value(self, deletion: Tensor, insertion: Tensor, found: Curves) -> Tensor:
        return self._above_nothing(insertion, found)


@dataclass(frozen=True, kw_only=True)
class Abpc(_OfCurves):
    """Area between the curves of the ascending and the descending order: the headline. A random order has 0."""

    NAME = "abpc"
    FORMULA = "area of deletion by ascending map - area of deletion by descending map = insertion - deletion"

    def _value(self, deletion: Tensor, insertion: Tensor, found: Curves) -> Tensor:
        return insertion - deletion
