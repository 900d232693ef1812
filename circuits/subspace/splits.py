"""Which images take part, and who learns from whom: the behaviour first, then splits by image (methods2.md 16.2, 1-2).

1. *Behaviour*: an interchange can only be judged on images where the model answers as the high-level model does. The
   others are dropped and counted; above a share the whole study is refused, because the high-level model is then not a
   description of this model.
2. *Splits*: images, not pairs, go to train (the subspace), validation (the choice of k and seed) and test (what is
   reported). Pairs are drawn inside a split, so no test pair holds an image that was learnt from.
3. *Unseen*: images of values or backgrounds that are kept out of all three make a second test.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuits.subspace.variable import Variable
from mechvis.errors import BadData, RefusedMethod, ShapeMismatch, SplitOverlap

FRACTIONS = (0.5, 0.2, 0.3)
"""Shares of train, validation and test images (X)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Splits:
    """Positions of the images of each split, ascending."""

    train: Int[Tensor, " train_image"] = field(repr=False)
    """The subspace is learnt from pairs of these."""
    validation: Int[Tensor, " validation_image"] = field(repr=False)
    """k and seed are chosen on pairs of these."""
    test: Int[Tensor, " test_image"] = field(repr=False)
    """What is reported."""
    unseen: Int[Tensor, " unseen_image"] | None = field(repr=False)
    """The second test: images that were held out by what they show; None if none were."""
    dropped: int
    """Images without the behaviour: the model's answer is not Y."""
    n: int
    """Images before that."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of images by split."""
        found = {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}
        found |= {} if self.unseen is None else {"unseen": len(self.unseen)}
        return found | {"dropped": self.dropped}

    @property
    def groups(self) -> list[Tensor]:
        """The splits that exist."""
        return [part for part in (self.train, self.validation, self.test, self.unseen) if part is not None]


def split_images(
    variable: Variable,
    predicted: Int[Tensor, " image"],
    *,
    held_out: Bool[Tensor, " image"] | None = None,
    together: Any = None,
    fractions: tuple[float, float, float] = FRACTIONS,
    max_dropped: float = 0.1,
    seed: int = 0,
) -> Splits:
    """Drop images without the behaviour, and split the others.

    Args:
        variable: what is swapped.
        predicted: the model's answer to each image.
        held_out: images for the second test only, e.g. all with two of the backgrounds.
        together: one name per image; images of one name (versions of one scene) stay in one split.
        fractions: shares of train, validation and test.
        max_dropped: largest share of images that may be dropped.
        seed: fixes who goes where.

    Raises:
        RefusedMethod: too many images are dropped; says how many.
        ShapeMismatch: lengths that do not fit.
        BadData: a split with too few images, or with one value of the variable only.
        SplitOverlap: images of one name on both sides of `held_out`.
    """
    n = len(variable)
    for what, values in (("answers of the model", predicted), ("held_out", held_out), ("together", together)):
        if values is not None and len(values) != n:
            raise ShapeMismatch(f"{variable.name!r} has {n} images, and there are {len(values)} entries in {what}.")
    if len(fractions) != 3 or any(share <= 0 for share in fractions) or sum(fractions) > 1 + 1e-9:
        raise BadData(f"fractions of train, validation and test are positive and sum to at most 1, got {fractions}.")
    behaves = torch.as_tensor(predicted).cpu() == variable.labels
    dropped = n - int(behaves.sum())
    if dropped > max_dropped * n:
        raise RefusedMethod(
            f"the model's answer is not what the high-level model of {variable.name!r} says on {dropped} of {n} images "
            f"({dropped / n:.1%}); at most {max_dropped:.0%} may be dropped. This model does not do what is to be "
            "explained. Choose images on which it does, another variable or answers, or raise max_dropped= knowingly."
        )
    out = torch.zeros(n, dtype=torch.bool) if held_out is None else torch.as_tensor(held_out).cpu().bool()
    usable = (behaves & ~out).nonzero().flatten().numpy()
    names = np.arange(n) if together is None else np.unique(np.asarray(together), return_inverse=True)[1]
    if len(shared := np.intersect1d(names[usable], names[(behaves & out).numpy()])):
        raise SplitOverlap(
            f"{len(shared)} names of together= have images on both sides of held_out=: versions of what is learnt from "
            "would count as unseen. Hold out all versions or none."
        )
    kept = np.random.default_rng(seed).permutation(np.unique(names[usable]))
    bounds = np.round(np.cumsum((0.0, *fractions)) * len(kept)).astype(int)
    parts = [torch.from_numpy(usable[np.isin(names[usable], kept[start:stop])]) for start, stop in pairwise(bounds)]
    unseen = None if held_out is None else (behaves & out).nonzero().flatten()
    for name, part in zip(("train", "validation", "test", "unseen"), (*parts, unseen), strict=True):
        if part is not None and (len(part) < 2 or len(variable.values[part].unique()) < 2):
            raise BadData(
                f"the {name} split has {len(part)} images with {len(variable.values[part].unique())} value(s) of "
                f"{variable.name!r}; it needs two of each at least. Use more images, or hold out others."
            )
    return Splits(train=parts[0], validation=parts[1], test=parts[2], unseen=unseen, dropped=dropped, n=n)
