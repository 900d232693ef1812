"""Preprocessing that comes as a chain of steps on an image (timm, open_clip, torchvision), as a `Preprocess`.

The library's own chain makes the pixels, so they are bit for bit what the library would make. Added is what a chain
does not tell by itself:

1. the size of its output, found by trying it on two images of different shapes;
2. mean and standard deviation, read from its Normalize step;
3. the way of a mask: the same steps with nearest neighbour and without Normalize, so that it stays aligned;
4. the chain for another output size, by the library's own factory or by scaling the steps.

No library is imported here before a chain of it is given.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mechvis.data.preprocess import Preprocess
from mechvis.errors import BadImages

RESIZES = ("Resize", "ResizeKeepRatio")
"""Steps with `size` and `interpolation`: the image, or its shorter or longer side, becomes `size`."""
CROPS = ("CenterCrop", "CenterCropOrPad")
"""Steps with `size`: exactly these pixels come out."""
SAME_FOR_MASKS = (*CROPS, "TrimBorder", "ToTensor", "PILToTensor", "MaybePILToTensor", "ToImage", "ToPureTensor")
RGB_OR_TYPE = ("MaybeConvertMode", "ConvertImageDtype", "ToDtype", "_convert_to_rgb", "_convert_image_to_rgb")
"""Steps that move no pixel."""


def of_transform(
    transform: Any, *, source: str = "given", remake: Callable[[int, int], Any] | None = None
) -> Preprocess:
    """Wrap a chain of image steps: a torchvision `Compose` or preset, or one of timm or open_clip.

    Args:
        transform: takes a PIL image, returns floats `[channel height width]`.
        source: where it came from.
        remake: (height, width) -> the chain for this output size, where the library has a factory for it; None: the
            steps are scaled.

    Returns:
        Preprocess: its pixels are those of the chain, bit for bit.

    Raises:
        BadImages: the chain draws random numbers, does not end with floats, or makes images of different sizes.

    Example:
        >>> from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor             # doctest: +SKIP
        >>> of_transform(Compose([Resize(40), CenterCrop(32), ToTensor()])).height               # doctest: +SKIP
        32
    """
    steps = steps_of(transform)
    for step in steps:
        if _is_random(step):
            raise BadImages(f"{_name(step)} draws random numbers; take the transform for evaluation, not for training.")
    chain = Chain(transform=transform, steps=tuple(steps), remake=remake)
    height, width = _output_size(chain)
    normalise = [step for step in steps if _is(step, "Normalize")]
    if len(normalise) > 1:
        raise BadImages("the transform normalises twice, so its mean and standard deviation are unclear.")
    mean, std = (_floats(normalise[0].mean), _floats(normalise[0].std)) if normalise else ((0.0,) * 3, (1.0,) * 3)
    return Preprocess(
        processor=chain,
        height=height,
        width=width,
        mean=mean,
        std=std,
        source=source,
        settings={"steps": [_description(step) for step in steps]},
    )


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A chain of steps, called as `Preprocess` calls an image processor."""

    transform: Any
    """Makes the pixels."""
    steps: tuple[Any, ...]
    """What it consists of: for masks and other sizes."""
    remake: Callable[[int, int], Any] | None = None
    """The library's factory for another output size."""

    def __call__(
        self, images: Sequence[np.ndarray], *, do_normalize: bool = True, **settings: Any
    ) -> dict[str, Tensor]:
        """Pixels of uint8 images; with `do_normalize=False` those of masks (0 and 255) by nearest neighbour."""
        one = self.transform if do_normalize else _mask_transform(self.steps)
        done = [one(Image.fromarray(image)) for image in images]
        pixels = torch.stack([x.as_subclass(Tensor) for x in done])
        return {"pixel_values": pixels if do_normalize else (pixels > 0).to(torch.float32) * 255}

    def at_size(self, height: int, width: int, old: Preprocess) -> Preprocess:
        """The chain for another output size.

        Raises:
            BadImages: it has a step whose size cannot be changed.
        """
        if self.remake is not None:
            new, remake = self.remake(height, width), self.remake
        else:
            new, remake = _Steps(_scaled(self.steps, (old.height, old.width), (height, width))), None
        made = of_transform(new, source=old.source, remake=remake)
        if (made.height, made.width) != (height, width):
            raise BadImages(
                f"this preprocessing cannot be changed to {height} x {width} pixels: it then makes {made.height} x "
                f"{made.width}. Pass preprocess= for that size."
            )
        return made


class _Steps:
    """Steps one after the other."""

    def __init__(self, steps: Sequence[Any]):
        self.transforms = list(steps)

    def __call__(self, image: Any) -> Any:
        for step in self.transforms:
            image = step(image)
        return image


def steps_of(transform: Any) -> list[Any]:
    """The single steps of a chain, nested chains and torchvision's classification presets taken apart."""
    if hasattr(transform, "transforms"):
        return [step for part in transform.transforms for step in steps_of(part)]
    if _is(transform, "ImageClassification"):
        from torchvision import transforms

        resize = {"interpolation": transform.interpolation, "antialias": transform.antialias}
        return [
            transforms.Resize(transform.resize_size, **resize),
            transforms.CenterCrop(transform.crop_size),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float),
            transforms.Normalize(transform.mean, transform.std),
        ]
    return [transform]


def _mask_transform(steps: Sequence[Any]) -> _Steps:
    """The steps with nearest neighbour, padding of nothing and without Normalize."""
    done = []
    for step in steps:
        if _is(step, "Normalize"):
            continue
        if _is(step, *RESIZES):
            from torchvision.transforms import InterpolationMode

            step = copy.deepcopy(step)
            # For tensors `nearest` samples off-centre; `nearest exact` is PIL's nearest.
            step.interpolation = InterpolationMode.NEAREST_EXACT
        elif not _is(step, *SAME_FOR_MASKS, *RGB_OR_TYPE):
            raise BadImages(
                f"how the step {_name(step)} of this preprocessing moves a mask is not known; known are "
                f"{', '.join((*RESIZES, *SAME_FOR_MASKS, *RGB_OR_TYPE))}. Give masks that need no preprocessing: masks "
                "of the preprocessed images."
            )
        elif getattr(step, "fill", 0):
            step = copy.deepcopy(step)
            step.fill = 0
        done.append(step)
    return _Steps(done)


def _scaled(steps: Sequence[Any], old: tuple[int, int], new: tuple[int, int]) -> list[Any]:
    """Steps for another output size: crops become it, what is resized before a crop grows in proportion."""
    last = max((i for i, step in enumerate(steps) if _is(step, *CROPS)), default=-1)
    done = []
    for index, step in enumerate(steps):
        if _is(step, *CROPS, *RESIZES):
            step = copy.deepcopy(step)
            if _is(step, *CROPS) or index > last:
                step.size = new
            elif isinstance(step.size, int) or len(step.size) == 1:
                side = step.size if isinstance(step.size, int) else step.size[0]
                step.size = [round(side * max(new[0] / old[0], new[1] / old[1]))]
            else:
                step.size = [round(side * n / o) for side, n, o in zip(step.size, new, old, strict=True)]
        done.append(step)
    return done


def _output_size(chain: Chain) -> tuple[int, int]:
    """(height, width) of what comes out, whatever goes in."""
    sizes = set()
    for shape in ((61, 47, 3), (47, 61, 3)):
        image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        one, again = (chain.transform(Image.fromarray(image)) for _ in range(2))
        if not isinstance(one, Tensor) or not one.is_floating_point() or one.ndim != 3:
            kind = f"{one.dtype} {list(one.shape)}" if isinstance(one, Tensor) else type(one).__name__
            raise BadImages(f"the transform ends with {kind}, not with floats [channel height width].")
        if not torch.equal(one, again):
            raise BadImages("the transform draws random numbers; take the one for evaluation, not for training.")
        sizes.add(tuple(one.shape[1:]))
    if len(sizes) > 1:
        raise BadImages(
            f"the transform makes images of different sizes, such as {sorted(sizes)}; models take one size. Crop after "
            "resizing, or resize to (height, width)."
        )
    return sizes.pop()


def _is(step: Any, *names: str) -> bool:
    """Is a step, or a class it inherits from, called one of these? Functions go by their own name."""
    own = getattr(step, "__name__", "")
    return own in names or any(cls.__name__ in names for cls in type(step).__mro__)


def _is_random(step: Any) -> bool:
    chances = (value for name, value in getattr(step, "__dict__", {}).items() if name.endswith("_prob"))
    return any(cls.__name__.startswith("Random") for cls in type(step).__mro__) or any(chances)


def _name(step: Any) -> str:
    return getattr(step, "__name__", type(step).__name__)


def _description(step: Any) -> str:
    """Name and settings, the same in every process."""
    settings = {} if hasattr(step, "__name__") else vars(step)
    shown = ", ".join(f"{k}={v}" for k, v in sorted(settings.items()) if not k.startswith("_") and k != "training")
    return f"{_name(step)}({shown})"


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
