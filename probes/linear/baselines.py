"""What a probe must beat: the commonest answer, the raw pixels, and the same architecture with random weights.

Accuracy at a layer is evidence about the *trained* model only as far as it exceeds these. An untrained transformer is a
random feature map of the image and is often far above chance; raw pixels know colours and places.

:func:`random_copy` never touches the user's model: the bare module is copied deeply, the copy gets new weights and is
wrapped again.

* `how="init"` (**X**, default): the family's own initialisation (`_init_weights` of Hugging Face models,
  `reset_parameters` elsewhere). A matrix that neither reaches is shuffled.
* `how="shuffle"`: the entries of every matrix in a random order: its distribution stays, what it computes goes. For any
  architecture, and a stronger baseline: weight sizes are those of the trained model.
"""

import copy
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from mechvis.errors import BadData, FailedCheck, OutOfRange, unknown
from mechvis.store.forward import reader

PIXEL_SIDE = 32


def random_copy(model: Any, *, seed: int = 0, how: Literal["init", "shuffle"] = "init") -> Any:
    """The same architecture with random weights, wrapped; the model itself and torch's generator stay as they are.

    Args:
        model: a wrapped image tower.
        seed: of the new weights.
        how: see the module.

    Returns:
        A wrapped model with the same sites. A tower of a CLIP model comes back as a tower, without a zero-shot head.

    Raises:
        UnknownName: no such way.
        FailedCheck: a matrix kept its trained values.

    Example:
        >>> other = random_copy(model)                                                            # doctest: +SKIP
        >>> features = collect(other, images)                                                      # doctest: +SKIP
    """
    from mechvis.models.load import wrap

    if how not in ("init", "shuffle"):
        raise unknown("way to randomise", how, ("init", "shuffle"))
    bare = copy.deepcopy(model.bare)
    before = {name: parameter.detach().clone() for name, parameter in bare.named_parameters()}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        if how == "init":
            _initialise(bare)
        for name, parameter in bare.named_parameters():
            if parameter.ndim > 1 and torch.equal(parameter, before[name]):
                parameter.copy_(
                    parameter.flatten()[torch.randperm(parameter.numel(), device=parameter.device)].view_as(parameter)
                )
    kept = [
        name
        for name, parameter in bare.named_parameters()
        if parameter.ndim > 1 and torch.equal(parameter, before[name]) and parameter.min() != parameter.max()
    ]
    if kept:
        raise FailedCheck(f"{len(kept)} matrices of the random copy kept their trained values, e.g. {kept[0]}.")
    # A tower gets its " vision" back from the model that it is wrapped in.
    title = f"random {(model.title or 'copy').removesuffix(' vision')}"
    wrapped = wrap(bare.eval(), preprocess=model.preprocess, title=title, family=model.family)
    return getattr(wrapped, "vision", wrapped)


def _initialise(bare: nn.Module) -> None:
    """The family's own initialisation, module by module."""
    own = getattr(bare, "_init_weights", None)
    for module in bare.modules():
        # Hugging Face marks what was loaded, and its initialisers then leave it alone.
        for thing in (module, *module.parameters(recurse=False), *module.buffers(recurse=False)):
            if "_is_hf_initialized" in getattr(thing, "__dict__", {}):
                del thing._is_hf_initialized
    for module in bare.modules():
        if own is not None:
            own(module)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()


def majority_accuracy(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Whether the commonest training class is right, per test image: 0 or 1 `[image]`.

    Example:
        >>> majority_accuracy(np.array([0, 0, 1]), np.array([0, 1])).tolist()
        [1.0, 0.0]
    """
    values, counts = np.unique(train, return_counts=True)
    return (np.asarray(test) == values[counts.argmax()]).astype(np.float64)


def pixel_features(
    model: Any, images: Any, *, side: int = PIXEL_SIDE, batch: int = 256
) -> Float[np.ndarray, "image d"]:
    """Raw pixels as the model sees them (resized, cropped, scaled), averaged to at most `side` pixels a side.

    Args:
        model: a wrapped image tower, for its preprocessing.
        images: an `ImageSet`, or pixels `[image channel height width]`.
        side: largest side (**X**); more columns than images make the probe slow, not better.
        batch: images at once.

    Raises:
        OutOfRange: a side below 1.
        BadData: no image.

    Example:
        >>> pixel_features(model, images).shape                                                    # doctest: +SKIP
        (256, 3072)
    """
    if side < 1:
        raise OutOfRange(f"side={side}: at least 1 pixel.")
    if not len(images):
        raise BadData("there are no images.")
    read, found = reader(model, images), []
    for start in range(0, len(images), batch):
        pixels = read(np.arange(start, min(start + batch, len(images)))).float()
        height, width = pixels.shape[2:]
        if max(height, width) > side:
            share = side / max(height, width)
            size = (max(1, round(height * share)), max(1, round(width * share)))
            pixels = nn.functional.adaptive_avg_pool2d(pixels, size)
        found.append(pixels.flatten(1).cpu().numpy())
    return np.concatenate(found)
