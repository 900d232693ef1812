"""ROAR and KAR: remove (keep) what a map calls important, train again, and see what can still be learned.

1. For each share t: the top t of the patches of every image, in training *and* test images, are replaced by the image's
   mean colour (`Roar`), or everything but them (`Kar`).
2. A new model is trained on the training images, several times from different seeds, and tested.
3. The accuracy over t, beside that of random maps. Removing what carries the class should hurt more than removing at
   random; keeping it should hurt less.

Masks can give the class away by their shape alone: so a classifier is trained on nothing but the masks
(`mask_shape`). Above chance, the result is confounded. Only for tiny models: every share, seed and control is a
training.

**ROAR-probe** is the cheap relative, and answers another question (what is still *linearly* there in a frozen model?):
`fit=probe_fit`, with inputs that are features of the frozen model without the dropped tokens (:func:`features_of`).

Source: methods2.md 20.1 (Hooker et al. 2019); KAR and the mask control as there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.faithfulness.metric import Measured, Metric, checked_maps, measured
from mechvis.keyed import generator_of

Predict = Callable[[Tensor], Int[Tensor, " image"]]
Fit = Callable[[Tensor, Int[Tensor, " image"], int], Predict]
"""Inputs, labels, seed -> a trained model: inputs to predicted classes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Images that a model is trained or tested on, with maps."""

    inputs: Callable[[Float[Tensor, "image patch"]], Tensor]
    """Masks of kept patches -> what the model is given (see :func:`filled_with_mean`, :func:`features_of`)."""
    labels: Int[Tensor, " image"]
    """Classes."""
    maps: Float[Tensor, "image patch"]
    """Larger is more relevant."""
    ids: Sequence[int] | None = None
    """Which example each image is; None: 0, 1, ..."""


def filled_with_mean(
    pixels: Float[Tensor, "image channel height width"], grid: tuple[int, int]
) -> Callable[[Float[Tensor, "image patch"]], Tensor]:
    """Masks -> the images with missing patches in their mean colour."""
    down, across = (side // n for side, n in zip(pixels.shape[2:], grid, strict=True))
    if (down * grid[0], across * grid[1]) != tuple(pixels.shape[2:]):
        raise ShapeMismatch(f"images of {list(pixels.shape[2:])} pixels do not divide into {list(grid)} patches.")
    mean = pixels.mean((2, 3), keepdim=True)

    def inputs(masks: Tensor) -> Tensor:
        wide = masks.to(pixels).unflatten(1, (1, grid[0], grid[1]))
        return torch.lerp(mean, pixels, wide.repeat_interleave(down, 2).repeat_interleave(across, 3))

    return inputs


def features_of(game: Any) -> Callable[[Float[Tensor, "image patch"]], Tensor]:
    """Masks -> what a frozen model feeds to its head (its last embedding) with these patches removed as the game does.

    Args:
        game: a :class:`mechvis.removal.Game`, e.g. with the operator `token_drop`.

    Raises:
        BadData: the model has no head that could be left out.
    """
    from mechvis.hooked import HookedViT

    model = game.model
    if model.parts.head is None:
        raise BadData("this model has no head: what it gives out are its features.")
    bare = HookedViT(model.bare, replace(model.parts, head=None), preprocess=model.preprocess, name=model.title)
    headless = replace(game, model=bare)
    return lambda masks: headless.outputs(masks[:, None])[:, 0].detach()


def probe_fit(inputs: Tensor, labels: Tensor, seed: int) -> Predict:
    """A linear classifier (logistic regression on standardised inputs): for probes and for masks."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, random_state=seed))
    found.fit(inputs.flatten(1).double().cpu().numpy(), labels.cpu().numpy())
    return lambda other: torch.from_numpy(found.predict(other.flatten(1).double().cpu().numpy()))


@dataclass(frozen=True, kw_only=True)
class _Retrained(Metric):
    UNIT = "accuracy"
    SOURCE = "methods2.md 20.1"
    NEEDS = "training"
    SCALE_FREE = True
    KEEP: ClassVar[bool] = False
    """The top patches stay, and everything else goes."""
    shares: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Top shares of the patches."""
    seeds: int = 3
    """Trainings per share."""
    seed: int = 0
    """Of random maps and ties; trainings have the seeds `seed`, `seed + 1`, ..."""

    def measure(self, train: Examples, test: Examples, fit: Fit) -> Measured:
        """One number per test image: the share of trainings (over shares and seeds) that get it right.

        Args:
            train: examples to train on.
            test: others, to test on.
            fit: the training recipe; the same for all.

        Returns:
            `curves["accuracy"]` and `["random"]` `[image share]`; `baselines`: `random` maps, and `mask_shape` (a
            linear classifier that sees the masks alone), `chance` (the most frequent class).

        Raises:
            ShapeMismatch, OutOfRange, NotFinite.
        """
        if self.seeds < 1 or not self.shares or not all(0 < share < 1 for share in self.shares):
            raise OutOfRange(f"seeds={self.seeds}, shares={self.shares}: give shares between 0 and 1 and a seed.")
        both = [_checked(one, self.seed) for one in (train, test)]
        noise = [replace(one, maps=torch.stack([_noise(self.seed, number, one) for number in one.ids])) for one in both]
        curves = {"accuracy": self._curve(*both, fit), "random": self._curve(*noise, fit)}
        shapes = torch.stack([self._shape(*both, share) for share in self.shares], 1)
        most = both[0].labels.mode().values
        baselines = {
            "random": curves["random"].mean(1),
            "mask_shape": shapes.mean(1),
            "chance": (both[1].labels == most).double(),
        }
        return measured(
            self.NAME,
            curves["accuracy"].mean(1),
            curves=curves | {"mask_shape": shapes},
            points=np.array(self.shares),
            baselines=baselines,
        )

    def _curve(self, train: Examples, test: Examples, fit: Fit) -> Float[Tensor, "image share"]:
        columns = []
        for share in self.shares:
            seen, asked = (one.inputs(self._masks(one, share)) for one in (train, test))
            right = [
                (fit(seen, train.labels, self.seed + number)(asked) == test.labels).double()
                for number in range(self.seeds)
            ]
            columns.append(torch.stack(right).mean(0))
        return torch.stack(columns, 1)

    def _shape(self, train: Examples, test: Examples, share: float) -> Float[Tensor, " image"]:
        found = probe_fit(self._masks(train, share), train.labels, self.seed)(self._masks(test, share))
        return (found == test.labels).double()

    def _masks(self, of: Examples, share: float) -> Float[Tensor, "image patch"]:
        """Kept patches."""
        n = of.maps.shape[1]
        size = min(max(round(share * n), 1), n - 1)
        top = torch.zeros(of.maps.shape)
        for row, values, number in zip(top, of.maps, of.ids, strict=True):
            mixed = torch.randperm(n, generator=generator_of(self.seed, number, "ties"))
            row[mixed[values[mixed].argsort(descending=True, stable=True)][:size]] = 1.0
        return top if self.KEEP else 1 - top


@dataclass(frozen=True, kw_only=True)
class Roar(_Retrained):
    """Accuracy after retraining without the most relevant patches."""

    NAME = "roar"
    DIRECTION = "low"
    FORMULA = "test accuracy of models trained and tested without the top share t of the patches, mean over t and seeds"


@dataclass(frozen=True, kw_only=True)
class Kar(_Retrained):
    """Accuracy after retraining with the most relevant patches alone."""

    NAME = "kar"
    FORMULA = "test accuracy of models trained and tested with the top share t of the patches alone, mean over t, seeds"
    KEEP = True


def _checked(of: Examples, seed: int) -> Examples:
    maps = checked_maps(of.maps)
    if maps.shape[1] < 2:
        raise OutOfRange("one patch cannot be removed and kept: ROAR needs at least two.")
    if len(of.labels) != len(maps) or (of.ids is not None and len(of.ids) != len(maps)):
        raise ShapeMismatch(f"{len(maps)} maps, {len(of.labels)} labels: they belong together.")
    return replace(of, maps=maps, ids=list(range(len(maps))) if of.ids is None else list(of.ids))


def _noise(seed: int, number: int, of: Examples) -> Tensor:
    return torch.rand(of.maps.shape[1], generator=generator_of(seed, number, "random map"), dtype=torch.float64)
