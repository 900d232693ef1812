"""Is a map about this model and this class? Ask again with other weights, and for another class.

**Parameter randomisation** (MPRT, Adebayo et al. 2018). A copy of the model gets new parameters from the top down: the
read-out, then the last block as well, ..., then everything. A map that stays the same is not about the weights. What
comes out is the rank correlation of patches with the map of the real model, after each step; the value is the one after
the last. It is a *gate*, not a ranking: noisy maps pass easily (faithfulness.md 2.3 [K]). SSIM is left out: it depends
on how maps are normalised.

* `Mprt`: as above.
* `SmoothMprt` (Hedstroem et al. 2024): maps are averaged over noisy copies of the image first, so that shattered
  gradients do not pass for a difference.
* `EfficientMprt` (the same): no correlation, but the rise of the map's entropy from the real model to random weights,
  as a share of the real one. Entropy here is that of `|map| / sum |map|` as everywhere in this package; the paper takes
  a histogram's.

**Target randomisation** (`TargetRandomisation`): rank correlation with the map of another class, drawn for each image.
1 means that the map does not look at the class.

The user's model is never touched: see :func:`mechvis.models.random_copy`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.faithfulness.complexity import entropy
from mechvis.faithfulness.metric import Measured, Metric, checked_maps, measured
from mechvis.faithfulness.subsets import is_flat, spearman
from mechvis.keyed import numpy_of

FLAT_MAP = "the map is the same number everywhere"
FLAT_OTHER = "the other map is the same number everywhere"


def stages(model: Any) -> dict[str, set[str] | None]:
    """What is new at each step of the cascade: step -> names of the parameters of the user's module; None: all of them.

    Which parameters act from a layer on is found by a gradient on a copy, so this holds for any family.

    Example:
        >>> list(stages(model))                                                        # doctest: +SKIP
        ['readout', 'blocks.3', 'blocks.2', 'blocks.1', 'blocks.0', 'everything']
    """
    from mechvis.models.random_copy import random_copy
    from mechvis.removal.tokens import from_embedding

    other = random_copy(model, seed=0, how="shuffle")
    named = {name: parameter.requires_grad_(True) for name, parameter in other.bare.named_parameters()}
    n_layers = len(other.parts.blocks)
    with torch.no_grad():
        pixels = other.parts.example_batch(other.bare, torch.Generator().manual_seed(0))
        size = tuple(pixels.shape[2:]) if pixels.ndim == 4 else None
        streams = [other.parts.embed(pixels)] + [
            other(pixels, stop_at_layer=layer, size=size) for layer in range(1, n_layers)
        ]
        last = f"blocks.{n_layers - 1}.hook_resid_post"
        streams.append(other.run(pixels, capture=[last]).cache[last])
    found: dict[str, set[str] | None] = {}
    for layer in range(n_layers, -1, -1):
        with torch.enable_grad():
            stream = streams[layer].detach().requires_grad_(True)
            if layer == n_layers:
                output = other._read_out(stream, pixels, None)
            elif layer:
                output = other(stream, start_at_layer=layer, size=size)
            else:
                output = from_embedding(other, stream, other.parts)
        gradients = torch.autograd.grad(output.square().sum(), list(named.values()), allow_unused=True)
        acting = {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}
        found["readout" if layer == n_layers else f"blocks.{layer}"] = acting
    # A read-out without parameters of its own (a zero-shot head of given vectors behind no norm) is no step.
    return {name: acting for name, acting in found.items() if acting} | {"everything": None}


def cascade(
    model: Any, *, seed: int = 0, how: str = "init", steps: Sequence[str] | None = None
) -> list[tuple[str, Callable[[], Any]]]:
    """Models with new parameters from the top down, made one at a time when called (each is a copy).

    Args:
        model: a wrapped vision model.
        seed: of the new parameters; a parameter gets the same new value in every step.
        how: see :func:`mechvis.models.random_copy`.
        steps: names of some steps (see :func:`stages`); None: all.

    Raises:
        BadData: no such step.
    """
    from mechvis.models.random_copy import random_copy

    known = {"everything": None} if steps is not None and list(steps) == ["everything"] else stages(model)
    chosen = list(known) if steps is None else list(steps)
    for step in chosen:
        if step not in known:
            raise BadData(f"no step {step!r} in the cascade; steps: {', '.join(known)}.")

    def made(names: set[str] | None) -> Callable[[], Any]:
        only = None if names is None else names.__contains__
        return lambda: random_copy(model, seed=seed, how=how, only=only)

    return [(step, made(known[step])) for step in chosen]


@dataclass(frozen=True, kw_only=True)
class _Method(Metric):
    UNIT = "correlation"
    SOURCE = "faithfulness.md 2.3"
    NEEDS = "method"
    DIRECTION = "low"


@dataclass(frozen=True, kw_only=True)
class Mprt(_Method):
    """Rank correlation of maps with those of models with new parameters."""

    NAME = "mprt"
    FORMULA = "Spearman over patches of (map; map after parameters from the top to layer l are new), l = 0 at last"
    SCALE_FREE = True

    def measure(
        self,
        maps: Float[Tensor, "image patch"],
        explain: Callable[[Any], Float[Tensor, "image patch"]],
        models: Sequence[tuple[str, Callable[[], Any]]],
    ) -> Measured:
        """One number per image: the correlation at the last step; the curve has all steps.

        Args:
            maps: of the model itself.
            explain: model -> maps of the same images and classes (see `explainers.by_model`).
            models: name and maker of each step, see :func:`cascade`; the last one should be new altogether.
        """
        maps, others = checked_maps(maps), _asked(explain, models)
        curve = torch.stack([spearman(maps, _like(other, maps)) for other in others], 1)
        undefined = {FLAT_MAP: is_flat(maps), FLAT_OTHER: is_flat(others[-1])}
        return measured(self.NAME, curve[:, -1], undefined, curves={"spearman": curve}, points=range(len(others)))


@dataclass(frozen=True, kw_only=True)
class SmoothMprt(_Method):
    """The same, with maps averaged over noisy copies of the image."""

    NAME = "smooth_mprt"
    SCALE_FREE = True
    FORMULA = "mprt with maps replaced by their mean over n copies of the image with noise N(0, (sigma * range)^2)"
    n: int = 8
    """Noisy copies."""
    sigma: float = 0.1
    """Standard deviation of the noise, as a share of the image's range."""
    seed: int = 0
    """Of the noise."""

    def measure(
        self,
        pixels: Float[Tensor, "image channel height width"],
        explain: Callable[[Any, Tensor], Float[Tensor, "image patch"]],
        model: Any,
        models: Sequence[tuple[str, Callable[[], Any]]],
        ids: Sequence[int] | None = None,
    ) -> Measured:
        """One number per image, as in :class:`Mprt`.

        Args:
            pixels: the images.
            explain: (model, pixels) -> maps.
            model: the model itself.
            models: see :func:`cascade`.
            ids: which example each image is: noise belongs to it.
        """
        noisy = noisy_copies(pixels, self.n, self.sigma, self.seed, ids)

        def smooth(one: Any) -> Tensor:
            return torch.stack([checked_maps(explain(one, some)) for some in noisy]).mean(0)

        found = Mprt().measure(smooth(model), smooth, models)
        return measured(
            self.NAME,
            found.values,
            {FLAT_MAP: np.isnan(found.values)},
            curves=found.curves,
            points=found.points,
        )


@dataclass(frozen=True, kw_only=True)
class EfficientMprt(_Method):
    """Rise of the map's entropy when all parameters are new."""

    NAME = "efficient_mprt"
    UNIT = "share"
    DIRECTION = "high"
    FORMULA = "(H(map of random weights) - H(map)) / H(map), H = -sum p log p, p = |map| / sum |map|"
    SCALE_FREE = True

    def measure(
        self, maps: Float[Tensor, "image patch"], explain: Callable[[Any], Float[Tensor, "image patch"]], model: Any
    ) -> Measured:
        """One number per image.

        Args:
            maps: of the model itself.
            explain: model -> maps.
            model: the model with random weights.
        """
        maps, other = checked_maps(maps), _like(explain(model), maps)
        before, after = entropy(maps), entropy(_like(other, maps))
        zero = (maps.abs().sum(1) == 0) | (other.abs().sum(1) == 0)
        one = before.nan_to_num() < 1e-12
        return measured(
            self.NAME,
            (after - before) / before,
            {"a map is zero": zero, "the map is one patch: its entropy is zero": one},
            extra={"before": before, "after": after},
        )


@dataclass(frozen=True, kw_only=True)
class TargetRandomisation(_Method):
    """Rank correlation with the map of another class."""

    NAME = "target_randomisation"
    FORMULA = "Spearman over patches of (map for c, map for c'), c' drawn uniformly from the other classes"
    SCALE_FREE = True
    seed: int = 0
    """Of the other classes."""

    def measure(
        self,
        maps: Float[Tensor, "image patch"],
        explain: Callable[[Int[Tensor, " image"]], Float[Tensor, "image patch"]],
        classes: Int[Tensor, " image"],
        n_classes: int,
        ids: Sequence[int] | None = None,
    ) -> Measured:
        """One number per image.

        Args:
            maps: for `classes`.
            explain: classes -> maps (see `explainers.by_class`).
            classes: explained classes.
            n_classes: classes of the model, at least two.
            ids: which example each image is: the draw belongs to it.
        """
        maps = checked_maps(maps)
        others = other_classes(classes, n_classes, self.seed, ids)
        other = _like(explain(others), maps)
        undefined = {FLAT_MAP: is_flat(maps), FLAT_OTHER: is_flat(other)}
        return measured(self.NAME, spearman(maps, other), undefined, extra={"other_class": others})


def other_classes(
    classes: Int[Tensor, " image"], n_classes: int, seed: int = 0, ids: Sequence[int] | None = None
) -> Int[Tensor, " image"]:
    """A class per image that is not its own, all others equally likely.

    Raises:
        OutOfRange: fewer than two classes, or a class that does not exist.
    """
    if n_classes < 2:
        raise OutOfRange(f"{n_classes} classes: there is no other one.")
    if int(classes.max()) >= n_classes or int(classes.min()) < 0:
        raise OutOfRange(f"class {int(classes.max())} does not exist: there are {n_classes}.")
    numbers = _ids(len(classes), ids)
    drawn = [int(numpy_of(seed, number, "other class").integers(1, n_classes)) for number in numbers]
    return (classes + torch.tensor(drawn, device=classes.device)) % n_classes


def noisy_copies(
    pixels: Float[Tensor, "image channel height width"],
    n: int,
    sigma: float,
    seed: int = 0,
    ids: Sequence[int] | None = None,
) -> list[Float[Tensor, "image channel height width"]]:
    """`n` copies of the images with Gaussian noise of `sigma` times each image's range."""
    if n < 1 or not sigma > 0:
        raise OutOfRange(f"n={n}, sigma={sigma}: give at least one copy and a positive width.")
    span = pixels.amax((1, 2, 3), keepdim=True) - pixels.amin((1, 2, 3), keepdim=True)
    numbers = _ids(len(pixels), ids)
    noise = torch.stack(
        [
            torch.from_numpy(numpy_of(seed, number, "noisy copies").standard_normal((n, *pixels.shape[1:])))
            for number in numbers
        ],
        1,
    ).to(pixels)
    return [pixels + sigma * span * one for one in noise]


def _ids(n: int, ids: Sequence[int] | None) -> list[int]:
    found = list(range(n)) if ids is None else [int(one) for one in ids]
    if len(found) != n:
        raise ShapeMismatch(f"{len(found)} ids for {n} images.")
    return found


def _asked(explain: Callable[[Any], Tensor], models: Sequence[tuple[str, Callable[[], Any]]]) -> list[Tensor]:
    if not models:
        raise BadData("no models to compare with: see cascade(model).")
    return [checked_maps(explain(make())) for _, make in models]


def _like(other: Tensor, maps: Tensor) -> Tensor:
    other = checked_maps(other)
    if other.shape != maps.shape:
        raise ShapeMismatch(f"maps {list(maps.shape)} and maps {list(other.shape)} cannot be compared.")
    return other
