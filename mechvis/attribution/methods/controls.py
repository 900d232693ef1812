"""Maps that know nothing of the model: what every method has to beat.

* `RandomMap`: noise that belongs to the image;
* `CentrePrior`: a Gaussian at the centre, since pictures are mostly of what is in the middle;
* `InputNorm`: how far each patch is from the mean colour: what is conspicuous, whatever the model does with it.

They are methods like any other, so that they go through the same measures and gates (faithfulness.md 3.1).
"""

from dataclasses import dataclass

import torch
from einops import repeat

from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.question import Question
from mechvis.removal.operators import patch_means

_NOTHING = Claims(class_specific=False, signed=False, reads="nothing")


@dataclass(frozen=True, kw_only=True)
class RandomMap(Method):
    """Uniform noise, another for each image."""

    NAME = "random"
    CLAIMS = Claims(class_specific=False, signed=False, random=True, reads="nothing")

    def maps(self, ask: Question) -> Maps:
        rows = [torch.rand(ask.n_patches, generator=ask.generator(i, "random map")) for i in range(len(ask.pixels))]
        return Maps(values=torch.stack(rows).to(ask.pixels))


@dataclass(frozen=True, kw_only=True)
class CentrePrior(Method):
    """A Gaussian at the centre of the image."""

    NAME = "centre"
    CLAIMS = _NOTHING
    width: float = 0.25
    """Standard deviation as a share of the side."""

    def maps(self, ask: Question) -> Maps:
        down, across = ask.grid
        lines = [(torch.arange(n) - (n - 1) / 2) / (n * self.width) for n in (down, across)]
        prior = torch.exp(-0.5 * (lines[0][:, None] ** 2 + lines[1] ** 2)).flatten()
        return Maps(values=repeat(prior, "patch -> image patch", image=len(ask.pixels)).to(ask.pixels))


@dataclass(frozen=True, kw_only=True)
class InputNorm(Method):
    """Distance of a patch's pixels from the image's mean colour (root mean square)."""

    NAME = "input_norm"
    CLAIMS = _NOTHING

    def maps(self, ask: Question) -> Maps:
        away = (ask.pixels - ask.pixels.mean((2, 3), keepdim=True)).square().mean(1, keepdim=True)
        return Maps(values=patch_means(away, ask.parts.patch_size).flatten(1).sqrt())
