"""The log of a run: one JSON object per line, always written, readable while the run goes on."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechvis.errors import OutputNotWritable

if TYPE_CHECKING:
    import polars as pl

NAME = "log.jsonl"
Tracker = Callable[[Mapping[str, Any]], None]
"""Called with every line: another place to log to (`wandb_tracker`)."""


class Log:
    """Lines of a run; kept in memory, and in a file if there is a folder."""

    def __init__(self, folder: Path | None, trackers: tuple[Tracker, ...] = ()):
        self.path = None if folder is None else folder / NAME
        self.lines: list[dict[str, Any]] = []
        self._trackers = trackers

    def resume(self, lines: int) -> None:
        """Keep the first lines: what a run wrote after its last checkpoint comes again."""
        if self.path is None or not self.path.exists():
            return
        kept = self.path.read_text().splitlines()[:lines]
        self.lines = [json.loads(line) for line in kept]
        self._write("".join(f"{line}\n" for line in kept), "w")

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a line.

        Raises:
            OutputNotWritable: the disk is full, or the folder is gone.
        """
        self.lines.append(dict(line))
        if self.path is not None:
            self._write(json.dumps(line) + "\n", "a")
        for tracker in self._trackers:
            tracker(line)

    def table(self) -> "pl.DataFrame":
        """All lines as a table."""
        import polars as pl

        return pl.DataFrame(self.lines, infer_schema_length=None)

    def _write(self, text: str, mode: str) -> None:
        try:
            with self.path.open(mode) as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputNotWritable(f"cannot write the log {self.path}: {error.strerror or error}") from error


def wandb_tracker(**settings: Any) -> Tracker:
    """A tracker that sends every line to Weights & Biases.

    Args:
        settings: of `wandb.init`.

    Raises:
        MissingPackage: wandb is not installed.

    Example:
        >>> sae.train(data, TopK(n_latents=512, k=8), trackers=[wandb_tracker(project="saes")])     # doctest: +SKIP
    """
    try:
        import wandb
    except ImportError as error:
        from mechvis.errors import MissingPackage

        raise MissingPackage("wandb is not installed: pip install 'mechvis[track]'.") from error
    run = wandb.init(**settings)

    def track(line: Mapping[str, Any]) -> None:
        job = line.get("job", "")
        run.log({f"{job}/{k}" if job else k: v for k, v in line.items() if k not in ("job", "step")}, step=line["step"])

    return track
