"""`mechvis sae convert`: a dictionary from one library's files to another's."""

from pathlib import Path
from typing import Literal

from mechvis.cli import say
from mechvis.commands import calls


@calls("sae.formats.convert:convert")
def convert(
    source: Path,
    /,
    *,
    out: Path,
    to: Literal[
        "mechvis",
        "saelens",
        "sparsify",
        "dictionary_learning",
        "visaebench",
        "saev",
        "prisma",
        "openai",
        "crosscoders",
        "overcomplete",
        "circuit_tracer",
    ] = "mechvis",
    format: str | None = None,
    k: int | None = None,
    threshold: float | None = None,
    architecture: str | None = None,
    check: bool = True,
) -> None:
    """Write a dictionary in the format of another library; what that format cannot say is refused with the reason.

    Args:
        source: a folder, or a file.
        out: where to.
        to: the format that is written.
        format: the format that is read; default: told from the files.
        k: active latents per row, where the files do not say (overcomplete).
        threshold: of BatchTopK, where the files do not say (overcomplete).
        architecture: relu, where the files do not say (overcomplete).
        check: read what was written, and compare its output on some rows.
    """
    from sae.formats.convert import convert as run

    done = run(source, out, to=to, format=format, k=k, threshold=threshold, architecture=architecture, check=check)
    d = done.dictionary
    say(f"{source}: {done.source} format, {d.extra_repr()}, rows scaled by {d.architecture.normalise}")
    say(f"{done.place}: {to} format" + (", read back and compared" if check else ""))
