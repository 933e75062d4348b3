"""Checks the sizes that a pickle of tensors claims, without building its objects.

torch's restricted unpickler runs no code, but builds every object that a pickle describes: tuples of two references to
such tuples, sixty deep, take a few hundred bytes to store and years to hash; a tensor may claim more elements than the
file has bytes. ``scan_pickle`` follows the opcodes with stand-ins for the objects and refuses such claims. It stops at
an opcode that torch does not know, because torch then refuses the file itself.
"""

import pickle
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch._utils import IMPORT_MAPPING, NAME_MAPPING

from hanmo.checkpoints.originals.archives import SLACK

_UNFOLDED = 10_000_000  # most objects, each counted once per reference
_DEPTH = 100  # most levels of nested containers
_ODD = 10_000  # most keys that are neither strings nor 64-bit numbers: all their hashes can be chosen to collide
_ITEM, _ENTRY = 8, 100  # bytes of a list item and of a dict entry in a copy
_CLAIMED = 16  # most bytes of tensors, or of copies, per byte of the file: a few tensors may share a storage
_REBUILD = "torch._utils._rebuild_tensor"
_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
_CALLED = {  # names in torch that a pickle may call
    *(f"{_REBUILD}{version}" for version in ("", "_v2", "_v3")),
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    _FROM_TYPE,
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "torch.Size",
    "torch.device",
}
_NAMED = {"torch.Tensor", *(f"torch.{name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype))}
_KEYED = {"builtins.set", "builtins.dict", "collections.OrderedDict", "collections.Counter"}  # make keys out of a list
_FIXED = {b"J": 4, b"K": 1, b"M": 2, b"G": 8}
_PUSHED = {b"N": None, b"\x88": True, b"\x89": False, b")": (), **_FIXED}
_CONTAINERS = (b"]", b"}", b"\x8f")
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}


class ClaimError(ValueError):
    """A pickle claims more than its file can hold, or something that no checkpoint needs."""


@dataclass(frozen=True)
class Storage:
    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(slots=True)
class _Made:
    value: Any = None  # the object itself if it is a plain one
    size: int = 1  # number of objects in it, each counted once per reference
    depth: int = 0
    held: int = 0  # bytes that a copy of it takes


@dataclass
class Claims:
    storages: dict[str, Storage] = field(default_factory=dict)  # by key
    texts: set[str] = field(default_factory=set)  # all strings; before torch 1.6 also the keys of storages that follow
    names: set[str] = field(default_factory=set)  # all that it asks for
    unfolded: int = 0  # number of objects, each counted once per reference
    copied: int = 0  # bytes that are passed to classes and functions, which copy them
    odd: int = 0  # number of keys that are neither strings nor 64-bit numbers

    def check_copies(self, size: int) -> None:
        """Raises ClaimError if more bytes are copied than a file of ``size`` bytes explains."""
        if self.copied > _CLAIMED * size + SLACK:
            raise ClaimError(f"asks for copies of {self.copied:,} bytes, but the file has {size:,}")


def full_name(module: str, name: str) -> str:
    """The name that torch's reader looks up: pickles of protocol 2 have ``__builtin__.set``, its name in Python 2."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def scan_pickle(file: BinaryIO, claims: Claims) -> bool:
    """Follow one pickle of a file to its end and add up its claims; False if torch will refuse it.

    ClaimError if it claims more than the file can hold; TypeError if a call has arguments of the wrong kind.
    """
    try:
        _Scanner(file, claims).run()
    except (AssertionError, IndexError, KeyError, EOFError, UnicodeDecodeError, struct.error, pickle.UnpicklingError):
        return False
    return True


class _Scanner:
    """A pickle machine whose objects are ``_Made``; like torch's, it starts a new stack at each mark."""

    def __init__(self, file: BinaryIO, claims: Claims):
        self.file, self.claims = file, claims
        self.stack: list[_Made] = []
        self.marked: list[list[_Made]] = []
        self.memo: dict[int, _Made] = {}

    def run(self) -> None:
        read = self.file.read
        while (code := read(1)) != b".":
            if code in _PUSHED:
                self.stack.append(_Made(self.number(code) if code in _FIXED else _PUSHED[code]))
            elif code in _CONTAINERS:
                self.count(1)
                self.stack.append(_Made())
            elif code == b"q":
                self.memo[read(1)[0]] = self.stack[-1]
            elif code == b"r":
                self.memo[struct.unpack("<I", read(4))[0]] = self.stack[-1]
            elif code in (b"h", b"j"):
                made = self.memo[read(1)[0] if code == b"h" else struct.unpack("<I", read(4))[0]]
                self.count(made.size)
                self.stack.append(made)
            elif code in (b"X", b"U"):
                self.text(code)
            elif code == b"(":
                self.marked.append(self.stack)
                self.stack = []
            elif code in _TUPLES:
                count = _TUPLES[code]
                self.stack[-count:] = [self.tuple_of([self.stack[place] for place in range(-count, 0)])]
            elif code == b"t":
                made = self.tuple_of(self.pop_mark())  # first: it puts the stack before the mark back
                self.stack.append(made)
            elif code == b"a":
                self.stack.pop()
                self.stack[-1].held += _ITEM
            elif code == b"b":
                self.build(self.stack.pop())
            elif code == b"s":
                _, key = self.stack.pop(), self.stack.pop()
                self.enter([key])
            elif code == b"e":
                count = len(self.pop_mark())
                self.stack[-1].held += _ITEM * count
            elif code == b"u":
                self.enter(self.pop_mark()[::2])
            elif code in (b"R", b"\x81"):
                arguments, function = self.stack.pop(), self.stack.pop()
                self.call(function.value, arguments)
                shape = (*arguments.value, ())[0] if function.value == _Global("torch.Size") else None
                self.stack.append(_Made(shape, arguments.size + 1, arguments.depth + 1, arguments.held))
            elif code == b"c":
                self.ask()
            elif code == b"Q":
                self.stack.append(_Made(self.storage(self.stack.pop().value)))
            elif code == b"\x8a":
                self.stack.append(_Made(int.from_bytes(read(read(1)[0]), "little", signed=True)))
            elif code == b"\x80":
                read(1)[0]
            else:
                raise pickle.UnpicklingError("an opcode that torch does not know")

    def number(self, code: bytes) -> int | float:
        data = self.file.read(_FIXED[code])
        if len(data) < _FIXED[code]:
            raise EOFError
        return struct.unpack(">d", data)[0] if code == b"G" else int.from_bytes(data, "little", signed=code == b"J")

    def text(self, code: bytes) -> None:
        length = struct.unpack("<I", self.file.read(4))[0] if code == b"X" else self.file.read(1)[0]
        data = self.file.read(length)
        if len(data) < length:
            raise EOFError
        value = str(data, "utf-8", "surrogatepass") if code == b"X" else data.decode("latin-1")
        self.stack.append(_Made(value, held=length))
        self.claims.texts.add(value)

    def count(self, objects: int) -> None:
        self.claims.unfolded += objects
        if self.claims.unfolded > _UNFOLDED:
            raise ClaimError(f"stands for more than {_UNFOLDED:,} objects, by naming the same ones again and again")

    def enter(self, keys: list[_Made]) -> None:
        """Entries of the dict on top of the stack."""
        self.stack[-1].held += _ENTRY * len(keys)
        self.odd(sum(not _is_ordinary_key(key.value) for key in keys))

    def odd(self, keys: int) -> None:
        self.claims.odd += keys
        if self.claims.odd > _ODD:
            raise ClaimError(f"has more than {_ODD:,} keys that are neither texts nor numbers of 64 bits")

    def build(self, state: _Made) -> None:
        """The state of the object on top of the stack: attributes, or the numbers of an array."""
        assert self.stack
        if isinstance(state.value, tuple) and len(state.value) == 4:  # torch would lay the tensor out anew
            raise ClaimError("holds a tensor whose layout is given twice")
        self.claims.copied += state.held

    def pop_mark(self) -> list[_Made]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def tuple_of(self, items: list[_Made]) -> _Made:
        depth = 1 + max((item.depth for item in items), default=0)
        if depth > _DEPTH:
            raise ClaimError(f"holds tuples in tuples, more than {_DEPTH} deep")
        size, held = 1 + sum(item.size for item in items), sum(item.held + _ITEM for item in items)
        return _Made(tuple(item.value for item in items), size, depth, held)

    def ask(self) -> None:
        module, name = (self.file.readline()[:-1].decode("utf-8") for _ in range(2))
        full = full_name(module, name)
        self.claims.names.add(full)
        if full.startswith("torch.") and full not in _CALLED | _NAMED and not name.endswith("Storage"):
            raise ClaimError(f"asks for {full}, which weights do not need; hanmo reads dense tensors and plain data")
        self.stack.append(_Made(_Global(full)))

    def storage(self, id_: Any) -> Storage | None:
        """The storage of a persistent id: ("storage", class, key, device, number of elements and, before 1.6, a view)."""
        if not isinstance(id_, tuple) or len(id_) < 5 or not isinstance(id_[1], _Global):
            return None
        kind, key, numel = id_[1].name.rpartition(".")[2], id_[2], id_[4]
        if not isinstance(key, str) or type(numel) is not int or not hasattr(torch, kind):
            return None
        dtype = torch.uint8 if kind == "UntypedStorage" else getattr(torch, kind).dtype
        claimed = Storage(key, dtype, numel)
        if self.claims.storages.setdefault(key, claimed) != claimed or numel < 0:
            raise ClaimError(f"says two things of the same bytes (storage {key})")
        view = id_[5] if len(id_) > 5 else None
        return claimed if view is None else Storage(key, dtype, view[2])

    def call(self, function: Any, given: _Made) -> None:
        """Check a call: a tensor must lie inside its storage, and no call may build a large object from small arguments."""
        name = function.name if isinstance(function, _Global) else ""
        arguments = given.value
        if not isinstance(arguments, tuple):  # torch takes a list too, whose content is not followed here
            raise ClaimError(f"calls {name or 'something'} with arguments that no checkpoint gives it")
        self.claims.copied += given.held
        if name in _KEYED:
            self.odd(given.held // _ITEM)
        if name.startswith("torch.") and name not in _CALLED:
            raise ClaimError(f"asks for a new {name}, whose numbers are not in the file")
        if name == _FROM_TYPE:
            self.call(arguments[0], _Made(arguments[2], held=given.held))
        elif name.startswith(_REBUILD):
            _check_inside(arguments)
        elif name == "_codecs.encode" and arguments[1:] not in (("latin1",), ("latin-1",)):
            raise ClaimError("asks for a conversion of text that no checkpoint needs")
        elif name.endswith("bytearray") and any(isinstance(one, int) for one in arguments):
            raise ClaimError("asks for bytes that are not in the file")


def _is_ordinary_key(value: Any) -> bool:
    return isinstance(value, str | bool | float) or (isinstance(value, int) and -(1 << 63) <= value < 1 << 64)


def _check_inside(arguments: Any) -> None:
    if not isinstance(arguments, tuple) or len(arguments) < 4 or not isinstance(arguments[0], Storage):
        raise ClaimError("holds a tensor without a storage")
    storage, offset, shape, strides = arguments[:4]
    numbers = (offset, *(shape or ()), *(strides or ())) if isinstance(shape, tuple) else (None,)
    if any(type(number) is not int or number < 0 for number in numbers) or len(shape) != len(strides or ()):
        raise ClaimError("holds a tensor whose shape is not made of numbers")
    reach = offset + sum((size - 1) * stride for size, stride in zip(shape, strides or (), strict=True)) + 1
    if 0 not in shape and reach > storage.numel:
        raise ClaimError(f"holds a tensor {shape} that reaches to number {reach:,} of a storage of {storage.numel:,}")


def check_content(content: Any, size: int) -> None:
    """Check that visiting the content takes time and memory in proportion to the file's ``size`` in bytes.

    ClaimError if it contains itself, is too deep or too large, or holds a tensor that is not dense and on the CPU.
    """
    done: dict[int, tuple[int, int, int]] = {}  # of finished objects: number of objects, bytes of tensors, depth
    entered: set[int] = set()
    waiting: list[Any] = [content]
    while waiting:
        item = waiting[-1]
        inner = list(_inside(item))
        if id(item) not in entered:
            entered.add(id(item))
            if any(id(one) in entered and id(one) not in done for one in inner):
                raise ClaimError("holds something that holds itself")
            waiting += [one for one in inner if id(one) not in done]
            if waiting[-1] is not item:
                continue
        waiting.pop()
        if isinstance(item, Tensor) and (item.layout != torch.strided or item.device.type != "cpu"):
            raise ClaimError(f"holds a tensor that is {item.layout} on {item.device}, not a dense one in memory")
        facts = [done[id(one)] for one in inner]
        objects, nbytes = 1 + sum(fact[0] for fact in facts), sum(fact[1] for fact in facts)
        depth = 1 + max((fact[2] for fact in facts), default=0)
        if objects > _UNFOLDED or depth > _DEPTH:
            raise ClaimError(f"stands for more than {_UNFOLDED:,} objects, or lies more than {_DEPTH} deep")
        done[id(item)] = objects, nbytes + (item.nbytes if isinstance(item, Tensor) else 0), depth
    claimed = done[id(content)][1]
    if claimed > _CLAIMED * size + SLACK:
        raise ClaimError(f"has tensors that claim {claimed:,} bytes, but the file has {size:,}")


def _inside(item: Any) -> Iterator[Any]:
    if isinstance(item, dict):
        yield from item.keys()
        yield from item.values()
    elif isinstance(item, list | tuple | set):
        yield from item
    if hasattr(item, "__dict__") and not isinstance(item, Tensor | type):
        yield from vars(item).values()
