"""The scripts that trained the bundled models; `train` runs any of them again, on a CPU or a GPU."""

from mechvis.models.training.recipes import TRAINABLE, train

__all__ = ["TRAINABLE", "train"]
