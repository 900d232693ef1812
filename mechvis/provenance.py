"""Where a result comes from: model, data, versions, seeds, exact command, time. Enough to run it again and compare.

Nothing in it names the machine or a folder, except what the user typed into the command.
"""

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import PurePath
from typing import Any

from mechvis.errors import BadData
from mechvis.files import plain_json

_PACKAGES = ("mechvis", "torch", "transformers", "numpy")


def provenance(
    model: Any = None,
    images: Any = None,
    seed: int | dict[str, int] | None = None,
    command: str | None = None,
    **more: Any,
) -> dict:
    """What must be known to repeat a run, as a dict that JSON can hold.

    Args:
        model: its `name` and `fingerprint` are taken where it has them.
        images: an image set; its `name`, `fingerprint` and length are taken.
        seed: one seed, or several by what they are for.
        command: the command that made the result; by default the command line of this process, if there is one.
        more: anything else, e.g. `timings={"sweep": 12.5}` (seconds).

    Returns:
        A dict with `model`, `data`, `versions`, `seeds`, `command`, `time` (UTC, ISO 8601), `platform`, and `more`.

    Raises:
        BadData: something in `more` would overwrite one of the fields above.
        NotFinite: NaN or Inf in `more`.
        ShapeMismatch: something in `more` that JSON cannot hold.

    Example:
        >>> provenance(seed=7, timings={"sweep": 1.5})["seeds"]
        {'seed': 7}
    """
    known = {
        "model": _described(model),
        "data": _described(images, n=None if images is None else len(images)),
        "versions": versions(),
        "seeds": seed if isinstance(seed, dict) else {} if seed is None else {"seed": seed},
        "command": command_line() if command is None else command,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": {
            "system": platform.system(),
            "machine": platform.machine(),
            "cores": os.cpu_count() or 0,
            "accelerator": _accelerator(),
        },
    }
    if overlap := sorted(set(known) & set(more)):
        raise BadData(f"provenance fields {overlap} are filled in already. Give the extra fact another name.")
    return plain_json({**known, **more}, "provenance")


def versions() -> dict[str, str]:
    """Versions of Python and the packages that numbers depend on; nothing is imported to find them.

    Example:
        >>> sorted(versions())
        ['mechvis', 'numpy', 'python', 'torch', 'transformers']
    """
    return {"python": platform.python_version()} | {package: _version(package) for package in _PACKAGES}


@cache
def _version(package: str) -> str:
    # Kept: reading it parses a file of text, 7 ms each, a tenth of a small sweep together.
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def command_line() -> str:
    """The command that started this process, quoted for a shell; empty in a notebook or an interactive shell.

    Example:
        >>> isinstance(command_line(), str)
        True
    """
    if "ipykernel" in sys.modules or not sys.argv or sys.argv[0] in ("", "-c"):
        return ""
    program = PurePath(sys.argv[0])
    if program.stem == "mechvis" or program.parts[-2:] in (("mechvis", "__main__.py"), ("mechvis", "cli.py")):
        # The place where the command is installed is this machine's business; its name is what one types.
        return shlex.join(["mechvis", *sys.argv[1:]])
    return shlex.join(["python", *sys.argv])


def _described(thing: Any, **facts: Any) -> dict:
    """Name and fingerprint of a model or data set, as far as it has them."""
    if thing is None:
        return {}
    for word in ("name", "fingerprint"):
        value = getattr(thing, word, None)
        value = value() if callable(value) else value
        if value is not None:
            facts[word] = str(value)
    return facts


def _accelerator() -> str:
    """Name of the first accelerator, `none` without one; torch is asked only where it is in use already."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return "none"
    return torch.cuda.get_device_name(0)
