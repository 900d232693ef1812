"""Batched patching: many small edits of one activation in one call."""

from mechvis.kernels.patch_rows.naive import patch_rows

__all__ = ["patch_rows"]
