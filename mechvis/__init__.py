"""mechvis: mechanistic interpretability for vision transformers and CLIP.

    import mechvis
    from mechvis import edits

    model = mechvis.load("scenes-vit")
    images = mechvis.data.scenes(n=256, seed=7)
    run = model.run(images.pixels, edits=[edits.zero("blocks.3.attn.hook_z", heads=[1])])
    effects = mechvis.sweep(model, images, units="heads", edit="zero", metric="logit_diff")

Everything public is listed in `__all__` and imported when first used, so that `import mechvis` stays light.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "load": "mechvis.models.load",
    "means": "mechvis.means",
    "sweep": "mechvis.sweep",
    "Result": "mechvis.results",
    "ImageSet": "mechvis.data",
    "HookedViT": "mechvis.hooked",
    "HookedCLIP": "mechvis.clip",
}
_MODULES = ("axes", "data", "edits", "errors", "metrics", "stats", "testing")

__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name: str):
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value  # over a module of the same name (mechvis.sweep): the function is what users mean
        return value
    if name in _MODULES:
        return importlib.import_module(f"mechvis.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
