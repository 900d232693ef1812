"""`mechvis report`: what a saved result or study says, as a page; and who reads which kind."""

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from mechvis.cli import say
from mechvis.commands.words import calls


@calls("mechvis.results:Result.report")
def report(folder: Path, /, *, out: Path | None = None) -> None:
    """Write the HTML report of a saved result or study.

    Args:
        folder: what --out of another command named, or Result.save wrote.
        out: the HTML file; default: report.html in the folder.
    """
    page = load_saved(folder).report(folder / "report.html" if out is None else out)
    say(f"report: {page}")


def load_saved(folder: str | Path) -> Any:
    """A saved result or study, whatever kind it is: anything with `.report(path)`.

    The kind is the word `format` of the manifest in the folder; the entry-point group `mechvis.reports` says who reads
    it, so that other packages' studies can be opened too.

    Raises:
        BadData: the folder holds nothing that is known.
    """
    from mechvis.errors import BadData

    folder = Path(folder)
    readers = {point.name: point for point in entry_points(group="mechvis.reports")}
    found = {}
    for file in sorted(folder.glob("*.json")):
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if isinstance(manifest, dict) and isinstance(manifest.get("format"), str):
            found[manifest["format"]] = file.name
    usable = [name for name in found if name in readers]
    if not usable:
        what = f"holds {', '.join(found)}, for which no reader is installed" if found else "holds no saved result"
        raise BadData(
            f"{folder} {what if folder.is_dir() else 'is not a folder'}. Readable: {', '.join(sorted(readers))}."
        )
    # A study keeps the plain result of its sweep beside its own manifest; the study is the whole of it.
    chosen = next((name for name in usable if name != "mechvis.result"), usable[0])
    return readers[chosen].load()(folder)
