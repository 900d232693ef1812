"""The one rule that picks between an operation's plain twin and its Triton kernel.

1. `MECHVIS_KERNELS=naive` or `MECHVIS_KERNELS=triton` in the environment decides for every operation. What is forced
   but impossible is an error, never a silent fall back.
2. Otherwise: Triton if all tensors of the call are on one CUDA device, their type is one that the kernels have, and
   the package triton is installed; else the plain twin.

`TRITON_INTERPRET=1`, set before Triton is first imported, lets `MECHVIS_KERNELS=triton` work on a CPU (slow).
"""

import functools
import importlib.util
import os
from typing import Literal

import torch
from torch import Tensor

from mechvis.errors import MissingPackage, MixedDevices, unknown

VARIABLE = "MECHVIS_KERNELS"
"""Environment variable that forces either twin."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Types of the kernels; they add up in float32, so float64 stays with the plain twins."""


def choose(operation: str, *tensors: Tensor | None) -> Literal["naive", "triton"]:
    """Which twin runs a call.

    Args:
        operation: name for messages.
        tensors: the floating-point tensors of the call; None is passed over.

    Raises:
        UnknownName: the variable holds another word.
        MissingPackage: Triton is forced, but not installed.
        MixedDevices: Triton is forced, but these tensors are not for it.

    Example:
        >>> choose("patch_rows", torch.zeros(2))
        'naive'
    """
    forced = os.environ.get(VARIABLE, "").strip().lower()
    if forced == "naive":
        return "naive"
    if forced not in ("", "triton"):
        raise unknown(f"value of {VARIABLE}", forced, ("naive", "triton"))
    found = [tensor for tensor in tensors if tensor is not None]
    devices, dtypes = {tensor.device for tensor in found}, {tensor.dtype for tensor in found}
    fits = len(devices) == 1 and dtypes <= set(DTYPES)
    if not forced:
        return "triton" if fits and next(iter(devices)).type == "cuda" and installed() else "naive"
    asked = f"{VARIABLE}=triton asks {operation} for its Triton kernel"
    if not installed():
        raise MissingPackage(
            f"{asked}, but the package triton is not installed: pip install 'mechvis[kernels]'. "
            f"Without {VARIABLE} the plain twin runs."
        )
    if not fits:
        raise MixedDevices(
            f"{asked}, but the tensors are {_words(dtypes)} on {_words(devices)}. The kernels take "
            f"{_words(DTYPES)} on one device. Without {VARIABLE} the plain twin runs."
        )
    if next(iter(devices)).type != "cuda" and not _interpreted():
        raise MixedDevices(
            f"{asked}, but the tensors are on {_words(devices)}. Move them to CUDA, unset {VARIABLE} for the plain "
            "twin, or set TRITON_INTERPRET=1 before Python starts, to interpret the kernel on a CPU (slow, for tests)."
        )
    return "triton"


@functools.cache
def installed() -> bool:
    """The package triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def _interpreted() -> bool:
    from mechvis.kernels.language import INTERPRETED

    return INTERPRETED


def _words(things) -> str:
    return ", ".join(sorted(str(thing).removeprefix("torch.") for thing in things))
