"""The one entrance: a bundled name, a folder, a hub id or a module in memory becomes a wrapped model.

1. Find the family that knows the architecture and let it map the module tree to parts.
2. Attach the image preprocessing that belongs to the weights.
3. Check parity: wrapped and bare model on the same random batch. The difference is kept on the model and printed;
   a model that does not agree is refused.
"""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mechvis.data.preprocess import Preprocess
from mechvis.errors import BadData, DefaultPreprocessing, ParityError, UnsupportedModel, unknown
from mechvis.models import transformers as hugging_face
from mechvis.models.parts import TowerParts

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest difference allowed at load, relative to the largest output."""


@dataclass(frozen=True)
class Parity:
    """How far the wrapped model is from the bare one, on a random batch of two."""

    plain: float
    """Largest difference of outputs without anything hooked, relative to the largest output."""
    hooked: float
    """The same with every site captured (attention computed explicitly)."""
    dtype: str
    """Type of the parameters."""

    def __str__(self) -> str:
        plain = "bitwise equal" if self.plain == 0 else f"max difference {self.plain:.1e} of the largest output"
        return f"parity with the bare model ({self.dtype}): {plain}; with all sites captured {self.hooked:.1e}"


def load(
    model: str | Path | nn.Module,
    *,
    preprocess: Any = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: Any = None,
) -> Any:
    """A wrapped model, ready for runs and sweeps.

    Args:
        model: a bundled name (`scenes-vit`, `scenes-clip`), `hf:<folder or hub id>` or a path to a folder, or an
            `nn.Module` in memory (also fine-tuned or LoRA-wrapped). It must be in eval mode.
        preprocess: a `Preprocess` or a Hugging Face image processor, where the model brings none.
        device: where to put a model that is read from disk.
        dtype: type for a model that is read from disk.
        tokenizer: for two-tower models in memory.

    Returns:
        HookedViT or HookedCLIP.

    Raises:
        UnknownName: not a bundled name, folder, or known prefix.
        UnsupportedModel: no family knows the architecture.
        ParityError: the wrapped model does not reproduce the bare one.

    Example:
        >>> import mechvis
        >>> model = mechvis.load("scenes-vit")
        >>> model.cfg.n_heads
        4
    """
    title = ""
    if not isinstance(model, nn.Module):
        title = str(model)
        model, processor, read_tokenizer = hugging_face.read_folder(_place(title))
        if device is not None or dtype is not None:
            model = model.to(device=device, dtype=dtype)
        preprocess = preprocess if preprocess is not None else processor
        tokenizer = tokenizer if tokenizer is not None else read_tokenizer
        given = "folder"
    else:
        given = "given"
        if device is not None or dtype is not None:
            raise BadData(
                "device= and dtype= are for models read from disk; move your module yourself (it is left as found)."
            )
    return wrap(model, preprocess=preprocess, title=title, source=given, tokenizer=tokenizer)


def wrap(
    bare: nn.Module,
    *,
    preprocess: Any = None,
    title: str = "",
    source: str = "given",
    tokenizer: Any = None,
    family: Callable[[nn.Module], TowerParts] | None = None,
) -> Any:
    """Wrap a module that is in memory; `family` overrides the search for a map."""
    from mechvis.hooked import HookedViT

    inner = bare.get_base_model() if hasattr(bare, "get_base_model") else bare
    if family is None and hugging_face.is_clip(inner):
        from mechvis.clip import HookedCLIP

        clip = HookedCLIP(
            bare,
            vision=hugging_face.clip_vision(inner),
            text=hugging_face.clip_text(inner),
            preprocess=_preprocess(preprocess, hugging_face.clip_vision(inner), inner, source),
            tokenizer=tokenizer,
            name=title,
        )
        for tower in (clip.vision, clip.text):
            check_parity(tower)
        return clip
    family = family or _family(inner)
    parts = family(inner)
    found = _preprocess(preprocess, parts, inner, source) if parts.modality == "image" else None
    model = HookedViT(bare, parts, preprocess=found, name=title)
    model.__dict__["family"] = family
    check_parity(model)
    logger.info("%s: %s", title or parts.family, model.parity)
    return model


def _place(name: str) -> str:
    from mechvis.models import zoo

    if name in zoo.names():
        return str(zoo.path(name))
    if name.startswith("hf:"):
        return name.removeprefix("hf:")
    if Path(name).is_dir():
        return name
    raise unknown("model", name, [*zoo.names(), "hf:<folder or hub id>", "<folder>"])


def _family(module: nn.Module) -> Callable[[nn.Module], TowerParts]:
    family = hugging_face.family_of(module)
    if family is not None:
        return family
    from importlib.metadata import entry_points

    for point in entry_points(group="mechvis.families"):
        accepts, parts_of = point.load()
        if accepts(module):
            return parts_of
    children = ", ".join(f"{name}: {type(child).__name__}" for name, child in list(module.named_children())[:8])
    raise UnsupportedModel(
        f"no family knows {type(module).__module__}.{type(module).__name__}; it could not be placed. Its children are: "
        f"{children or 'none'}. Known: Hugging Face ViT, DeiT, CLIP. To add it, write a function module -> TowerParts "
        "(see mechvis/models/transformers.py for a 40-line example) and pass it: "
        "mechvis.models.load.wrap(module, family=my_parts)."
    )


def _preprocess(given: Any, parts: TowerParts, module: nn.Module, source: str) -> Preprocess | None:
    if given is None:
        given, source = _default_processor(parts), f"default of {parts.family}"
        warnings.warn(
            f"no image preprocessing came with this {type(module).__name__}; using the default of "
            f"{parts.family} (mean {tuple(given.image_mean)}). Pass preprocess= to be sure.",
            DefaultPreprocessing,
            stacklevel=4,
        )
    found = given if isinstance(given, Preprocess) else Preprocess.of_processor(given, source=source)
    if parts.image_size is not None and (found.height, found.width) != tuple(parts.image_size):
        raise BadData(
            f"the image processor makes {found.height} x {found.width} pixels, the model takes "
            f"{parts.image_size[0]} x {parts.image_size[1]}. Pass a matching preprocess=."
        )
    return found


def _default_processor(parts: TowerParts) -> Any:
    import transformers

    height, width = parts.image_size or (224, 224)
    if "CLIP" in parts.family:
        return transformers.CLIPImageProcessorPil(
            size={"shortest_edge": height}, crop_size={"height": height, "width": width}
        )
    if "DeiT" in parts.family:
        return transformers.DeiTImageProcessorPil(size={"height": height, "width": width}, do_center_crop=False)
    return transformers.ViTImageProcessorPil(size={"height": height, "width": width})


def check_parity(model: Any, *, seed: int = 0) -> Parity:
    """Compare wrapped and bare model on a random batch; keep and return the difference.

    Raises:
        ParityError: relative difference above `TOLERANCE` for the model's type, with or without capturing.
    """
    parts, bare = model.parts, model.bare
    if any(module.training for module in bare.modules()):
        model._check_mode()
    inputs = parts.example(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = parts.reference(inputs)
        plain = _difference(model(inputs), expected)
        everything = [name for name in model.graph.names if not name.endswith("hook_result")]
        hooked = _difference(model.run(inputs, capture=everything, check_finite=False).output, expected)
    parity = Parity(plain, hooked, str(model.dtype).removeprefix("torch."))
    allowed = TOLERANCE.get(model.dtype, 1e-5)
    if not (plain <= allowed and hooked <= max(allowed, 1e-5)):
        raise ParityError(
            f"the wrapped {type(bare).__name__} does not reproduce the bare one: {parity}; allowed {allowed:.0e}. "
            "The family's map is wrong for this model (a changed forward, another activation or norm?)."
        )
    model.__dict__["parity"] = parity
    return parity


def _difference(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        raise ParityError(f"the wrapped model returns {list(ours.shape)}, the bare one {list(theirs.shape)}.")
    if torch.equal(ours, theirs):
        return 0.0
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))
