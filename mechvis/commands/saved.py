"""Who reads what: saved results and studies of any package, by the word `format` of their manifest."""

import json
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any


def readers() -> dict[str, EntryPoint]:
    """Who reads which format: the entry-point group `mechvis.reports`, so that other packages' studies open too."""
    return {point.name: point for point in entry_points(group="mechvis.reports")}


def formats_in(folder: str | Path) -> dict[str, str]:
    """The formats that a folder's manifests name, each with the file that names it.

    Example:
        >>> import tempfile
        >>> formats_in(tempfile.mkdtemp())
        {}
    """
    found = {}
    for file in sorted(Path(folder).glob("*.json")):
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if isinstance(manifest, dict) and isinstance(manifest.get("format"), str):
            found[manifest["format"]] = file.name
    return found


def load_saved(folder: str | Path) -> Any:
    """A saved result or study, whatever kind it is: anything with `.report(path)`.

    The kind is the word `format` of the manifest in the folder; see :func:`readers`.

    Raises:
        BadData: the folder holds nothing that is known.
    """
    from mechvis.errors import BadData

    folder = Path(folder)
    known, found = readers(), formats_in(folder)
    usable = [name for name in found if name in known]
    if not usable:
        what = f"holds {', '.join(found)}, for which no reader is installed" if found else "holds no saved result"
        raise BadData(
            f"{folder} {what if folder.is_dir() else 'is not a folder'}. Readable: {', '.join(sorted(known))}."
        )
    # A study keeps the plain result of its sweep beside its own manifest; the study is the whole of it.
    chosen = next((name for name in usable if name != "mechvis.result"), usable[0])
    return known[chosen].load()(folder)
