"""One command as several processes (`--launch`)."""

import os
import sys
from pathlib import Path

from mechvis.cli import say, typed


def launched(launch: str | None, out: Path | None, *, together: bool = False) -> bool:
    """Start the same command as several processes, if that is asked for and this is not one of them.

    Args:
        launch: how, see :func:`mechvis.parallel.start`.
        out: the folder that they share.
        together: they talk to each other, so they have to run at the same time.

    Raises:
        BadData: several processes, and no folder in which they could share the work.
    """
    from mechvis.errors import BadData
    from mechvis.parallel import start, world
    from mechvis.parallel.world import LAUNCHED

    several = launch is not None or world().size > 1
    if several and out is None:
        raise BadData("several processes share their work through a folder: give --out FOLDER.")
    if launch is None or LAUNCHED in os.environ:
        return False
    words = typed()
    if not words:
        raise BadData("launch= starts the words of a command line; in Python use mechvis.parallel.start.")
    if start([sys.executable, "-m", "mechvis", *words], launch=launch, logs=out / "jobs", together=together):
        say(f"the result will be in {out}.")
    return True
