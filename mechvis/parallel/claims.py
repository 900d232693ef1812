"""Claims: several processes work in one folder and do not do the same piece twice.

Whoever begins a piece creates the file `<piece>.claim` (which only one process can) and touches it every few seconds. A
claim counts while its owner lives. It is void, and anybody may take the piece over, when

1. it was written on this machine and no such process runs here any more, or
2. nobody has touched it for `STALE` seconds, by the clock of the file system and not by that of any machine.

Claims only save work. Two processes that do one piece all the same (a machine that slept, a slow network file system)
write the same bytes, each atomically; nothing waits for a lock, and no result depends on one.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

STALE = 90.0
"""Seconds without a sign of life after which a claim is void; network file systems show a change after up to 60."""
BEAT = 5.0
"""Seconds between signs of life."""


class Claims:
    """The claims of this process in one folder; a context manager that gives back what it still holds."""

    def __init__(self, folder: str | Path, *, stale: float = STALE, beat: float = BEAT):
        self.folder, self.stale, self.beat = Path(folder), stale, beat
        self.held: set[str] = set()
        self._clock: tuple[float, float] | None = None
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None

    def __enter__(self) -> "Claims":
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        for name in list(self.held):
            self.release(name)
        if self._beating is not None:
            self._beating.join()

    def path(self, name: str) -> Path:
        """Where the claim of a piece lies."""
        return self.folder / f"{name}.claim"

    def take(self, name: str, *, force: bool = False) -> bool:
        """Claim a piece; False if somebody who lives has it.

        Args:
            name: the piece.
            force: take it from its owner, whether it lives or not.
        """
        path = self.path(name)
        if not self._create(path):
            # Given back since then, there is nothing to take over: what is there now may be another's, just made.
            there = path.exists()
            if there and not force and not self.void(name):
                return False
            if there:
                logger.warning("%s: its owner %s, taking it over.", name, "is too slow" if force else "is gone")
                with suppress(FileNotFoundError):
                    path.unlink()
            if not self._create(path):
                return False  # another process was quicker
        self.held.add(name)
        self._beat()
        return True

    def release(self, name: str) -> None:
        """Give a claim back."""
        self.held.discard(name)
        self.remove(name)

    def remove(self, name: str) -> None:
        """Remove a claim that has lost its meaning, whoever made it."""
        with suppress(FileNotFoundError):
            self.path(name).unlink()

    def void(self, name: str) -> bool:
        """Is the owner of this claim gone (or is there no claim)?"""
        path = self.path(name)
        with suppress(OSError, ValueError, KeyError, TypeError):  # half written, or not ours: its age decides
            owner = json.loads(path.read_bytes())
            if owner["host"] == socket.gethostname() and not _runs(int(owner["process"])):
                return True
        try:
            return self._now() - path.stat().st_mtime > self.stale
        except FileNotFoundError:
            return True

    def owner(self, name: str) -> str:
        """Who holds a claim, in words."""
        try:
            owner = json.loads(self.path(name).read_bytes())
            return f"process {int(owner['process'])} on {owner['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def _create(self, path: Path) -> bool:
        """Make a claim, with its owner in it from the first instant: one without could only be judged by its age, and
        whoever is killed just then would keep the others waiting for it."""
        if path.exists():
            return False
        owner = json.dumps({"host": socket.gethostname(), "process": os.getpid()})
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        try:
            fresh.write_text(owner)
            os.link(fresh, path)  # unlike a rename it never replaces
        except FileExistsError:
            return False
        except OSError:  # no hard links here
            return _create_plainly(path, owner)
        finally:
            fresh.unlink(missing_ok=True)
        return True

    def _now(self) -> float:
        """The time by the clock that stamps the files here."""
        here = time.monotonic()
        if self._clock is None or here - self._clock[0] > self.beat:
            path = self.folder / f".{socket.gethostname()[:100]}-{os.getpid()}-{threading.get_ident()}.clock"
            try:
                path.touch()
                self._clock = here, path.stat().st_mtime
            finally:
                path.unlink(missing_ok=True)
        measured, then = self._clock
        return then + here - measured

    def _beat(self) -> None:
        if self._beating is None:
            self._beating = threading.Thread(target=self._live, name="mechvis claims", daemon=True)
            self._beating.start()

    def _live(self) -> None:
        while not self._stop.wait(self.beat):
            for name in list(self.held):
                with suppress(OSError):  # given back meanwhile; a file system that fails shows in the work itself
                    os.utime(self.path(name))


def _create_plainly(path: Path, owner: str) -> bool:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write(owner)
    return True


def _runs(process: int) -> bool:
    """Does a process of this number run on this machine?"""
    if os.name == "nt":  # there, os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    with suppress(OSError, IndexError):  # killed, and its parent has not looked yet (Linux)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True
