"""Tensors out of other people's `.pt` files, without running anything that is in them.

A pickle is a program: loading it with Python's own module runs whatever it names. Here its instructions are read one by
one (`pickletools.genops` takes them apart and runs none) by a machine that knows how to build plain values, tensors,
and nothing else:

1. A `.pt` file is a zip archive: `data.pkl` with the structure, `data/<key>` with the bytes of each storage.
2. A name (`torch._utils._rebuild_tensor_v2`, `collections.OrderedDict`, ...) is looked up in a list of ours. It is
   never imported. Classes of the libraries that we read (`vit_prisma`, `overcomplete`, modules of torch) become
   :class:`Inert`: a name with the attributes that were stored. Every other name ends the reading, with advice.
3. A tensor's offset, sizes and strides are checked against its storage, and it is copied: two views of one storage come
   out as two tensors (in files of saev, one used to overwrite the other).

So the worst that a hostile file can do is to be refused.
"""

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechvis.errors import BadData, MechvisError, StoreCorrupt
from sae.formats.machine import Inert, Machine, Storage

LARGEST_PROGRAM = 64 * 2**20
"""Bytes of `data.pkl` that are read at most: it holds structure, not numbers."""


def load_pt(source: str | Path | bytes, *, name: str | None = None) -> Any:
    """What a `.pt` file holds: dicts, lists, numbers, texts, tensors, and :class:`Inert` objects.

    Args:
        source: the file, or its bytes.
        name: what to call it in errors.

    Raises:
        BadData: it names something that is not on the list, so it could run code; or it is of torch before 1.6.
        StoreCorrupt: no such file, not a zip archive, truncated, or it contradicts itself.
    """
    name = name or (str(source) if not isinstance(source, bytes) else "the file")
    try:
        with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as archive:
            return _read(archive, name)
    except MechvisError:
        raise
    except zipfile.BadZipFile as error:
        raise StoreCorrupt(
            f"{name} is not a .pt file of torch 1.6 or later (those are zip archives), or it is truncated. If torch "
            "wrote it, open it where you trust it and save it again as safetensors."
        ) from error
    except OSError as error:
        raise StoreCorrupt(f"{name} cannot be read: {error.strerror or error}") from error
    # Anything that instructions in the wrong order can cause in the machine below.
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        RuntimeError,
        OverflowError,
        ArithmeticError,
        EOFError,
        MemoryError,
        NotImplementedError,
        StopIteration,
    ) as error:
        raise StoreCorrupt(f"{name} is damaged, or no .pt file: {type(error).__name__} while it was read.") from error


def tensors_in(found: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, or of a whole module that was stored as an object.

    Raises:
        BadData: there is none.
    """
    if isinstance(found, Inert):
        return dict(_of_module(found, ""))
    if isinstance(found, Mapping):
        for key in ("state_dict", "model_state_dict", "model"):
            if isinstance(found.get(key), Mapping):
                return tensors_in(found[key])
        tensors = {key: value for key, value in found.items() if isinstance(value, Tensor) and isinstance(key, str)}
        if tensors:
            return tensors
    raise BadData("the file holds no state dict: no table from names to tensors.")


def _of_module(module: Inert, prefix: str) -> Iterator[tuple[str, Tensor]]:
    # A module may be reached over several names; depth is bounded, since a file may make a module its own child.
    pending, seen = [(module, prefix)], 0
    while pending:
        inert, prefix = pending.pop()
        seen += 1
        if seen > 10_000:
            raise BadData("the module in the file has more than 10,000 parts.")
        for part in ("_parameters", "_buffers"):
            for key, value in (inert.state.get(part) or {}).items():
                if isinstance(value, Tensor):
                    yield f"{prefix}{key}", value
        for key, value in (inert.state.get("_modules") or {}).items():
            if isinstance(value, Inert):
                pending.append((value, f"{prefix}{key}."))


def _read(archive: zipfile.ZipFile, name: str) -> Any:
    entries = {entry.filename: entry for entry in archive.infolist()}
    programs = [key for key in entries if key == "data.pkl" or key.endswith("/data.pkl")]
    if len(programs) != 1:
        raise StoreCorrupt(f"{name} is a zip archive without a data.pkl, so torch did not write it.")
    root = programs[0][: -len("data.pkl")]
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise BadData(f"{name} is compressed; torch writes its archives without compression. It is not read.")
    if entries[programs[0]].file_size > LARGEST_PROGRAM:
        raise BadData(f"the structure in {name} has more than {LARGEST_PROGRAM:,} bytes. It is not read.")
    if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
        raise BadData(f"{name} was written on a big-endian machine. Save it again as safetensors.")

    def storage(key: str, dtype: torch.dtype) -> Storage:
        data = bytearray(archive.read(f"{root}data/{key}"))
        size = torch.empty((), dtype=dtype).element_size()
        if not data:
            return Storage(torch.empty(0, dtype=dtype))
        if len(data) % size:
            raise StoreCorrupt(f"{name}: storage {key} has {len(data)} bytes, which are no whole numbers of {dtype}.")
        if dtype == torch.bool:
            return Storage(torch.frombuffer(data, dtype=torch.uint8) != 0)
        return Storage(torch.frombuffer(data, dtype=dtype))

    return Machine(name, storage).run(archive.read(programs[0]))
