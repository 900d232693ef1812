"""The one entrance: a bundled name, a folder, a hub id or a module in memory becomes a wrapped model.

1. Find the family that knows the architecture and let it map the module tree to parts.
2. Attach the image preprocessing that belongs to the weights.
3. Check parity: wrapped and bare model on the same random batch. The difference is kept on the model and printed;
   a model that does not agree is refused.
"""

import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mechvis.data.preprocess import Preprocess
from mechvis.errors import BadData, DefaultPreprocessing, MechvisWarning, ParityError, UnsupportedModel, unknown
from mechvis.models.parts import TowerParts, TwoTowers

logger = logging.getLogger(__name__)

SOURCES = {
    "hf": "mechvis.models.transformers",
    "timm": "mechvis.models.timm",
    "open_clip": "mechvis.models.open_clip",
    "torchvision": "mechvis.models.torchvision",
}
"""Prefix of a model's name -> the file that knows the models of that source. Each offers `read(name, image_size)`
(module, image processor or None, tokenizer or None), `family_of(module)` and `two_towers(module)` (None if it is none
of theirs). They import their library only inside functions."""

PACKAGES = {"transformers": "hf", "timm": "timm", "open_clip": "open_clip", "torchvision": "torchvision"}
"""Package that a module's class comes from -> its source."""

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
    image_size: int | tuple[int, int] | None = None,
) -> Any:
    """A wrapped model, ready for runs and sweeps.

    Args:
        model: a bundled name (`scenes-vit`, `scenes-clip`), `hf:<folder or hub id>` or a path to a folder, or an
            `nn.Module` in memory (also fine-tuned or LoRA-wrapped). It must be in eval mode.
        preprocess: a `Preprocess` or a Hugging Face image processor, where the model brings none.
        device: where to put a model that is read from disk.
        dtype: type for a model that is read from disk.
        tokenizer: for two-tower models in memory.
        image_size: use the model with images of another size (a number, or height and width), where its upstream can:
            positions are interpolated as the upstream does it, and the image processor is set to this size. Models of
            timm and open_clip that are made by name are made for that size.

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
        source, name = _place(title)
        model, processor, read_tokenizer = import_module(SOURCES[source]).read(name, image_size=image_size)
        if device is not None or dtype is not None:
            model = model.to(device=device, dtype=dtype)
        preprocess = preprocess if preprocess is not None else processor
        tokenizer = tokenizer if tokenizer is not None else read_tokenizer
        given = "folder" if source == "hf" else source
    else:
        given = "given"
        if device is not None or dtype is not None:
            raise BadData(
                "device= and dtype= are for models read from disk; move your module yourself (it is left as found)."
            )
    more = {"title": title, "source": given, "tokenizer": tokenizer, "image_size": image_size}
    return wrap(model, preprocess=preprocess, **more)


def wrap(
    bare: nn.Module,
    *,
    preprocess: Any = None,
    title: str = "",
    source: str = "given",
    tokenizer: Any = None,
    image_size: int | tuple[int, int] | None = None,
    family: Callable[[nn.Module], TowerParts] | None = None,
) -> Any:
    """Wrap a module that is in memory; `family` overrides the search for a map."""
    from mechvis.hooked import HookedViT

    if isinstance(bare, HookedViT):
        raise BadData(f"this model is wrapped already: {bare.title or bare.parts.family}. Use it as it is.")
    if "transformer_lens.model_bridge" in sys.modules:
        from mechvis.interop.transformer_lens import is_bridged, unbridged

        if is_bridged(bare):
            preprocess = preprocess if preprocess is not None else bare.__dict__.get("processor")
            bare = unbridged(bare)
    inner = bare.get_base_model() if hasattr(bare, "get_base_model") else bare
    found = family or find(inner)
    if isinstance(found, TwoTowers):
        more = {"preprocess": preprocess, "title": title, "source": source, "tokenizer": tokenizer}
        return _wrap_two(bare, inner, found, image_size=image_size, **more)
    family, parts = found, found(inner)
    if parts.modality == "image":
        parts, preprocess = _preprocess(preprocess, _sized(parts, image_size), inner, source, image_size)
    model = HookedViT(bare, parts, preprocess=preprocess if parts.modality == "image" else None, name=title)
    model.__dict__["family"] = family
    check_parity(model)
    logger.info("%s: %s", title or parts.family, model.parity)
    return model


def _wrap_two(
    bare: nn.Module,
    inner: nn.Module,
    towers: TwoTowers,
    *,
    preprocess: Any,
    title: str,
    source: str,
    tokenizer: Any,
    image_size: int | tuple[int, int] | None,
) -> Any:
    from mechvis.clip import HookedCLIP

    vision, preprocess = _preprocess(preprocess, _sized(towers.vision(inner), image_size), inner, source, image_size)
    clip = HookedCLIP(
        bare,
        towers=towers,
        vision=vision,
        text=towers.text(inner),
        preprocess=preprocess,
        tokenizer=tokenizer,
        name=title,
    )
    for tower in (clip.vision, clip.text):
        check_parity(tower)
    return clip


def sources_of(module: nn.Module) -> list[ModuleType]:
    """The files that know the package which a module's class, or a class it inherits from, was written in."""
    roots = [cls.__module__.partition(".")[0] for cls in type(module).__mro__]
    return [import_module(SOURCES[PACKAGES[root]]) for root in dict.fromkeys(roots) if root in PACKAGES]


def _place(name: str) -> tuple[str, str]:
    """Source of a name, and what that source calls the model."""
    from mechvis.models import zoo

    if name in zoo.names():
        return "hf", str(zoo.path(name))
    prefix, colon, rest = name.partition(":")
    if colon and prefix in SOURCES:
        if not rest:
            raise BadData(f"{name!r} names no model after the colon.")
        return prefix, rest
    if Path(name).is_dir():
        return "hf", name
    kinds = ["hf:<folder or hub id>", "timm:<name>", "open_clip:<architecture>[/<tag or file>]", "torchvision:<name>"]
    raise unknown("model", name, [*zoo.names(), *kinds, "<folder>"])


def find(module: nn.Module) -> Callable[[nn.Module], TowerParts] | TwoTowers:
    """The map for a module: ours for a class that an upstream package wrote; for a class of somebody else's, which may
    inherit from one of those and compute something else, first the maps that installed packages offer.

    Raises:
        UnsupportedModel: nobody knows it; says which module could not be placed and how to write the map.
    """
    ours = type(module).__module__.partition(".")[0] in PACKAGES
    for search in (_upstream, _external) if ours else (_external, _upstream):
        if (found := search(module)) is not None:
            return found
    children = ", ".join(f"{name}: {type(child).__name__}" for name, child in list(module.named_children())[:8])
    raise UnsupportedModel(
        f"no family knows {type(module).__module__}.{type(module).__name__}; it could not be placed. Its children are: "
        f"{children or 'none'}. docs/families.md lists what is known. To add it, write a function module -> TowerParts "
        "(mechvis/models/torchvision.py is a short example) and pass it: "
        "mechvis.models.load.wrap(module, family=my_parts), or register it in the entry-point group mechvis.families."
    )


def _upstream(module: nn.Module) -> Callable[[nn.Module], TowerParts] | TwoTowers | None:
    for source in sources_of(module):
        if (found := source.two_towers(module)) is not None or (found := source.family_of(module)) is not None:
            return found
    return None


def _external(module: nn.Module) -> Callable[[nn.Module], TowerParts] | None:
    """From the entry-point group `mechvis.families`: pairs of a test and a map."""
    from importlib.metadata import entry_points

    for point in entry_points(group="mechvis.families"):
        try:
            accepts, parts_of = point.load()
        except Exception as error:
            raise UnsupportedModel(
                f"the family {point.name!r} that the package {getattr(point.dist, 'name', '?')} offers under "
                f"{point.value!r} cannot be loaded ({error!r}); it must be a pair (accepts, parts). Mend or remove "
                "that package."
            ) from error
        if accepts(module):
            return parts_of
    return None


def _sized(parts: TowerParts, image_size: int | tuple[int, int] | None) -> TowerParts:
    """Parts for images of the size that was asked for."""
    if image_size is None:
        return parts
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if size != parts.image_size and parts.sizes == "one":
        raise BadData(f"{parts.family} takes images of {parts.image_size} pixels only, not {size}.")
    if any(side < patch for side, patch in zip(size, parts.patch_size, strict=True)):
        raise BadData(f"image_size={image_size} is smaller than one patch {parts.patch_size}.")
    return parts.at_size(size)


def _preprocess(
    given: Any, parts: TowerParts, module: nn.Module, source: str, image_size: Any
) -> tuple[TowerParts, Preprocess | None]:
    """Parts at the size that the image processor makes, and the processor."""
    if given is None and parts.preprocess is not None:
        given, source = parts.preprocess(parts.image_size), f"default of {parts.family}"
        # A module may carry a description of its own preprocessing (timm, open_clip): then nothing is assumed.
        if not isinstance(given, Preprocess) or given.source.startswith("default"):
            mean = given.mean if isinstance(given, Preprocess) else given.image_mean
            warnings.warn(
                f"no image preprocessing came with this {type(module).__name__}; using the default of "
                f"{parts.family} (mean {tuple(mean)}). Pass preprocess= to be sure.",
                DefaultPreprocessing,
                stacklevel=5,
            )
    if given is None:
        return parts, None
    found = given if isinstance(given, Preprocess) else Preprocess.of_processor(given, source=source)
    if image_size is not None:
        found = found.at_size(*parts.image_size)
    size = (found.height, found.width)
    if parts.image_size is not None and size != tuple(parts.image_size):
        if parts.sizes != "any":
            also = ", or ask for that size with image_size=" if parts.sizes == "asked" else ""
            raise BadData(
                f"the image processor makes {found.height} x {found.width} pixels, the model takes "
                f"{parts.image_size[0]} x {parts.image_size[1]}. Pass a matching preprocess={also}."
            )
        parts = parts.at_size(size)
    return parts, found


def check_parity(model: Any, *, seed: int = 0) -> Parity:
    """Compare wrapped and bare model on a random batch; keep and return the difference.

    Raises:
        ParityError: relative difference above `TOLERANCE` for the model's type, with or without capturing.
    """
    parts, bare = model.parts, model.bare
    if any(module.training for module in bare.modules()):
        model._check_mode()
    inputs = parts.example_batch(bare, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = parts.reference(inputs)
        plain = _difference(model(inputs), expected)
        hooked = _difference(_with_every_site(model, inputs), expected)
    parity = Parity(plain, hooked, str(model.dtype).removeprefix("torch."))
    allowed = TOLERANCE.get(model.dtype, 1e-5)
    if not (plain <= allowed and hooked <= max(allowed, 1e-5)):
        raise ParityError(
            f"the wrapped {type(bare).__name__} does not reproduce the bare one: {parity}; allowed {allowed:.0e}. "
            "The family's map is wrong for this model (a changed forward, another activation or norm?)."
        )
    model.__dict__["parity"] = parity
    if parts.head is not None and parts.class_names and len(parts.class_names) != expected.shape[-1]:
        warnings.warn(
            f"the config names {len(parts.class_names)} classes, the head has {expected.shape[-1]} logits (a changed "
            "head?); the names are left out. Set config.id2label and load again to have names.",
            MechvisWarning,
            stacklevel=4,
        )
        model._forget_class_names()
    return parity


def _with_every_site(model: Any, inputs: Tensor) -> Tensor:
    """Output of a run that goes by every site, attention explicit; values are not kept, which would take more memory
    than the weights."""
    from mechvis.cache import Cache
    from mechvis.plan import plan
    from mechvis.run import Active

    class Forgetful(Cache):
        def _put(self, name: str, value: Tensor) -> None:
            pass

    sites = frozenset(name for name in model.graph.names if not name.endswith("hook_result"))
    nothing = plan([], model.graph, model.parts.prefix)
    active = Active(
        plan=nothing, capture=sites, cache=Forgetful(model.graph), owner=model, keep_graph=False, check_finite=False
    )
    with model._running(active):
        return model(inputs)


def _difference(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        raise ParityError(f"the wrapped model returns {list(ours.shape)}, the bare one {list(theirs.shape)}.")
    if torch.equal(ours, theirs):
        return 0.0
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))
