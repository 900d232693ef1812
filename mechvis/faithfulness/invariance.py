"""What must not change a map: a shift that the first layer takes back, company in the batch, the names of tokens.

* `ShiftInvariance` (Kindermans et al. 2019): pixels get a constant added, and the model takes it off again before its
  first layer. It computes the same; so must the method. (Methods with a fixed "zero" image fail, rightly: what they
  call nothing has moved.)
* `BatchInvariance`: the map of an image alone, in another order, and beside blank images.
* `TokenEquivariance` (methods2.md 20.2): tokens change places together with their positions, which is an exact symmetry
  of a transformer without relative positions. A map over tokens has to follow: cosine 1. It catches every mistake of
  indexing. For methods that remove pixels the same change is no change at all (`follows="pixels"`).

Each says first whether the *model* kept still: a method is never judged against a model that is not invariant.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.errors import BadData, RefusedMethod
from mechvis.faithfulness.metric import Measured, Metric, checked_maps, measured, one_of

ZERO = "the map is zero"
MOVED = "the model itself is not invariant here"
TOLERANCE = 1e-4
"""Relative change of the outputs up to which a model counts as invariant (float32)."""


def shifted_model(model: Any, shift: float) -> Any:
    """The model with a constant taken off its pixels before the first layer; weights are shared, nothing is copied."""
    return _with_embed(model, lambda embed: lambda pixels: embed(pixels - shift), f"{model.title} minus {shift}")


def permuted_model(model: Any, order: Int[Tensor, " patch"]) -> Any:
    """The model with its patch tokens in another order from the embedding on, each with its position.

    Args:
        order: patch that stands at each place.

    Raises:
        RefusedMethod: attention of this model depends on where tokens stand (rotary positions, position bias).
        BadData: not an order of all patches.
    """
    parts = model.parts
    if parts.layout is not None:
        raise RefusedMethod("attention of this model depends on the image's layout: tokens cannot change places.")
    n = parts.n_tokens - len(parts.prefix)
    if sorted(order.tolist()) != list(range(n)):
        raise BadData(f"an order names each of the {n} patches once.")
    first = len(parts.prefix)
    index = torch.cat([torch.arange(first), first + order])
    return _with_embed(model, lambda embed: lambda pixels: embed(pixels)[:, index.to(pixels.device)], model.title)


def _with_embed(model: Any, change: Callable, title: str) -> Any:
    from mechvis.hooked import HookedViT

    parts = replace(model.parts, embed=change(model.parts.embed))
    return HookedViT(model.bare, parts, preprocess=model.preprocess, name=title)


def relative_change(maps: Float[Tensor, "image patch"], other: Float[Tensor, "image patch"]) -> Tensor:
    """Largest change of a patch as a share of the map's largest absolute value `[image]`."""
    return (maps - other).abs().max(1).values / maps.abs().max(1).values


@dataclass(frozen=True, kw_only=True)
class _Invariance(Metric):
    UNIT = "share"
    SOURCE = "faithfulness.md 2.3"
    NEEDS = "method"
    DIRECTION = "low"
    BEST = 0.0
    SCALE_FREE = True


@dataclass(frozen=True, kw_only=True)
class ShiftInvariance(_Invariance):
    """Change of the map under a constant shift that the first layer takes back."""

    NAME = "shift_invariance"
    FORMULA = "max_i |map_i(x + c; f(. - c)) - map_i(x; f)| / max |map|"
    shift: float = 0.5
    """The constant, in units of the preprocessed pixels."""

    def measure(
        self,
        maps: Float[Tensor, "image patch"],
        explain: Callable[[Any, Tensor], Float[Tensor, "image patch"]],
        model: Any,
        pixels: Float[Tensor, "image channel height width"],
    ) -> Measured:
        """One number per image.

        Args:
            maps: of the model and the pixels as they are.
            explain: (model, pixels) -> maps for the same classes.
            model: a wrapped vision model.
            pixels: the images.
        """
        maps = checked_maps(maps)
        other = shifted_model(model, self.shift)
        with torch.no_grad():
            still = _still(model(pixels), other(pixels + self.shift))
        found = checked_maps(explain(other, pixels + self.shift))
        zero = maps.abs().max(1).values == 0
        return measured(self.NAME, relative_change(maps, found), {MOVED: ~still, ZERO: zero})


@dataclass(frozen=True, kw_only=True)
class BatchInvariance(_Invariance):
    """Change of the map with the company that the image has in a batch."""

    NAME = "batch_invariance"
    FORMULA = "max over {alone, reversed order, pairs} of max_i |map_i - map_i'| / max |map|"

    def measure(
        self, maps: Float[Tensor, "image patch"], explain: Callable[[list[int]], Float[Tensor, "image patch"]]
    ) -> Measured:
        """One number per image.

        Args:
            maps: of all images as one batch.
            explain: which images in which order -> their maps as one batch (see `explainers.by_place`).
        """
        maps = checked_maps(maps)
        n = len(maps)
        alone = torch.cat([checked_maps(explain([place])) for place in range(n)])
        backwards = checked_maps(explain(list(range(n - 1, -1, -1)))).flip(0)
        pairs = torch.cat([checked_maps(explain([place, (place + 1) % n]))[:1] for place in range(n)])
        worst = torch.stack([relative_change(maps, other) for other in (alone, backwards, pairs)]).max(0).values
        return measured(self.NAME, worst, {ZERO: maps.abs().max(1).values == 0})


@dataclass(frozen=True, kw_only=True)
class TokenEquivariance(Metric):
    """Does the map follow when tokens change places together with their positions?"""

    NAME = "token_equivariance"
    UNIT = "cosine"
    SOURCE = "methods2.md 20.2"
    NEEDS = "method"
    BEST = 1.0
    SCALE_FREE = True
    FORMULA = "mean over g of cos(map(x; f after g), g map(x; f)), g: a permutation of tokens with their positions"
    n: int = 3
    """Permutations."""
    seed: int = 0
    """Of the permutations."""
    follows: str = "tokens"
    """What a map is over: `tokens` (it has to follow) or `pixels` (it has to stay)."""

    def measure(
        self,
        maps: Float[Tensor, "image patch"],
        explain: Callable[[Any], Float[Tensor, "image patch"]],
        model: Any,
        pixels: Float[Tensor, "image channel height width"],
    ) -> Measured:
        """One number per image.

        Args:
            maps: of the model as it is.
            explain: model -> maps of the same images and classes (see `explainers.by_model`).
            model: a wrapped vision model.
            pixels: the images, to see whether the model keeps still.
        """
        one_of("follows", self.follows, ("tokens", "pixels"))
        maps = checked_maps(maps)
        found, still = [], torch.ones(len(maps), dtype=torch.bool)
        for order in orders(maps.shape[1], self.n, self.seed):
            other = permuted_model(model, order)
            with torch.no_grad():
                still &= _still(model(pixels), other(pixels))
            expected = maps[:, order] if self.follows == "tokens" else maps
            found.append(torch.cosine_similarity(checked_maps(explain(other)), expected, dim=1, eps=1e-300))
        zero = maps.abs().max(1).values == 0
        return measured(self.NAME, torch.stack(found).mean(0), {MOVED: ~still, ZERO: zero})


def orders(n_patches: int, n: int, seed: int) -> list[Int[Tensor, " patch"]]:
    """Random orders of patches, none of which leaves all in place (where that is possible)."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    while len(found) < n:
        order = torch.randperm(n_patches, generator=generator)
        if n_patches == 1 or not bool((order == torch.arange(n_patches)).all()):
            found.append(order)
    return found


def equivariance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Float[Tensor, " image"]:
    """Mean over symmetries of `cos(e(gx), g e(x))` for any group.

    Args:
        first: `e(gx)` for each g, `[image ...]`.
        second: `g e(x)` for each g.

    Example:
        >>> equivariance([torch.tensor([[1.0, 0.0]])], [torch.tensor([[1.0, 0.0]])]).tolist()
        [1.0]
    """
    if len(first) != len(second) or not first:
        raise BadData(f"{len(first)} and {len(second)} explanations: give one pair per symmetry, at least one.")
    found = [
        torch.cosine_similarity(a.double().flatten(1), b.double().flatten(1))
        for a, b in zip(first, second, strict=True)
    ]
    return torch.stack(found).mean(0)


def _still(before: Tensor, after: Tensor) -> Tensor:
    size = before.abs().max(1).values
    return ((before - after).abs().max(1).values <= TOLERANCE * size).cpu()
