"""Notebooks for Jupyter from the texts beside this file (`make notebooks`): `python notebooks/convert.py FOLDER`.

The notebooks are kept as text (MyST Markdown with code cells), which shows changes and holds no outputs. To run them:

1. Each text becomes a notebook file of the same name.
2. Links are made anew, since the files now lie elsewhere: to other notebooks as notebooks, to everything else of the
   repository by its way from there.
3. With `--execute` the cells are run, in the folder that the notebooks are in, and the outputs kept.
"""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from mechvis import files
from mechvis.cli import say

HERE = Path(__file__).resolve().parent
LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")
"""The start of a link to a file: its bracket, and where it leads."""


def texts() -> list[Path]:
    """The notebooks as text, in order."""
    return sorted(HERE.glob("[0-9][0-9]_*.md"))


def relinked(markdown: str, folder: Path) -> str:
    """The same text with links that hold from `folder`.

    Args:
        markdown: a cell of one of the notebooks.
        folder: where the notebook will lie.

    Example:
        >>> relinked("see [first](01_first_look.md)", HERE.parent / "build" / "notebooks")
        'see [first](01_first_look.ipynb)'
    """
    known = {text.name for text in texts()}

    def there(found: re.Match) -> str:
        target = found[2]
        if target in known:
            return f"{found[1]}{Path(target).with_suffix('.ipynb')}"
        return found[1] + Path(os.path.relpath((HERE / target).resolve(), folder.resolve())).as_posix()

    return LINK.sub(there, markdown)


def convert(folder: Path, *, execute: bool = False) -> list[Path]:
    """Write all notebooks into a folder.

    Args:
        folder: made if it is missing; notebooks of these names in it are replaced.
        execute: run them and keep the outputs.

    Returns:
        The files, in order.

    Raises:
        OutputNotWritable: the folder cannot be written.
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import jupytext

    folder = files.ensure_writable(folder)
    made = []
    for text in texts():
        notebook = jupytext.read(text)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = relinked(cell.source, folder)
        if execute:
            from nbclient import NotebookClient

            NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
        made.append(folder / f"{text.stem}.ipynb")
        files.write_text(made[-1], jupytext.writes(notebook, fmt="ipynb"))
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the notebooks go, e.g. build/notebooks")
    parser.add_argument("--execute", action="store_true", help="run them and keep the outputs")
    given = parser.parse_args(arguments)
    made = convert(given.folder, execute=given.execute)
    say(f"{len(made)} notebooks in {given.folder}. Open them with JupyterLab, VS Code or any other notebook editor.")


if __name__ == "__main__":
    main()
