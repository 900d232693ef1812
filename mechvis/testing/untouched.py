"""Proof that a model leaves as it came: hooks, flags, gradients, weights, configuration, random state."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

IGNORED: tuple[str, ...] = ()
"""Left out of every comparison: for a process that runs a tool which leaves traces of its own."""


@contextlib.contextmanager
def assert_untouched(model: Any, *, ignore: tuple[str, ...] = ()) -> Iterator[None]:
    """Fail if anything about the model, or the process, differs afterwards: also after an exception inside.

    Compared: hook tables of every module (ours and torch's global ones), attributes added to modules, train flags,
    requires_grad, `.grad`, dtype, device, identity, version and value of every parameter and buffer, configuration
    (attention implementation included), grad mode, default dtype, and the random state of torch, numpy and Python.

    Args:
        model: a bare module, a `HookedViT` (its hook points and the borrowed module), or a `HookedCLIP`.
        ignore: parts of the comparison to leave out, by how their names begin, e.g. `("rng",)`.

    Raises:
        AssertionError: lists what changed.

    Example:
        >>> with assert_untouched(torch.nn.Linear(2, 2)):
        ...     pass
    """
    before = _snapshot(model)
    try:
        yield
    finally:
        after = _snapshot(model)
        changed = [
            name
            for name in before | after
            if not name.startswith((*IGNORED, *ignore)) and not _same(before.get(name), after.get(name))
        ]
        if changed:
            shown = "\n  ".join(
                f"{name}: {_brief(before.get(name))} -> {_brief(after.get(name))}" for name in changed[:12]
            )
            raise AssertionError(f"the model was not left as found; {len(changed)} differences:\n  {shown}")


def assert_close(actual: Tensor, expected: Tensor, tolerance: float | int, what: str = "tensors") -> None:
    """Fail if the largest difference exceeds `tolerance` times the largest expected value (at least 1e-30).

    Args:
        actual: what was computed.
        expected: what it should be; same shape and dtype.
        tolerance: relative to the largest expected value; 0 asks for equality.
        what: for the message.
    """
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise AssertionError(
            f"{what}: {actual.dtype} {list(actual.shape)}, expected {expected.dtype} {list(expected.shape)}."
        )
    actual, expected = actual.detach(), expected.detach()
    if not (torch.isfinite(actual).all() and torch.isfinite(expected).all()):
        raise AssertionError(f"{what}: NaN or Inf in the comparison.")
    worst = float((actual - expected).abs().max()) if actual.numel() else 0.0
    size = max(float(expected.abs().max()) if expected.numel() else 0.0, 1e-30)
    if worst > tolerance * size:
        raise AssertionError(
            f"{what}: largest difference {worst:.3e}, {worst / size:.3e} of the largest expected value "
            f"{size:.3e}; allowed {tolerance:.0e}."
        )


def _roots(model: Any) -> dict[str, nn.Module]:
    """The modules to look at: the module itself, the one it borrows, the towers of a CLIP."""
    found = {"model": model} if isinstance(model, nn.Module) else {}
    for name in ("bare", "vision", "text"):
        child = getattr(model, name, None)
        if isinstance(child, nn.Module) and (name == "bare" or "model" not in found):
            found[name] = child
    return found


def _snapshot(model: Any) -> dict[str, Any]:
    state: dict[str, Any] = {
        "rng torch": torch.get_rng_state(),
        "rng numpy": repr(np.random.get_state()),  # noqa: NPY002  the legacy state is what users share
        "rng python": random.getstate(),
        "mode grad": torch.is_grad_enabled(),
        "mode default dtype": torch.get_default_dtype(),
        "hooks global": [
            list(table)
            for name, table in sorted(vars(torch_module).items())
            if name.startswith("_global") and name.endswith("hooks")
        ],
    }
    for root, module in _roots(model).items():
        for path, part in module.named_modules():
            state |= _of_module(f"{root}.{path}", part)
        for kind, items in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
            for path, tensor in items:
                state[f"{kind} {root}.{path}"] = (
                    id(tensor),
                    tensor._version,
                    tensor.requires_grad,
                    str(tensor.dtype),
                    str(tensor.device),
                    tensor.data_ptr(),
                )
                state[f"value {root}.{path}"] = tensor.detach().clone()
                state[f"grad {root}.{path}"] = None if tensor.grad is None else tensor.grad.detach().clone()
    return state


def _of_module(path: str, module: nn.Module) -> dict[str, Any]:
    own = vars(module)
    tables = {
        name: [(key, id(hook)) for key, hook in table.items()]
        for name, table in own.items()
        if "hook" in name and isinstance(table, dict)
    }
    state: dict[str, Any] = {
        f"hooks {path}": tables,
        f"training {path}": module.training,
        f"attributes {path}": (id(module), type(module), sorted(own), id(own.get("forward"))),
    }
    if "context_level" in own:
        state[f"hooks level {path}"] = (own["context_level"], own.get("is_caching"))
    if hasattr(own.get("config"), "to_dict"):
        config = own["config"]
        state[f"config {path}"] = (
            repr(sorted(config.to_dict().items(), key=repr)),
            getattr(config, "_attn_implementation", None),
        )
    return state


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same_kind = one.shape == other.shape and one.dtype == other.dtype
        return (
            same_kind and torch.equal(one.nan_to_num(), other.nan_to_num())
            if one.is_floating_point()
            else same_kind and torch.equal(one, other)
        )
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return False
    return one == other


def _brief(value: Any) -> str:
    text = f"tensor{list(value.shape)}" if isinstance(value, Tensor) else repr(value)
    return text if len(text) < 90 else text[:87] + "..."
