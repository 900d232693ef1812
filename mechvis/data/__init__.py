"""Images in: folders, Hugging Face data sets, procedural scenes; pairs; export."""

from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.data.preprocess import Preprocess

__all__ = ["ImageSet", "Preprocess", "export", "folder", "hugging_face", "refuse_overlap", "scene_pairs", "scenes"]

_HOME = {
    "scenes": "scenes",
    "scene_pairs": "scenes",
    "folder": "folder",
    "hugging_face": "hugging_face",
    "export": "export",
}


def __getattr__(name: str):
    # Function and module share a name (mechvis.data.scenes(...)): the function is what a user means. Importing the
    # module would put the module here, so the function is written over it.
    if name in _HOME:
        import importlib

        value = getattr(importlib.import_module(f"mechvis.data.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
