"""Tables, arrays and facts in one folder, as everything of this library is kept: Parquet, safetensors, and a manifest
with a format, a version and the checksum of every file (`mechvis.files`). Nothing in it can run code."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mechvis import files
from mechvis.errors import StoreCorrupt

MANIFEST = "evaluation.json"
_ARRAYS = "values.safetensors"


def save(
    folder: str | Path,
    form: str,
    version: int,
    *,
    tables: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
) -> Path:
    """Write into `folder`; an older set of files there is replaced as a whole or not at all.

    Args:
        folder: made if it is not there.
        form: the format's name.
        version: the format's version.
        tables: polars frames by name; None is left out.
        arrays: by name.
        facts: what JSON can hold.

    Raises:
        OutputNotWritable: says what and why.
    """
    from safetensors.numpy import save as tensors

    folder = files.ensure_writable(folder)
    content = {f"{name}.parquet": files.parquet_bytes(table) for name, table in tables.items() if table is not None}
    content[_ARRAYS] = tensors({name: np.ascontiguousarray(value) for name, value in arrays.items()})
    manifest = {"format": form, "version": version, "facts": dict(facts)}
    files.write_together(folder, content, MANIFEST, manifest)
    return folder


def load(
    folder: str | Path, form: str, version: int, what: str
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """Tables, arrays and facts that :func:`save` wrote; every file is verified first.

    Raises:
        StoreCorrupt: a file is missing, truncated or changed; names it.
        ResultMismatch: another format, or one of a later version.
    """
    import polars as pl
    from safetensors.numpy import load as tensors

    folder = Path(folder)

    check = files.only_format(folder / MANIFEST, form, version, what)
    manifest = files.read_manifest(folder, MANIFEST, check=check)
    content = {name: files.read_together(folder, manifest, name) for name in manifest["files"]}
    with reading(folder):
        tables = {
            name.removesuffix(".parquet"): pl.read_parquet(io.BytesIO(data))
            for name, data in content.items()
            if name.endswith(".parquet")
        }
        return tables, tensors(content[_ARRAYS]), dict(manifest["facts"])


@contextmanager
def reading(folder: str | Path) -> Iterator[None]:
    """What fails while files with right checksums are read was never one of ours."""
    import polars as pl
    from safetensors import SafetensorError

    errors = (pl.exceptions.PolarsError, pl.exceptions.PanicException, SafetensorError)
    try:
        yield
    except (*errors, KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreCorrupt(f"{folder} does not hold what its manifest says: {error}") from error
