"""The command line: `mechvis <command> ...`. This file knows how to find, call and excuse commands, not what they do.

1. Commands are functions, found by name through the entry-point group `mechvis.commands`; any installed package can add
   one. An entry is a function, or a dict of functions (`mechvis data export`). Modules of commands import heavy things
   inside their functions, so that `--help` answers at once.
2. The flags of a command are the parameters of its function (tyro); its help is the docstring.
3. An error that the library raises on purpose is shown as its message; anything else is a bug and shows its traceback.

Exit codes: 0 done, 1 the command failed, 2 the command line was wrong, 130 interrupted.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated

from mechvis.errors import MechvisError, nearest

GROUP = "mechvis.commands"
SIBLINGS = ("circuits", "probes", "sae")
"""Import names that other code in the wild uses too."""

_HELP = ("-h", "--help")
_typed: ContextVar[tuple[str, ...]] = ContextVar("mechvis_typed", default=())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `mechvis`; default: those of this process.

    Returns:
        The exit code.

    Example:
        >>> main(["--version"])
        mechvis 0.1.0
        0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    token = _typed.set(tuple(words))
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    with _terminal():
        try:
            return _dispatch(words)
        except SystemExit as leave:  # tyro, after help or after a wrong flag
            return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        except KeyboardInterrupt:
            kept = any(word == "--out" or word.startswith("--out=") for word in words)
            _complain(
                "interrupted. What is finished is kept: the same command continues."
                if kept
                else "interrupted. Nothing was kept; with --out FOLDER the same command would continue."
            )
            return 130
        except BrokenPipeError:  # `mechvis sites ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (MechvisError, OSError) as error:
            if debug:
                raise
            _complain(f"error: {error}")
            return 1
        finally:
            _typed.reset(token)


def typed() -> tuple[str, ...]:
    """The words after `mechvis` of the command that is running; none if it was called from Python.

    Example:
        >>> typed()
        ()
    """
    return _typed.get()


def say(text: str = "") -> None:
    """Write a line to the terminal: the one place where this package prints."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def columns(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """A table as text: numbers to the right, words to the left.

    Example:
        >>> say(columns([("L0H1", 0.5), ("L10H2", -1.25)], ("unit", "effect")))
        unit   effect
        L0H1      0.5
        L10H2   -1.25
    """
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    lines = (
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in (header, *cells)
    )
    return "\n".join(lines)


def commands() -> dict[str, EntryPoint]:
    """The commands that are installed, by name; none is imported.

    Example:
        >>> "sweep" in commands()
        True
    """
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def flatten(name: str, loaded: Callable | Mapping[str, Callable]) -> dict[str, Callable]:
    """The functions of one entry point, by what is typed to call them."""
    if callable(loaded):
        return {name: loaded}
    return {f"{name} {inner}": function for inner, function in loaded.items()}


def shadowed() -> dict[str, str]:
    """Sibling packages that Python would import from somewhere else than beside this package, and from where."""
    ours = Path(__file__).resolve().parent.parent
    found = {}
    for name in SIBLINGS:
        spec = find_spec(name)
        if spec is None:
            continue
        places = [Path(place).resolve() for place in spec.submodule_search_locations or [spec.origin or ""]]
        if ours / name not in places:
            found[name] = str(places[0])
    return found


def _dispatch(words: list[str]) -> int:
    strangers = shadowed()
    for name, place in strangers.items():
        _complain(
            f"warning: {name!r} is imported from {place}, which is not part of mechvis; its commands are left out. "
            "Rename that folder or take it off PYTHONPATH."
        )
    known = {name: point for name, point in commands().items() if point.module.split(".")[0] not in strangers}
    if not words or words[0] in _HELP:
        say(_overview(known))
        return 0
    if words[0] == "--version":
        from mechvis import __version__

        say(f"mechvis {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in known:
        return _unknown("command", name, list(known), "mechvis --help")
    loaded = known[name].load()
    if not callable(loaded):
        if not rest or rest[0] in _HELP:
            say(_overview({name: known[name]}))
            return 0
        if rest[0] not in loaded:
            return _unknown("command", f"{name} {rest[0]}", [f"{name} {inner}" for inner in loaded], "mechvis --help")
        name, loaded, rest = f"{name} {rest[0]}", loaded[rest[0]], rest[1:]
    return _call(name, loaded, rest)


def _call(name: str, function: Callable, words: list[str]) -> int:
    import tyro

    code = tyro.cli(_named_positionals(function), prog=f"mechvis {name}", args=words)
    return code if isinstance(code, int) else 0


def _named_positionals(function: Callable) -> Callable:
    """The same function, with `MODEL` instead of `STR` in the help of a positional argument."""
    import tyro

    @wraps(function)
    def same(*args, **kwargs):
        return function(*args, **kwargs)

    del same.__wrapped__  # or tyro would look through to the original
    shown = signature(function)
    parameters = [
        parameter.replace(annotation=Annotated[parameter.annotation, tyro.conf.arg(metavar=parameter.name.upper())])
        if parameter.kind is Parameter.POSITIONAL_ONLY
        else parameter
        for parameter in shown.parameters.values()
    ]
    same.__signature__ = shown.replace(parameters=parameters)
    same.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return same


def _overview(points: Mapping[str, EntryPoint]) -> str:
    lines = []
    for name, point in points.items():
        try:
            functions = flatten(name, point.load())
        except Exception as error:  # a broken add-on must not take the others' help away
            lines.append((name, f"(cannot be loaded: {type(error).__name__}: {error})"))
            continue
        lines += [(typed, (function.__doc__ or "").strip().split("\n")[0]) for typed, function in functions.items()]
    width = max((len(typed) for typed, _ in lines), default=0)
    return "\n".join(
        [
            "usage: mechvis COMMAND [flags]",
            "",
            "Mechanistic interpretability for vision transformers and CLIP.",
            "",
            *(f"  {typed:{width}}  {summary}" for typed, summary in lines),
            "",
            "mechvis COMMAND --help lists the flags of a command. --debug anywhere shows the traceback of an error.",
        ]
    )


def _unknown(what: str, given: str, valid: list[str], more: str) -> int:
    names = ", ".join(nearest(given, valid)) or "none"
    _complain(f"error: unknown {what} {given!r}. Nearest: {names}. `{more}` lists them all.")
    return 2


def _complain(text: str) -> None:
    sys.stderr.write(f"{text}\n")


@contextmanager
def _terminal() -> Iterator[None]:
    """What suits a terminal and no library: warnings and log lines as plain lines, other people's chatter off."""

    def show(message, category, filename, lineno, file=None, line=None):
        _complain(f"warning: {message}")

    # Hugging Face libraries read these when they are imported, which happens inside the command.
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    before = {name: os.environ.get(name) for name in quiet}
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    loggers = [logging.getLogger(name) for name in ("mechvis", *SIBLINGS)]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.showwarning = show
        for name, value in quiet.items():
            os.environ.setdefault(name, value)
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.removeHandler(handler)
                logger.setLevel(level)
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)


if __name__ == "__main__":
    sys.exit(main())
