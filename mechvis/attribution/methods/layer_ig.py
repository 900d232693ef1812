"""Integrated gradients at any site of the model, and of pixels.

`phi = (x - x') * mean_k ds/dx at x' + a_k (x - x')`, `a_k = (k + 1/2) / steps` (midpoint rule), summed over everything
but tokens (of a pattern: over everything but keys). The sum of all tokens is `s(x) - s(x')`: `Maps.total`, so every
map carries its own gap.

**Where the path may run.** A stream that is read through LayerNorm alone gives the same output at half its length: on
the way to zero nothing changes until the very end, where everything does, and no number of steps is enough. Zero is a
fair baseline at places that are read linearly (`ln1.hook_normalized`, the default; `attn.hook_z`, `mlp.hook_post`,
`attn.hook_v`) or for pixels. At `hook_resid_pre` give the positional mean of other images as baseline, and look at the
gap.

Source: Sundararajan et al. 2017; faithfulness.md 1.2 (own variant for activations; captum is the oracle in tests).
"""

from dataclasses import dataclass
from typing import Any

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from mechvis import edits
from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.question import Question
from mechvis.errors import BadData, FailedCheck, NotFinite, OutOfRange, ShapeMismatch, unknown

BASELINES = ("zero", "image_mean")


@dataclass(frozen=True, kw_only=True)
class LayerIG(Method):
    """Integrated gradients at a site.

    Example:
        >>> mechvis.attribute(model, images, LayerIG(layer=2, steps=64))                        # doctest: +SKIP
        >>> own = mechvis.means(model, others, ["blocks.1.hook_resid_pre"])                      # doctest: +SKIP
        >>> LayerIG(site="blocks.1.hook_resid_pre", baseline=own["blocks.1.hook_resid_pre"])     # doctest: +SKIP
    """

    NAME = "layer_ig"
    CLAIMS = Claims(class_specific=True, signed=True, complete=True)
    SOURCE = "Sundararajan et al. 2017; faithfulness.md 1.2"
    layer: int = 0
    """Block whose attention input (`ln1.hook_normalized`) is looked at, where no site is named; negative: from the
    end."""
    site: str | None = None
    """A site by name, with a token axis or a key axis."""
    steps: int = 64
    """Points on the path."""
    baseline: Any = "zero"
    """Where the path starts: `zero`, `image_mean` (the mean of the image's own patches in the place of each patch; the
    prefix stays), or a tensor that fits the activation, e.g. a positional mean `[token d_model]`."""

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch.

        Raises:
            UnknownSite, OutOfRange, UnknownName: site, layer, steps or baseline.
            ShapeMismatch, NotFinite: of a given baseline.
            BadData: the site has no tokens.
            FailedCheck: the gradient is zero on the whole path.
        """
        if self.steps < 1:
            raise OutOfRange(f"steps={self.steps}: a path needs at least one point.")
        graph = ask.model._for_size(tuple(ask.pixels.shape[2:]))[1]
        name = f"blocks.{ask.layer(self.layer)}.ln1.hook_normalized" if self.site is None else self.site
        site = graph[name]
        axis = "key" if "key" in site.axes else "token"
        if axis not in site.axes:
            raise BadData(f"{site.name} has no token axis (its axes are {' '.join(site.axes)}): no map of patches.")
        scores, captured = ask.captured([site.name])
        value = captured[site.name]
        start = self._start(ask, value, axis, site.axes.index(axis))
        mean, nowhere = torch.zeros_like(value), None
        for step in range(self.steps):
            place = (step + 0.5) / self.steps
            try:
                mean += ask.gradients([site.name], edits=_moved(site.name, start, place))[2][site.name] / self.steps
            except FailedCheck as error:  # flat at this point; an error only if it is so on the whole path
                nowhere = error
        if nowhere is not None and not bool(mean.any()):
            raise nowhere
        names = " ".join("image" if one == "row" else one for one in site.axes)
        found = reduce((value - start) * mean, f"{names} -> image {axis}", "sum")
        base = ask.scores(edits=_moved(site.name, start, 0.0))
        n_prefix = found.shape[1] - ask.n_patches
        return Maps(values=found[:, n_prefix:], prefix=found[:, :n_prefix], total=scores - base)

    def _start(self, ask: Question, value: Tensor, axis: str, place: int) -> Tensor:
        if isinstance(self.baseline, Tensor):
            if not bool(torch.isfinite(self.baseline).all()):
                raise NotFinite("the baseline of LayerIG holds NaN or Inf.")
            try:
                return self.baseline.to(value).expand_as(value)
            except RuntimeError as error:
                raise ShapeMismatch(
                    f"a baseline {list(self.baseline.shape)} does not fit activations {list(value.shape)}."
                ) from error
        if self.baseline not in BASELINES:
            raise unknown("baseline", self.baseline, BASELINES)
        if self.baseline == "zero":
            return torch.zeros_like(value)
        n_prefix = value.shape[place] - ask.n_patches
        prefix, patches = value.split([n_prefix, ask.n_patches], place)
        return torch.cat([prefix, patches.mean(place, keepdim=True).expand_as(patches)], place)


def _moved(site: str, start: Tensor, place: float) -> list[edits.Edit]:
    """Edits that put a site at a place of the path from `start` (0) to its own value (1)."""
    found = [edits.scale(site, place)]
    return [*found, edits.add(site, start, 1 - place)] if bool(start.any()) else found


@dataclass(frozen=True, kw_only=True)
class InputIG(Method):
    """Integrated gradients of pixels, summed over each patch.

    Example:
        >>> mechvis.attribute(model, images, InputIG(steps=64, baseline="image_mean"))          # doctest: +SKIP
    """

    NAME = "input_ig"
    CLAIMS = Claims(class_specific=True, signed=True, complete=True)
    SOURCE = "Sundararajan et al. 2017; faithfulness.md 1.2"
    steps: int = 64
    """Points on the path."""
    baseline: Any = "zero"
    """Where the path starts: `zero` (what preprocessing calls the mean colour), `image_mean` (the image's own mean
    colour), or pixels that fit."""

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch.

        Raises:
            OutOfRange, UnknownName, ShapeMismatch, NotFinite: steps or baseline.
        """
        if self.steps < 1:
            raise OutOfRange(f"steps={self.steps}: a path needs at least one point.")
        start = self._start(ask.pixels)
        mean = torch.zeros_like(ask.pixels)
        for step in range(self.steps):
            mean += pixel_gradients(ask, start.lerp(ask.pixels, (step + 0.5) / self.steps)) / self.steps
        found = over_patches(ask, (ask.pixels - start) * mean)
        return Maps(values=found, total=ask.scores() - ask.scores(start))

    def _start(self, pixels: Tensor) -> Tensor:
        if isinstance(self.baseline, Tensor):
            if not bool(torch.isfinite(self.baseline).all()):
                raise NotFinite("the baseline of InputIG holds NaN or Inf.")
            try:
                return self.baseline.to(pixels).expand_as(pixels)
            except RuntimeError as error:
                raise ShapeMismatch(
                    f"a baseline {list(self.baseline.shape)} does not fit pixels {list(pixels.shape)}."
                ) from error
        if self.baseline not in BASELINES:
            raise unknown("baseline", self.baseline, BASELINES)
        mean = pixels.mean((2, 3), keepdim=True)
        return (torch.zeros_like(mean) if self.baseline == "zero" else mean).expand_as(pixels)


def pixel_gradients(
    ask: Question, pixels: Float[Tensor, "image channel height width"]
) -> Float[Tensor, "image channel height width"]:
    """Gradient of the score with respect to pixels, at given ones."""
    ask.cost.forwards += len(pixels)
    ask.cost.backwards += len(pixels)
    with torch.enable_grad():
        given = pixels.detach().clone().requires_grad_(True)
        score = ask.target.read(ask.model(given)).sum()
        return torch.autograd.grad(score, given)[0]


def over_patches(
    ask: Question, values: Float[Tensor, "image channel height width"], how: str = "sum"
) -> Float[Tensor, "image patch"]:
    """Numbers of pixels per patch: their sum, or their mean."""
    return ask.model.face("logits").to_patches(values, reduce=how).flatten(1)
