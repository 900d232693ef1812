"""Files that are either the old ones or the new ones, never half of each.

Everything that this library writes goes through here:

1. One file: written beside its place under a temporary name, flushed, `fsync`ed, renamed over the old one, and the
   folder `fsync`ed, so that a crash or a full disk leaves the old file as it was.
2. Several files that belong together (:func:`write_together`): the new data files are written as `name.new`, then the
   manifest with their checksums is replaced (this is the instant in which the new set becomes true), then they get
   their names. :func:`read_together` finds a file under either name, so a crash between the steps loses nothing.
3. Checksums are verified on the very bytes that are then parsed.

:func:`ensure_writable` is for the *start* of a long job: an unwritable place is said before the first forward pass,
not after the last one.
"""

import hashlib
import io
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from mechvis.errors import NotFinite, OutputNotWritable, ResultMismatch, ShapeMismatch, StoreCorrupt

if TYPE_CHECKING:
    import polars as pl

JSON_LIMIT = 256 * 2**20
"""Largest JSON file that is read, in bytes: a manifest is small, and parsing costs many times its size in memory."""


def ensure_writable(folder: str | Path) -> Path:
    """Make `folder` (with its parents) and prove, by writing and removing a small file, that it can be written.

    Returns:
        The folder as a path.

    Raises:
        OutputNotWritable: names the folder and what the system said.

    Example:
        >>> import tempfile
        >>> ensure_writable(tempfile.mkdtemp()).is_dir()
        True
    """
    folder = Path(folder)
    with _as_not_writable(folder, "cannot write into"):
        folder.mkdir(parents=True, exist_ok=True)
        probe, handle = _create_beside(folder / "writable")
        try:
            # An empty file needs no block: a full disk only shows when something is written.
            os.write(handle, b"x")
        finally:
            os.close(handle)
            probe.unlink()
    return folder


@contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file to write to; it takes the place of `path` when the block ends, or leaves no trace if it raises.

    Raises:
        OutputNotWritable: names the file and what the system said.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with replacing(place) as file:
        ...     _ = file.write(b"done")
        >>> place.read_bytes()
        b'done'
    """
    path = Path(path)
    with _as_not_writable(path, "cannot write"):
        if path.is_dir():
            raise IsADirectoryError(21, "there is a folder of this name")
        temporary, handle = _create_beside(path)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            with _as_not_writable(path, "cannot write"):
                file.flush()
                os.fsync(file.fileno())
        with _as_not_writable(path, "cannot write"):
            temporary.replace(path)
            _sync_folder(path.parent)
    except OSError as error:
        # A failing write (disk full) names no file; an error that names another file is the caller's own.
        if isinstance(error, OutputNotWritable) or error.filename not in (None, str(temporary)):
            raise
        raise _not_writable(path, "cannot write", error) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_bytes(path: str | Path, data: bytes) -> str:
    """Write `data` to `path` atomically.

    Returns:
        SHA-256 of the data, in hex.
    """
    with replacing(path) as file:
        file.write(data)
    return checksum(data)


def write_text(path: str | Path, text: str) -> str:
    """Write `text` as UTF-8 to `path` atomically; returns its SHA-256 in hex."""
    return write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> str:
    """Write `value` as readable JSON (sorted keys, two spaces) atomically; returns its SHA-256 in hex.

    Raises:
        NotFinite: NaN or Inf, which JSON cannot say; the message says where.
        ShapeMismatch: something that is not JSON; the message says where and what.
    """
    return write_text(path, json.dumps(plain_json(value), sort_keys=True, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file, strictly: no duplicate keys, no NaN, at most :data:`JSON_LIMIT` bytes.

    Raises:
        StoreCorrupt: the file is missing, unreadable or not such JSON; the message names it.
    """
    path = Path(path)
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise StoreCorrupt(f"{path} has {path.stat().st_size:,} bytes; a manifest has at most {JSON_LIMIT:,}.")
        return json.loads(path.read_bytes().decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except FileNotFoundError as error:
        raise StoreCorrupt(f"{path} does not exist.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise StoreCorrupt(f"{path} cannot be read as JSON: {error}") from error


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, ASCII. Equal values give equal text, so it can be hashed.

    Numpy numbers and arrays become JSON numbers and lists, tuples become lists.

    Raises:
        NotFinite: NaN or Inf; the message says where.
        ShapeMismatch: something that is not JSON; the message says where and what.

    Example:
        >>> canonical_json({"b": (1, 2), "a": np.float32(0.5)})
        '{"a":0.5,"b":[1,2]}'
    """
    return json.dumps(plain_json(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def plain_json(value: Any, where: str = "value") -> Any:
    """`value` made of dict, list, str, int, float, bool and None only; see :func:`canonical_json`."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return plain_json(value.tolist(), where)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotFinite(f"{where} is {value}, which JSON cannot hold. Leave it out or use None.")
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        for key in value:
            # json would turn the keys 1 and "1" into the same text.
            if not isinstance(key, str):
                raise ShapeMismatch(f"{where} has the key {key!r} of type {type(key).__name__}; JSON keys are strings.")
        return {key: plain_json(entry, f"{where}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [plain_json(entry, f"{where}[{index}]") for index, entry in enumerate(value)]
    raise ShapeMismatch(
        f"{where} is a {type(value).__name__}, which JSON cannot hold. "
        "Use dict, list, text, numbers, True, False or None."
    )


def parquet_bytes(table: "pl.DataFrame") -> bytes:
    """The bytes of a Parquet file that holds `table`, for :func:`write_together`."""
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    return buffer.getvalue()


def checksum(data: bytes) -> str:
    """SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def file_checksum(path: str | Path) -> str:
    """SHA-256 of a file's content, in hex, read in pieces.

    Raises:
        StoreCorrupt: the file cannot be read; the message names it.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreCorrupt(f"{path} cannot be read: {error.strerror or error}") from error


_PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_HASHED_NAME = re.compile(r".*-[0-9a-f]{16}")
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}


def safe_name(name: str) -> str:
    """A file name made of `name` that no system misreads: lower-case ASCII, never a path, at most 64 characters.

    A name that is already safe stays as it is. Any other is reduced to its safe characters and gets a piece of its
    hash, so two different names never share a file, also where upper and lower case are the same.

    Example:
        >>> safe_name("scenes-vit")
        'scenes-vit'
        >>> safe_name("../etc/passwd")[:10]
        'etc-passwd'
    """
    plain = _PLAIN_NAME.fullmatch(name) and not name.endswith(".") and not name.endswith(".new")
    # A name that looks as if it carried a hash is hashed as well: else it could equal the safe form of another name.
    if plain and name.split(".")[0] not in _RESERVED and not _HASHED_NAME.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
    readable = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:40].strip("-_")
    return f"{readable or 'name'}-{digest}"


def write_together(folder: str | Path, files: Mapping[str, bytes], manifest_name: str, manifest: Mapping) -> None:
    """Write `files` and a JSON manifest that names them with size and SHA-256; a crash leaves the old set or the new.

    Args:
        folder: made if it is not there.
        files: content by file name, plain names only.
        manifest_name: file name of the manifest, e.g. `result.json`.
        manifest: its content; `files` and `checksum` are added.

    Raises:
        OutputNotWritable: names what could not be written.
    """
    folder = ensure_writable(folder)
    # A set whose last writer died half-way is brought to its end first, else its `.new` files would be overwritten
    # while the manifest that is true now still points to them.
    _settle(folder, manifest_name)
    content = {
        **manifest,
        "files": {name: {"sha256": checksum(data), "bytes": len(data)} for name, data in files.items()},
    }
    content["checksum"] = checksum(canonical_json(content).encode())
    for name, data in files.items():
        write_bytes(folder / f"{name}.new", data)
    write_json(folder / manifest_name, content)
    _settle(folder, manifest_name)


def read_manifest(folder: str | Path, manifest_name: str, check: Callable[[dict], None] | None = None) -> dict:
    """The manifest of files that were written with :func:`write_together`, its own checksum verified.

    Args:
        folder: where it lies.
        manifest_name: its file name.
        check: called with the manifest before its checksum is verified; the place to refuse an unknown format version,
            which may have other rules for checksums.

    Raises:
        StoreCorrupt: missing, unreadable or changed; names the file.
    """
    path = Path(folder) / manifest_name
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        raise StoreCorrupt(f"{path} holds a {type(manifest).__name__}, not a manifest.")
    if check is not None:
        check(manifest)
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("sha256"), str) for entry in files.values()
    ):
        raise StoreCorrupt(f"{path} does not list its files with their checksums.")
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    if manifest.get("checksum") != checksum(canonical_json(rest).encode()):
        raise StoreCorrupt(f"{path} was changed after it was written: its checksum does not fit.")
    return manifest


def only_format(place: Path, form: str, version: int, what: str) -> Callable[[dict], None]:
    """A `check` for :func:`read_manifest`: this format, in a version that this reader knows.

    Args:
        place: the manifest, for the messages.
        form: the `format` that it must have, e.g. `mechvis.circuit`.
        version: the latest version that is understood.
        what: the thing in words, e.g. `a circuit`.

    Returns:
        A function of the manifest that raises ResultMismatch (another format, a later version) or StoreCorrupt
        (a version that is none).
    """

    def check(manifest: dict) -> None:
        if manifest.get("format") != form:
            raise ResultMismatch(
                f"{place.parent} does not hold {what}: its format is {manifest.get('format')!r}, not {form!r}."
            )
        found = manifest.get("version")
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise StoreCorrupt(f"{place} has the format version {found!r}, which is none.")
        if found > version:
            raise ResultMismatch(
                f"{place.parent} was written in format version {found}; this mechvis reads up to {version}. "
                "Upgrade mechvis to read it."
            )

    return check


def read_together(folder: str | Path, manifest: Mapping, name: str) -> bytes:
    """The bytes of the file `name` that `manifest` lists, verified against its checksum.

    Raises:
        StoreCorrupt: missing, truncated or changed; names the file.
    """
    folder = Path(folder)
    entry = manifest["files"].get(name)
    if entry is None:
        raise StoreCorrupt(f"{folder / name} is not listed in its manifest.")
    problem = "is missing"
    # `name.new`: the writer died after the manifest was replaced and before this file got its name.
    for candidate in (folder / name, folder / f"{name}.new"):
        try:
            data = candidate.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StoreCorrupt(f"{candidate} cannot be read: {error.strerror or error}") from error
        if checksum(data) == entry["sha256"]:
            return data
        if problem == "is missing":
            was = entry.get("bytes")
            problem = (
                f"is damaged: {len(data):,} bytes where {was:,} were written"
                if isinstance(was, int) and len(data) != was
                else "is damaged: its checksum does not fit"
            )
    raise StoreCorrupt(f"{folder / name} {problem}. Restore it from a copy or run the command again.")


def _settle(folder: Path, manifest_name: str) -> None:
    """Finish an interrupted :func:`write_together`: give every `.new` file that the manifest means its name."""
    try:
        files = read_manifest(folder, manifest_name)["files"]
    except StoreCorrupt:
        return
    for name, entry in files.items():
        fresh = folder / f"{name}.new"
        if Path(name).name == name and fresh.is_file() and file_checksum(fresh) == entry["sha256"]:
            with _as_not_writable(folder / name, "cannot write"):
                fresh.replace(folder / name)
    _sync_folder(folder)


def _create_beside(path: Path) -> tuple[Path, int]:
    """A new, empty temporary file in the folder of `path`, and its open descriptor."""
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")
    # O_EXCL: never through a link that somebody laid there. 0o666 is cut by the user's umask, as for any other file.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return temporary, os.open(temporary, flags, 0o666)


def _sync_folder(folder: Path) -> None:
    # Windows and some network file systems cannot sync a folder; the rename is atomic there as well.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _as_not_writable(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputNotWritable):
            raise
        raise _not_writable(path, what, error) from error


def _not_writable(path: Path, what: str, error: OSError) -> OutputNotWritable:
    return OutputNotWritable(
        f"{what} {path}: {error.strerror or error}. Choose another place, or free it and run the command again."
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the same key twice in one object")
    return found


def _no_constant(name: str):
    raise ValueError(f"{name} is not JSON")
