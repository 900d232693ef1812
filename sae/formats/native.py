"""Our own layout, so that a converter has one word for it: see `sae.Dictionary.save` and `load`."""

from pathlib import Path

from sae.dictionary import FORMAT, MANIFEST, WEIGHTS, Dictionary
from sae.formats.seen import Seen, Told


def fits(seen: Seen) -> bool:
    """Is this one?"""
    return not seen.one and seen.has(MANIFEST, WEIGHTS) and seen.json(MANIFEST).get("format") == FORMAT


def read(seen: Seen, told: Told) -> Dictionary:
    """See `sae.Dictionary.load`."""
    return Dictionary.load(seen.folder)


def write(d: Dictionary, path: Path) -> Path:
    """Write it with its codes as they are: rows of a free decoder are not folded."""
    return d.save(path, fold=False)
