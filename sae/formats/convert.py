"""Load and save dictionaries in any of the formats: which one it is, and whether what was written says the same."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from mechvis.errors import BadData, FailedCheck, MechvisError, unknown
from sae.formats.seen import Seen, told_from

if TYPE_CHECKING:
    from sae.dictionary import Dictionary

FORMATS = {
    "mechvis": "sae.formats.native",
    "saelens": "sae.formats.saelens",
    "sparsify": "sae.formats.sparsify",
    "dictionary_learning": "sae.formats.dictionary_learning",
    "visaebench": "sae.formats.visaebench",
    "saev": "sae.formats.saev",
    "prisma": "sae.formats.prisma",
    "openai": "sae.formats.openai",
    "crosscoders": "sae.formats.crosscoders",
    "overcomplete": "sae.formats.overcomplete",
    "circuit_tracer": "sae.formats.circuit_tracer",
}
"""Formats by name, in the order in which they are tried."""
ROWS = 64
"""Rows that a written file is tried on."""
TOLERANCE = 1e-4
"""Relative to the largest number there is."""


def load(
    path: str | Path,
    format: str | None = None,
    *,
    k: int | None = None,
    threshold: float | None = None,
    architecture: str | None = None,
) -> "Dictionary":
    """A dictionary from the files of any library in :data:`FORMATS`.

    Args:
        path: a folder, or a file.
        format: a name of :data:`FORMATS`; None: told from the files.
        k: active latents per row, where the file does not say (overcomplete).
        threshold: of a BatchTopK, where the file does not say (overcomplete).
        architecture: 'relu', where the file does not say (overcomplete).

    Returns:
        A dictionary whose `encode` and `decode` give what the library gives; where it is from is in its `provenance`.

    Raises:
        UnknownName: no such format.
        BadData: no format fits, says what was seen; a tensor or setting is missing or cannot be; a pickle that could
            run code.
        ShapeMismatch, NotFinite: a tensor of other sizes, or with NaN or Inf.
        RefusedMethod: something of that library that is not read.
        StoreCorrupt: a file is missing or damaged.

    Example:
        >>> import tempfile, sae
        >>> rows = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
        >>> d = sae.start(sae.TopK(n_latents=16, k=2), {"site": rows})
        >>> place = save(d, tempfile.mkdtemp(), format="saelens")
        >>> load(place).architecture.NAME
        'topk'
    """
    told = told_from(k, threshold, architecture)
    seen = Seen(path)
    try:
        module = _module(format) if format is not None else _detected(seen)
        return module.read(seen, told)
    except MechvisError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError, OSError) as error:
        # A file may contradict itself in more ways than are looked for; it is still the file that is wrong.
        raise BadData(f"{path} is not what it seems: {type(error).__name__}: {str(error)[:200]}") from error


def save(
    dictionary: "Dictionary",
    path: str | Path,
    *,
    format: str,
    check: bool = True,
) -> Path:
    """Write a dictionary in the format of another library.

    Args:
        dictionary: what to write. A constant scale is folded into the weights; a free decoder whose norms decide what
            is kept is folded too (then codes are those of `folded()`).
        path: a folder (or a file, where a format is one file).
        format: a name of :data:`FORMATS`.
        check: read it back, and compare codes and output on some rows.

    Returns:
        What :func:`load` opens: the folder, or the file.

    Raises:
        UnknownName: no such format.
        RefusedMethod: what the format cannot say, with the reason.
        NotFinite: a parameter holds NaN or Inf.
        FailedCheck: what was written says something else; nothing that is known leads here.
        OutputNotWritable: says what and why.

    Example:
        >>> import tempfile, sae
        >>> rows = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
        >>> d = sae.start(sae.TopK(n_latents=16, k=2, normalise="token_norm"), {"site": rows})
        >>> save(d, tempfile.mkdtemp(), format="sparsify")
        Traceback (most recent call last):
        ...
        mechvis.errors.RefusedMethod: normalise='token_norm' scales every row by its own norm. sparsify has no such ...
    """
    place = _module(format).write(dictionary, Path(path))
    if check:
        _compare(dictionary, load(place, format), place)
    return place


@dataclass(frozen=True, kw_only=True, eq=False)
class Converted:
    """What was converted."""

    place: Path
    """Where it lies."""
    source: str
    """The format that was read."""
    dictionary: "Dictionary"
    """What was read."""


def convert(
    source: str | Path,
    out: str | Path,
    *,
    to: str = "mechvis",
    format: str | None = None,
    k: int | None = None,
    threshold: float | None = None,
    architecture: str | None = None,
    check: bool = True,
) -> Converted:
    """From one library's files to another's: :func:`load`, then :func:`save`.

    Args:
        source: a folder, or a file.
        out: where to.
        to: the format that is written.
        format: the format that is read; None: told from the files.
        k: active latents per row, where the files do not say.
        threshold: of BatchTopK, where the files do not say.
        architecture: 'relu', where the files do not say.
        check: read what was written, and compare.

    Raises:
        MechvisError: see :func:`load` and :func:`save`.

    Example:
        >>> import tempfile, sae
        >>> rows = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
        >>> d = sae.start(sae.TopK(n_latents=16, k=2), {"site": rows})
        >>> done = convert(d.save(tempfile.mkdtemp()), tempfile.mkdtemp(), to="sparsify")
        >>> done.source, done.dictionary.architecture.NAME
        ('mechvis', 'topk')
    """
    _module(to)  # a wrong word is said before anything is read
    d = load(source, format, k=k, threshold=threshold, architecture=architecture)
    known = format or _name_of(_detected(Seen(source)))
    return Converted(place=save(d, out, format=to, check=check), source=known, dictionary=d)


def _module(name: str) -> ModuleType:
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    return importlib.import_module(FORMATS[name])


def _name_of(module: ModuleType) -> str:
    return next(name for name, place in FORMATS.items() if place == module.__name__)


def _detected(seen: Seen) -> ModuleType:
    """The first format that fits.

    Raises:
        BadData: none does.
        MechvisError: of the first file that could not be looked into, if none does.
    """
    first: MechvisError | None = None
    for name in FORMATS:
        module = _module(name)
        try:
            if module.fits(seen):
                return module
        except MechvisError as error:
            first = first or error
    if first is not None:
        raise first
    raise BadData(
        f"{seen.path} is of no format that is known here. It has {', '.join(seen.names[:12]) or 'no files'}. Known: "
        f"{', '.join(FORMATS)}; name one to see what it lacks: load(path, format='saelens')."
    )


@torch.no_grad()
def _compare(d: "Dictionary", again: "Dictionary", place: Path) -> None:
    """Refuse a file that says something else.

    Codes near a threshold, or of equal rank, may fall on either side after rounding; so a few rows may differ.

    Raises:
        FailedCheck: it does.
    """
    rows = torch.randn(ROWS, d.ends.d_in, generator=torch.Generator().manual_seed(0)).to(d.scale_in)
    rows = rows * d.scale_in
    want, got = d(rows).cpu().double(), again(rows.cpu()).double()
    off = (want - got).abs().amax(1) > TOLERANCE * float(want.abs().max().clamp_min(1e-6))
    if float(off.double().mean()) > 0.1:
        raise FailedCheck(
            f"{place} was written, but read back it gives another output on {int(off.sum())} of {ROWS} rows. Please "
            "report this with the dictionary's architecture; do not use the file."
        )
