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
import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechvis.errors import BadData, MechvisError, StoreCorrupt

LIBRARIES = ("vit_prisma", "overcomplete", "sae_training", "dictionary_learning")
"""Packages whose objects are kept as :class:`Inert`; also what lies in `torch.nn.modules`."""
LARGEST_PROGRAM = 64 * 2**20
"""Bytes of `data.pkl` that are read at most: it holds structure, not numbers."""
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
PLAIN = ("collections.OrderedDict", "builtins.set", "__builtin__.set", "_codecs.encode")
PATHS = ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")


@dataclass(eq=False)
class Inert:
    """An object of a library that is not here: its name and what was stored in it. It can do nothing."""

    name: str
    """Module and class."""
    state: dict[str, Any] = field(default_factory=dict)
    """Attributes."""


@dataclass(frozen=True, eq=False)
class _Name:
    """A name that a pickle uses."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, eq=False)
class _Storage:
    """Bytes of a storage and what they are."""

    numbers: Tensor


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

    def storage(key: str, dtype: torch.dtype) -> _Storage:
        data = bytearray(archive.read(f"{root}data/{key}"))
        size = torch.empty((), dtype=dtype).element_size()
        if not data:
            return _Storage(torch.empty(0, dtype=dtype))
        if len(data) % size:
            raise StoreCorrupt(f"{name}: storage {key} has {len(data)} bytes, which are no whole numbers of {dtype}.")
        if dtype == torch.bool:
            return _Storage(torch.frombuffer(data, dtype=torch.uint8) != 0)
        return _Storage(torch.frombuffer(data, dtype=dtype))

    return _Machine(name, storage).run(archive.read(programs[0]))


class _Machine:
    """A stack, a memo, and the instructions of a pickle that build values."""

    def __init__(self, name: str, storage: Any):
        self.name, self.storage = name, storage
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[tuple[str, torch.dtype], _Storage] = {}

    def run(self, program: bytes) -> Any:
        """The value that the program builds."""
        with warnings.catch_warnings():  # pickletools warns of escapes in old texts that nobody meant
            warnings.simplefilter("ignore", DeprecationWarning)
            for opcode, argument, _ in pickletools.genops(program):
                if opcode.name == "STOP":
                    return self.stack.pop()
                self.step(opcode.name, argument)
        raise StoreCorrupt(f"{self.name} ends in the middle.")

    def step(self, op: str, argument: Any) -> None:
        """One instruction."""
        stack = self.stack
        if op in _VALUES:
            stack.append(argument if _VALUES[op] is None else _VALUES[op]())
        elif op in ("PROTO", "FRAME"):
            pass
        elif op == "MARK":
            self.marks.append(stack)
            self.stack = []
        elif op in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif op == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif op in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif op == "POP":
            stack.pop()
        elif op == "POP_MARK":
            self.above()
        elif op == "DUP":
            stack.append(stack[-1])
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(op[-1])
            if len(stack) < count:
                raise IndexError
            stack[-count:] = [tuple(stack[-count:])]
        elif op in ("TUPLE", "LIST", "FROZENSET"):
            items = self.above()
            made = {"TUPLE": tuple, "LIST": list, "FROZENSET": lambda found: frozenset(map(self.key, found))}[op]
            self.stack.append(made(items))
        elif op == "DICT":
            items = self.above()
            self.stack.append({})
            self.set_items(items)
        elif op == "APPEND":
            item = stack.pop()
            self.last(list).append(item)
        elif op == "APPENDS":
            items = self.above()
            self.last(list).extend(items)
        elif op == "ADDITEMS":
            items = self.above()
            self.last(set).update(map(self.key, items))
        elif op == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self.set_items([key, value])
        elif op == "SETITEMS":
            self.set_items(self.above())
        elif op == "GLOBAL":
            module, _, name = argument.partition(" ")
            stack.append(self.named(module, name))
        elif op == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(self.named(module, name))
        elif op in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(self.built(function, arguments))
        elif op == "NEWOBJ_EX":
            _, arguments, function = stack.pop(), stack.pop(), stack.pop()
            stack.append(self.built(function, arguments))
        elif op == "BUILD":
            state = stack.pop()
            self.fill(stack[-1], state)
        elif op == "BINPERSID":
            stack.append(self.persistent(stack.pop()))
        else:
            raise BadData(f"{self.name} uses the instruction {op}, which no state dict needs. It is not read.")

    # -- values ------------------------------------------------------------------------------------------------------

    def above(self) -> list[Any]:
        """What was put on the stack since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def last(self, kind: type) -> Any:
        """The value on top, which has to be of a kind."""
        if type(self.stack[-1]) is not kind:
            raise StoreCorrupt(f"{self.name} is damaged: a {kind.__name__} was expected.")
        return self.stack[-1]

    def key(self, value: Any) -> Any:
        """A key: plain values only. (The hash of a tuple that holds itself many times over would take for ever.)"""
        if value is not None and type(value) not in (str, bytes, int, float, bool):
            raise BadData(f"{self.name} has a table with a {type(value).__name__} as key. It is not read.")
        return value

    def set_items(self, items: list[Any]) -> None:
        """Pairs into the dict on top."""
        table = self.last(dict)
        if len(items) % 2:
            raise StoreCorrupt(f"{self.name} is damaged: a key without a value.")
        for key, value in zip(items[::2], items[1::2], strict=True):
            table[self.key(key)] = value

    def named(self, module: Any, name: Any) -> _Name:
        """A name, if it is on the list; nothing is imported."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise StoreCorrupt(f"{self.name} is damaged: a name that is no text.")
        found = _Name(module, name)
        if _known(found):
            return found
        raise BadData(
            f"{self.name} asks for {str(found)[:100]!r}, which can run code, or is unknown here. It is not read. If "
            "you trust it, open it in an environment of its own, and keep the numbers alone: "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
        )

    def built(self, function: Any, arguments: Any) -> Any:
        """What a name on the list gives for some arguments."""
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise BadData(f"{self.name} calls something that is not a name on the list. It is not read.")
        where = str(function)
        if where == "torch._utils._rebuild_tensor_v2":
            return self.tensor(*arguments[:4])
        if where == "torch._utils._rebuild_parameter":
            if not isinstance(arguments[0], Tensor):
                raise StoreCorrupt(f"{self.name} is damaged: a parameter that is no tensor.")
            return arguments[0]
        if where == "collections.OrderedDict":
            found: dict[Any, Any] = {}
            for key, value in arguments[0] if arguments else ():
                found[self.key(key)] = value
            return found
        if where == "_codecs.encode":  # how protocol 2 says bytes
            text, coding = arguments
            if not isinstance(text, str) or coding != "latin1":
                raise StoreCorrupt(f"{self.name} is damaged: bytes that are none.")
            return text.encode("latin1")
        if where in ("builtins.set", "__builtin__.set"):
            return set(map(self.key, arguments[0])) if arguments else set()
        if where == "torch.Size":
            return tuple(int(size) for size in arguments[0])
        if where == "torch.device":
            return ":".join(str(self.key(part)) for part in arguments)
        if function.module == "pathlib":
            return "/".join(str(self.key(part)) for part in arguments)
        if _inert(function):
            return Inert(where, {"arguments": arguments} if arguments else {})
        raise BadData(f"{self.name} calls {where[:100]!r}, which is not for calling. It is not read.")

    def fill(self, target: Any, state: Any) -> None:
        """Attributes of an object; those of a dict (the versions in a state dict) are of no use here."""
        if isinstance(target, dict):
            return
        if not isinstance(target, Inert):
            raise BadData(f"{self.name} gives attributes to a {type(target).__name__}. It is not read.")
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                target.state.update({key: value for key, value in part.items() if isinstance(key, str)})

    # -- tensors -----------------------------------------------------------------------------------------------------

    def persistent(self, found: Any) -> _Storage:
        """A storage: ('storage', type, key, device, count)."""
        if not isinstance(found, tuple) or len(found) != 5 or found[0] != "storage" or not isinstance(found[1], _Name):
            raise StoreCorrupt(f"{self.name} is damaged: a storage that is none.")
        dtype, key = STORAGES.get(found[1].name), found[2]
        if dtype is None or not isinstance(key, str) or not key.isalnum():
            raise BadData(f"{self.name} has numbers of type {found[1].name}, which are not read.")
        if (key, dtype) not in self.storages:
            self.storages[key, dtype] = self.storage(key, dtype)
        return self.storages[key, dtype]

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
        """A copy of a view of a storage, inside its bounds."""
        size, stride = tuple(size), tuple(stride)
        whole = all(type(number) is int and number >= 0 for number in (offset, *size, *stride))
        if not isinstance(storage, _Storage) or not whole or len(size) != len(stride):
            raise StoreCorrupt(f"{self.name} is damaged: a tensor of a size that cannot be.")
        count, numbers = 1, storage.numbers
        for length in size:
            count *= length
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if count and (last >= len(numbers) or count > len(numbers)):
            raise StoreCorrupt(f"{self.name} is damaged: a tensor {list(size)} reaches beyond its storage.")
        if not count:
            return torch.empty(size, dtype=numbers.dtype)
        return torch.as_strided(numbers, size, stride, offset).clone(memory_format=torch.contiguous_format)


def _inert(name: _Name) -> bool:
    package = name.module.split(".")[0]
    return package in LIBRARIES or name.module == "torch.nn.modules" or name.module.startswith("torch.nn.modules.")


def _known(name: _Name) -> bool:
    module = name.module
    if module == "torch":
        return name.name in STORAGES or name.name in DTYPES or name.name in ("Size", "device")
    if module == "torch._utils":
        return name.name in ("_rebuild_tensor_v2", "_rebuild_parameter")
    if module == "pathlib":
        return name.name in PATHS
    return str(name) in PLAIN or _inert(name)


_VALUES: dict[str, Any] = {
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE")),
    **dict.fromkeys(("BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8")),
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
"""Instructions that push a value: their argument, or what is made."""
