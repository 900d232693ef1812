"""Triton for the kernel files, or stand-ins that let these files be imported where it is not installed.

Only the `triton.py` of an operation imports this module, and only `dispatch.choose` leads there, so `import mechvis`
does not pay for Triton. The exception to "optional packages are imported inside the function that needs them": a kernel
is decorated, and its annotations are read, when its file is imported.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

try:
    import triton as _triton
    import triton.language as tl
except ImportError:
    _triton, tl = None, SimpleNamespace(constexpr=None)

INTERPRETED = _triton is not None and bool(_triton.knobs.runtime.interpret)
"""Kernels run in the interpreter, on a CPU: TRITON_INTERPRET=1 was set when Triton was imported."""


def jit(kernel: Callable[..., None]) -> Any:
    """A kernel to launch as `kernel[grid](...)`. Unwrapped first: a run-time type checker may have wrapped it already,
    and Triton reads source and globals of what it is given."""
    return kernel if _triton is None else _triton.jit(inspect.unwrap(kernel))


def cdiv(a: int, b: int) -> int:
    """Blocks of `b` that cover `a`."""
    return -(-a // b)


def power_of_two(n: int, least: int = 1, most: int = 2**20) -> int:
    """The least power of two that is not below `n`, kept within two others."""
    return max(least, min(most, 1 << max(0, n - 1).bit_length()))


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, which need not be the tensors' one."""
    return torch.cuda.device_of(tensor)


def products() -> str:
    """How kernels multiply float32 matrices: exactly, unless torch itself was told to use TF32."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@jit
def product(a, b, total, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """`total + a @ b`, added up in float32. The interpreter (Triton 3.9) takes the bits of a bfloat16 for an integer
    here, so it gets float32 instead: products of two bfloat16 are exact in it."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)
