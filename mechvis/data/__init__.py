"""Images and texts in: folders, Hugging Face data sets, procedural scenes; pairs; export; banks of descriptions."""

# Functions that share the name of their module are imported here, so that `mechvis.data.folder(...)` is the function
# whatever was imported before.
from mechvis.data.export import export
from mechvis.data.folder import folder
from mechvis.data.hugging_face import hugging_face
from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.data.preprocess import Preprocess
from mechvis.data.scenes import scene_pairs, scenes
from mechvis.data.text_bank import TextBank, load_bank, text_bank
from mechvis.data.text_encoding import encode_bank

__all__ = [
    "ImageSet",
    "Preprocess",
    "TextBank",
    "encode_bank",
    "export",
    "folder",
    "hugging_face",
    "load_bank",
    "refuse_overlap",
    "scene_pairs",
    "scenes",
    "text_bank",
]
