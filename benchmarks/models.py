"""The models of the benchmark, each as everyone wants it: bare, wrapped by mechvis, by transformer_lens, by nnsight,
and rebuilt as ViT-Prisma's own class with the same weights.

Every peer gets a copy: transformer_lens replaces the modules of the model that it is given, and nnsight leaves its own
`forward` on each of them, which would slow the bare model and ours.
"""

import contextlib
import copy
import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import mechvis
from benchmarks.bounds import Shape
from mechvis.models.load import wrap

SIZES: dict[str, dict[str, int]] = {
    "scenes-vit": {
        "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256,
        "image_size": 64, "patch_size": 8, "num_labels": 8,
    },
    "ViT-B/16": {"num_labels": 1000},
    "ViT-L/14": {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
        "patch_size": 14, "num_labels": 1000,
    },
    "toy": {
        "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
        "image_size": 32, "patch_size": 8, "num_labels": 5,
    },
}  # fmt: skip
"""Settings by name; what is not said is that of a ViT-B/16. `toy` is for tests."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a model is, and how precise."""

    device: str = "cpu"
    """`cpu` or `cuda`."""
    precision: str = "fp32"
    """`fp32`, `tf32` (float32 whose products are rounded; CUDA only) or `bf16`."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def item(self) -> int:
        """Bytes of a number."""
        return torch.finfo(self.dtype).bits // 8

    @property
    def label(self) -> str:
        """For titles: nothing where there is no choice."""
        return "" if self.device == "cpu" and self.precision == "fp32" else f", {self.precision}"


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """How float32 products are computed while this lasts: exactly, or (`tf32`) rounded."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@functools.cache
def shape(name: str) -> Shape:
    """The sizes that bounds are counted from."""
    from transformers import ViTConfig

    return Shape.of(ViTConfig(**SIZES[name]))


def bare(name: str, place: Place) -> nn.Module:
    """The Hugging Face model: random weights, but for the bundled classifier (random too where it is missing)."""
    return _bare(name, place.device, place.dtype)


@functools.lru_cache(maxsize=2)
def _bare(name: str, device: str, dtype: torch.dtype) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    from mechvis.models import zoo

    model = None
    if name == "scenes-vit":
        with contextlib.suppress(OSError, mechvis.errors.MechvisError):
            model = ViTForImageClassification.from_pretrained(zoo.path(name))
    if model is None:
        torch.manual_seed(0)
        model = ViTForImageClassification(ViTConfig(**SIZES[name]))
    if Shape.of(model.config) != shape(name):
        raise RuntimeError(f"{name} has the shape {Shape.of(model.config)}; the benchmark counts {shape(name)}.")
    return model.eval().to(device, dtype)


def hooked(name: str, place: Place) -> Any:
    """Wrapped by mechvis, around the bare model itself."""
    return _hooked(name, place.device, place.dtype)


@functools.lru_cache(maxsize=2)
def _hooked(name: str, device: str, dtype: torch.dtype) -> Any:
    return wrap(_bare(name, device, dtype))


def bridge(name: str, place: Place) -> Any:
    """transformer_lens' wrapper, around a copy."""
    return _bridge(name, place.device, place.dtype)


@functools.lru_cache(maxsize=2)
def _bridge(name: str, device: str, dtype: torch.dtype) -> Any:
    return tl_bridge(copy.deepcopy(_bare(name, device, dtype)))


def tl_bridge(model: nn.Module) -> Any:
    """transformer_lens' wrapper around this very model, which it changes."""
    import huggingface_hub
    from transformer_lens.model_bridge import TransformerBridge

    first = next(model.parameters())
    # It recognises a model by this entry, which a model made in memory does not have.
    model.config.architectures = [type(model).__name__]
    # It asks the hub for files that are not needed here, and again and again where there is no network.
    with mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True):
        return TransformerBridge.boot_transformers(
            "benchmark", hf_model=model, device=str(first.device), dtype=first.dtype
        )


def nnsight(name: str, place: Place) -> Any:
    """nnsight's wrapper, around a copy, which knows how images are joined to batches."""
    return _nnsight(name, place.device, place.dtype)


@functools.lru_cache(maxsize=2)
def _nnsight(name: str, device: str, dtype: torch.dtype) -> Any:
    from nnsight import NNsight

    class Images(NNsight):
        """Tells nnsight how batches of images are joined, which it cannot know."""

        def _batch_size(self, *inputs: Any, **more: Any) -> int:
            return len(inputs[0]) if inputs else 0

        def _batch(self, invokes: list, fn: Any) -> tuple:
            return ((torch.cat([inputs[0] for inputs, _ in invokes]),), {}) if invokes else ((), {})

    return Images(copy.deepcopy(_bare(name, device, dtype)))


def has_prisma() -> bool:
    """ViT-Prisma can be imported: it needs timm, and so torchvision, which the base environment does not have."""
    return importlib.util.find_spec("vit_prisma") is not None


def prisma(name: str, place: Place) -> Any:
    """ViT-Prisma's model with the same weights."""
    return _prisma(name, place.device, place.dtype)


@functools.lru_cache(maxsize=2)
def _prisma(name: str, device: str, dtype: torch.dtype) -> Any:
    from benchmarks.prisma import rebuilt

    return rebuilt(_bare(name, device, dtype), _hooked(name, device, dtype)).to(device, dtype)


def pixels(name: str, place: Place, n: int, seed: int = 0) -> Tensor:
    """Random pixels `[image channel height width]`, the same for everyone."""
    side = SIZES[name].get("image_size", 224)
    drawn = torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1000 * seed + n))
    return drawn.to(place.device, place.dtype)


def forget() -> None:
    """Drop all models."""
    for cached in (_bare, _hooked, _bridge, _nnsight, _prisma):
        cached.cache_clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
