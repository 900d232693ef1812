"""The errors a user can meet. Each says what was asked, what was seen, and what to do next.

All derive from :class:`MechvisError`, so `except mechvis.errors.MechvisError` catches what this library means to
tell you and nothing else. Where Python has a fitting built-in (KeyError, ValueError) the class derives from it too,
so ordinary code that expects the built-in keeps working.
"""

import difflib
from collections.abc import Iterable


class MechvisError(Exception):
    """Base of every error that this library raises on purpose."""

    def __str__(self) -> str:  # KeyError would print its message in quotes
        return str(self.args[0]) if self.args else ""


class UnknownSite(MechvisError, KeyError):
    """A site name or pattern that matches nothing in this model."""


class UnknownName(MechvisError, KeyError):
    """A name from a closed list (metric, edit kind, bundled model, ...) that is not in it."""


class OutOfRange(MechvisError, IndexError):
    """A layer, head, token, unit or class index that this model does not have."""


class ShapeMismatch(MechvisError, ValueError):
    """A tensor whose shape does not fit the place it was meant for."""


class BadImages(MechvisError, ValueError):
    """Pixels that cannot be right: wrong size or channels, 0-255 range, NaN, empty batch."""


class BadData(MechvisError, ValueError):
    """An image folder, mask or metadata table that is empty, incomplete or contradicts itself."""


class CorruptImage(BadData):
    """An image file that cannot be decoded."""


class MixedDevices(MechvisError, ValueError):
    """Tensors of one call live on different devices or have different dtypes."""


class TrainMode(MechvisError, RuntimeError):
    """The model, or a module inside it, is in train mode: dropout would make effects of nothing."""


class NotFinite(MechvisError, ValueError):
    """NaN or Inf in an activation or output; names the first site where it was seen."""


class EditNeverFired(MechvisError, RuntimeError):
    """An edit was given but the forward pass never reached its site."""


class CacheChanged(MechvisError, RuntimeError):
    """A captured tensor was changed in place after it was captured."""


class ParityError(MechvisError, RuntimeError):
    """The wrapped model does not reproduce the bare one."""


class UnsupportedModel(MechvisError, TypeError):
    """No family knows this architecture; the message names the module that could not be placed."""


class RefusedMethod(MechvisError, TypeError):
    """A method that would return plausible nonsense on this kind of model; the message says why, and what to use."""


class FailedCheck(MechvisError, RuntimeError):
    """A result does not have a property that its method promises (finite, not all zero, complete)."""


class MissingPackage(MechvisError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""


class ResultMismatch(MechvisError, ValueError):
    """A saved result or ledger belongs to another model, data set or plan."""


class StoreCorrupt(MechvisError, RuntimeError):
    """A file on disk fails its checksum or cannot be read; the message names it."""


class SplitOverlap(MechvisError, ValueError):
    """Images used for selection and for evaluation (or as reference) overlap."""


class OutputNotWritable(MechvisError, OSError):
    """The place for the output cannot be written."""


class OutOfMemory(MechvisError, MemoryError):
    """Not even one image fits the budget; the message says what was tried."""


class MechvisWarning(UserWarning):
    """Base of the warnings of this library."""


class EffectlessEdit(MechvisWarning):
    """An edit fired but changed nothing in what was captured or returned."""


class DefaultPreprocessing(MechvisWarning):
    """No image processor was found with the model; the family's default is used."""


class FailedMasks(MechvisWarning):
    """Some optimised masks fail their self-check."""


def nearest(name: str, valid: Iterable[str], count: int = 3) -> list[str]:
    """The `count` names most like `name`, best first.

    Example:
        >>> nearest("blocks.0.atn.hook_z", ["blocks.0.attn.hook_z", "hook_embed"], 1)
        ['blocks.0.attn.hook_z']
    """
    return difflib.get_close_matches(name, list(valid), n=count, cutoff=0.0)


def unknown(kind: str, name: object, valid: Iterable[str]) -> UnknownName:
    """An :class:`UnknownName` for `name`, with the three nearest of the `valid` names."""
    names = [str(v) for v in valid]
    return UnknownName(
        f"unknown {kind} {name!r}. Nearest: {', '.join(nearest(str(name), names)) or 'none'}. "
        f"Valid: {', '.join(names[:20])}{' ...' if len(names) > 20 else ''}."
    )
