"""The exact map: what every pixel adds to a logit, and what the special tokens add.

A student with constant factors is linear in its inputs: the six channels of the image and the special tokens. So

    logit = sum over pixels and channels of W(x) x  +  sum over special tokens of W'(x) token

holds to rounding (1e-5 in float32, 1e-10 in float64; methods.md 11), and each term is a gradient times its input,
from one backward pass. The map is the sum over the six channels of a pixel. What goes to special tokens (class token,
positions) is no part of the image and is given apart: a map is as complete as this share is small.
"""

from dataclasses import dataclass
from typing import Any

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from mechvis.axes import Pixels
from mechvis.errors import BadData, FailedCheck, OutOfRange, ShapeMismatch
from probes.bcos.student import BcosViT
from probes.bcos.units import explaining

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Largest difference of the sum from the logit, relative to the largest sum of absolute terms."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Contributions:
    """Exact contributions to one logit per image."""

    pixels: Float[Tensor, "image height width"]
    """What each pixel adds, in the unit of the logit."""
    special: Float[Tensor, " image"]
    """What class token and positions add."""
    logits: Float[Tensor, " image"]
    """The logit."""
    classes: tuple[int, ...]
    """Whose logit, per image."""
    patch: tuple[int, int]
    """(height, width) of a patch."""
    error: float
    """Largest difference of the sum from the logit, relative to the largest sum of absolute terms."""

    @property
    def patches(self) -> Float[Tensor, "image down across"]:
        """Sums over patches."""
        height, width = self.patch
        return reduce(self.pixels, "i (h a) (w b) -> i h w", "sum", a=height, b=width)

    @property
    def share_of_special(self) -> Tensor:
        """Share of the absolute sums that special tokens have, per image `[image]`."""
        own = self.special.abs()
        return own / (own + self.pixels.sum((1, 2)).abs()).clamp(min=1e-30)


def contributions(
    student: BcosViT, pixels: Pixels, of: int | Tensor | None = None, *, batch_size: int = 64
) -> Contributions:
    """The exact contribution map of one logit per image.

    Args:
        student: a B-cos ViT, bare (of a wrapped one: `model.bare`).
        pixels: as the student takes them `[image channel height width]`.
        of: a class for all images, one per image, or None for the class that the student says.
        batch_size: images per backward pass.

    Raises:
        BadData: not a B-cos student, or no image.
        ShapeMismatch: pixels or classes that do not fit.
        OutOfRange: a class that does not exist.
        FailedCheck: the sum is not the logit, to rounding.

    Example:
        >>> found = contributions(student, pixels)                                             # doctest: +SKIP
        >>> found.pixels.sum((1, 2)) + found.special - found.logits                            # doctest: +SKIP
        tensor([0., 0., ...])
    """
    if not isinstance(student, BcosViT):
        raise BadData(f"contributions are exact for B-cos students only, got {type(student).__name__}; see convert().")
    shape = student.shape
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, *shape.image) or not len(pixels):
        raise ShapeMismatch(
            f"this student takes pixels [image 3 {shape.image[0]} {shape.image[1]}], got {list(pixels.shape)}."
        )
    chosen = _classes(student, pixels, of)
    maps, specials, logits = [], [], []
    for start in range(0, len(pixels), batch_size):
        part, own = pixels[start : start + batch_size], chosen[start : start + batch_size]
        with torch.enable_grad(), explaining():
            six = student.six(part.detach()).detach().requires_grad_(True)
            # One copy per image: special tokens contribute to each image on its own.
            copies = student.special.detach().expand(len(part), -1, -1).clone().requires_grad_(True)
            x = _tokens(student, six, copies)
            for block in student.blocks:
                x = block(x)
            said = student.head(student.pooled(x))[torch.arange(len(part)), own]
            six_gradient, special_gradient = torch.autograd.grad(said.sum(), [six, copies])
        maps.append((six_gradient * six).sum(1).detach())
        specials.append((special_gradient * copies).sum((1, 2)).detach())
        logits.append(said.detach())
    found, rest, said = torch.cat(maps), torch.cat(specials), torch.cat(logits)
    size = torch.maximum(said.abs().max(), torch.maximum(found.abs().sum((1, 2)).max(), rest.abs().max()))
    error = float((found.sum((1, 2)) + rest - said).abs().max() / size.clamp(min=1e-30))
    allowed = TOLERANCE.get(said.dtype, 1e-2)
    if not error <= allowed:
        raise FailedCheck(
            f"the contributions do not add up to the logit: {error:.1e} of the largest, allowed {allowed:.0e}. A piece "
            "of this student is not dynamic linear (a module exchanged?)."
        )
    return Contributions(
        pixels=found, special=rest, logits=said, classes=tuple(chosen.tolist()), patch=shape.patch, error=error
    )


def _tokens(student: BcosViT, six: Tensor, special: Tensor) -> Tensor:
    """As `BcosViT.tokens`, with special tokens per image."""
    n_prefix = len(student.shape.prefix)
    bare = student.tokens(six, torch.zeros_like(student.special))[:, n_prefix:]
    return torch.cat([special[:, :n_prefix], bare + special[:, n_prefix:]], dim=1)


def _classes(student: BcosViT, pixels: Tensor, of: Any) -> Tensor:
    n = student.shape.n_classes
    if of is None:
        with torch.no_grad():
            return torch.cat([student(part).argmax(1) for part in pixels.split(64)])
    chosen = torch.as_tensor(of, device=pixels.device)
    if chosen.is_floating_point() or chosen.dtype == torch.bool or chosen.ndim > 1:
        raise ShapeMismatch(f"of= is a class index or one per image, got {chosen.dtype} {list(chosen.shape)}.")
    chosen = chosen.expand(len(pixels)) if chosen.ndim == 0 else chosen
    if len(chosen) != len(pixels):
        raise ShapeMismatch(f"{len(pixels)} images and {len(chosen)} classes.")
    if chosen.min() < 0 or chosen.max() >= n:
        raise OutOfRange(f"class {int(chosen.max())} does not exist: the student has {n}.")
    return chosen
