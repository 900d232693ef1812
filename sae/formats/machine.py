"""Runs the instructions of a pickle that build values and tensors, and none that could do anything else.

A stack machine over what `pickletools.genops` takes apart. It never imports a name and never calls anything that comes
from the file: a name is looked up in lists of ours, and stands for something written here, or for an :class:`Inert`
object, or ends the reading. See `sae.formats.pickles`.
"""

import pickletools
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mechvis.errors import BadData, StoreCorrupt

LIBRARIES = ("vit_prisma", "overcomplete", "sae_training", "dictionary_learning")
"""Packages whose objects are kept as :class:`Inert`; also what lies in `torch.nn.modules`."""
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
class Name:
    """A name that a pickle uses."""

    module: str
    """Where it is said to be."""
    name: str
    """In it."""

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, eq=False)
class Storage:
    """Bytes of a storage and what they are."""

    numbers: Tensor
    """All of them, in a row."""


class Machine:
    """A stack, a memo, and the instructions of a pickle that build values."""

    def __init__(self, name: str, storage: Any):
        self.name, self.storage = name, storage
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[tuple[str, torch.dtype], Storage] = {}

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

    def named(self, module: Any, name: Any) -> Name:
        """A name, if it is on the list; nothing is imported."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise StoreCorrupt(f"{self.name} is damaged: a name that is no text.")
        found = Name(module, name)
        if _known(found):
            return found
        raise BadData(
            f"{self.name} asks for {str(found)[:100]!r}, which can run code, or is unknown here. It is not read. If "
            "you trust it, open it in an environment of its own, and keep the numbers alone: "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
        )

    def built(self, function: Any, arguments: Any) -> Any:
        """What a name on the list gives for some arguments."""
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
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

    def persistent(self, found: Any) -> Storage:
        """A storage: ('storage', type, key, device, count)."""
        if not isinstance(found, tuple) or len(found) != 5 or found[0] != "storage" or not isinstance(found[1], Name):
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
        if not isinstance(storage, Storage) or not whole or len(size) != len(stride):
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


def _inert(name: Name) -> bool:
    package = name.module.split(".")[0]
    return package in LIBRARIES or name.module == "torch.nn.modules" or name.module.startswith("torch.nn.modules.")


def _known(name: Name) -> bool:
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
