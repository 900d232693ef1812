"""MACO: a picture with the magnitude spectrum of natural images, whose phase makes an objective large.

1. phase from noise, standardised; image by the inverse transform, standardised, natural colours mixed in, squeezed into
   the range of pixels by a sigmoid;
2. the objective is the mean over random square crops, resized to what the model sees, with some noise. Crops start at
   half the side and shrink linearly to `smallest`; they are placed continuously, so that no patch grid is favoured;
3. NAdam on the phase alone; transparency is the sum over steps of `|d objective / d image|`;
4. several seeds: each result is a local optimum. Then the pictures are judged (`visualisation`).

Source: Fel et al. 2023, methods2.md 19.2 [C]. Ours: crops not below a fifth of the side (the release: a twentieth;
a patch grid sees nothing there), colours of the given natural images and not of ImageNet, edge columns of the phase
kept Hermitian, so that the magnitude is kept everywhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, MechvisError, OutOfRange
from mechvis.keyed import generator_of
from mechvis.progress import track
from mechvis.visualise.objectives import Objective
from mechvis.visualise.spectrum import colour_root, image_of, magnitude_of, odd_at_edges, standard
from mechvis.visualise.visualisation import Visualisation, judged


@dataclass(frozen=True, kw_only=True, eq=False)
class Painted:
    """One optimised picture."""

    image: Float[Tensor, "channel height width"]
    """The picture, 0 to 1."""
    transparency: Float[Tensor, "height width"]
    """Where the objective looked: sum over steps of the gradient's size, 0 to 1."""
    curve: Float[Tensor, " step"]
    """The objective at each step, mean over crops."""


def maco(
    model: Any,
    objective: Objective,
    *,
    natural: Any,
    seeds: Sequence[int] = (0, 1, 2, 3),
    steps: int = 256,
    crops: int = 16,
    size: int | None = None,
    smallest: float = 0.2,
    noise: float = 0.08,
    lr: float = 1.0,
    controls: int = 64,
    progress: bool = True,
) -> Visualisation:
    """Pictures that an objective answers to, and how they compare with natural images.

    Args:
        model: a wrapped vision model.
        objective: see `mechvis.visualise.objectives`.
        natural: an `ImageSet` or pixels, for the spectrum, the colours and the comparison; as many as there are, at
            least 16 (a 99.9 % percentile of few images is their maximum, and the record says so).
        seeds: one picture each.
        steps: of the optimiser.
        crops: per step.
        size: side of the canvas in pixels, even; default: twice the model's image.
        smallest: side of a crop at the last step, as a share of the canvas.
        noise: standard deviation, and half-width of the uniform part, in units of preprocessed pixels.
        lr: of NAdam.
        controls: random directions (or peers) that a picture is compared with.
        progress: show a bar.

    Raises:
        BadData: no preprocessing, too few natural images, not square.
        OutOfRange: a setting out of its range.
        ShapeMismatch, NotFinite, UnknownSite: see the objectives.

    Example:
        >>> found = maco(model, logit(model, "star"), natural=images, seeds=(0, 1))            # doctest: +SKIP
        >>> found.plot()                                                                       # doctest: +SKIP
    """
    if steps < 1 or crops < 1 or not 0 < smallest <= 0.5 or noise < 0 or not lr > 0 or controls < 1 or not seeds:
        raise OutOfRange(
            f"steps={steps}, crops={crops}, controls={controls} and the number of seeds are at least 1, smallest="
            f"{smallest} lies in (0, 0.5], noise={noise} is not negative, lr={lr} is positive."
        )
    pixels = model.inputs(natural)
    height, width = pixels.shape[2:]
    if model.preprocess is None:
        raise BadData("pictures need the model's preprocessing (mean and standard deviation); load it with one.")
    if height != width or len(pixels) < 16:
        raise BadData(f"natural images are square and at least 16; got {len(pixels)} of {height} x {width}.")
    size = 2 * height if size is None else size
    if size < 8 or size % 2:
        raise OutOfRange(f"size={size}: the canvas has an even side of at least 8 pixels.")
    scale = Scale.of(model, pixels)
    shown = scale.raw(pixels)
    magnitude, root = magnitude_of(shown - shown.mean((0, 2, 3), keepdim=True), size), colour_root(shown)
    parts = model._for_size((height, width))[0]

    def score(views: Tensor) -> Tensor:
        run = model.run(views, capture=list(objective.sites), grad=views.requires_grad)
        return objective.read(run, parts)

    painted = []
    with track(len(seeds) * steps, objective.title, " steps", show=progress) as bar:
        for seed in seeds:
            one = paint(
                score,
                magnitude,
                root,
                scale,
                view=height,
                generator=generator_of(seed, 0, "maco"),
                steps=steps,
                crops=crops,
                smallest=smallest,
                noise=noise,
                lr=lr,
                tick=bar.update,
            )
            painted.append(one)
    settings = {"steps": steps, "crops": crops, "size": size, "smallest": smallest, "noise": noise, "lr": lr}
    return judged(model, objective, painted, natural, pixels, list(seeds), scale, settings, controls)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale:
    """Pixels that the model sees, and pictures between 0 and 1."""

    mean: Float[Tensor, "1 channel 1 1"]
    """Of the model's preprocessing."""
    std: Float[Tensor, "1 channel 1 1"]
    """Likewise."""

    @classmethod
    def of(cls, model: Any, like: Tensor) -> "Scale":
        """The model's own."""
        mean, std = (
            torch.tensor(list(v)).to(like)[None, :, None, None] for v in (model.preprocess.mean, model.preprocess.std)
        )
        return cls(mean=mean, std=std)

    def raw(self, pixels: Tensor) -> Tensor:
        """Preprocessed pixels to 0..1."""
        return pixels * self.std + self.mean

    def seen(self, pictures: Tensor) -> Tensor:
        """Pictures of 0..1 to preprocessed pixels."""
        return (pictures - self.mean) / self.std


def paint(
    score: Callable[[Tensor], Float[Tensor, " row"]],
    magnitude: Tensor,
    root: Tensor,
    scale: Scale,
    *,
    view: int,
    generator: torch.Generator,
    steps: int,
    crops: int,
    smallest: float,
    noise: float,
    lr: float,
    tick: Callable[[int], Any] = lambda n: None,
) -> Painted:
    """One picture.

    Args:
        score: views `[row channel height width]` (preprocessed) to what should be large.
        magnitude: of natural images, without their mean.
        root: see `colour_root`.
        scale: between pictures and what the model sees.
        view: side of a view.
        generator: of the phase, crops and noise.
        steps, crops, smallest, noise, lr: see :func:`maco`.
        tick: called once a step.
    """
    phase = torch.randn(magnitude.shape, generator=generator).to(magnitude).requires_grad_(True)
    optimiser = torch.optim.NAdam([phase], lr=lr)
    curve, seen = [], torch.zeros(magnitude.shape[-2], magnitude.shape[-2]).to(magnitude)
    with torch.enable_grad():
        for step in range(steps):
            picture = picture_of(magnitude, phase, root)
            picture.retain_grad()
            side = 0.5 + (smallest - 0.5) * step / max(1, steps - 1)
            views = scale.seen(cropped(picture, view, crops, side, generator))
            drawn = torch.randn(views.shape, generator=generator).to(views)
            drawn = drawn + (2 * torch.rand(views.shape, generator=generator).to(views) - 1)
            found = score(views + noise * drawn).mean()
            optimiser.zero_grad()
            (-found).backward(inputs=[phase, picture])
            optimiser.step()
            seen = seen + picture.grad.abs().sum(0)
            curve.append(float(found.detach()))
            tick(1)
    if not all(map(_finite, curve)):
        raise MechvisError("the objective became NaN or Inf on the way; take a smaller lr=.")
    with torch.no_grad():
        picture = picture_of(magnitude, phase, root)
    low, high = seen.quantile(0.01), seen.quantile(0.99)
    clear = ((seen - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return Painted(image=picture, transparency=clear, curve=torch.tensor(curve))


def picture_of(magnitude: Tensor, phase: Tensor, root: Tensor) -> Float[Tensor, "channel height width"]:
    """Phase to a picture between 0 and 1 with natural colours."""
    image = standard(image_of(magnitude, standard(odd_at_edges(phase))))
    return torch.sigmoid(torch.einsum("cd,dhw->chw", root, image))


def cropped(
    picture: Float[Tensor, "channel height width"], view: int, crops: int, side: float, generator: torch.Generator
) -> Float[Tensor, "row channel view view"]:
    """Random square crops: centre N(.5, .15), side N(side, .05) kept between .05 and 1, resized to `view`."""
    draw = torch.randn(crops, 3, generator=generator).to(picture)
    sides = (side + 0.05 * draw[:, 0]).clamp(0.05, 1)
    centres = (0.5 + 0.15 * draw[:, 1:]).clamp(sides[:, None] / 2, 1 - sides[:, None] / 2)
    theta = picture.new_zeros(crops, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = sides
    theta[:, :, 2] = 2 * centres - 1
    places = F.affine_grid(theta, (crops, len(picture), view, view), align_corners=False)
    return F.grid_sample(picture.expand(crops, -1, -1, -1), places, align_corners=False, padding_mode="reflection")


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
