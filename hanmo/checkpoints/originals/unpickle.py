"""Reads files of weights as data: nothing that a file contains is ever run.

``.pt`` and ``.bin`` files are pickles, that is, programs. torch's restricted unpickler (``weights_only``) reads them; it
accepts tensors, plain containers and the names in ``_allowed``. A file with any other name is refused, and the name
reported.
"""

import argparse
import contextlib
import pathlib
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hanmo.checkpoints.originals.archives import ArchiveError, read_archive
from hanmo.checkpoints.originals.pickle_scan import ClaimError, Claims, check_content, full_name, scan_pickle
from hanmo.errors import CheckpointError, without_advice

_OF_TORCH = {  # names outside torch that its restricted reader accepts
    *("collections.OrderedDict", "collections.Counter", "_codecs.encode"),
    *("builtins.bytearray", "builtins.set", "builtins.complex"),
}
# What trainers pickle beside weights: loss scalers, kinds of layers and models, settings. None of it is run.
_OF_TRAINERS = re.compile(r"(megatron|apex|deepspeed|fp16)(\.\w+)+")
_PLAIN_NUMPY = re.compile(r"[<>=|]?(b1|[iuf][1248]|f16|c8|c16)")


class _Dtype:
    """Stands in for ``numpy.dtype``: plain numbers only. A real one built by a pickle may point into memory."""

    def __init__(self, kind: str | bytes, *_: Any):
        self.kind = kind.decode("ascii") if isinstance(kind, bytes) else kind
        if not _PLAIN_NUMPY.fullmatch(self.kind):
            raise pickle.UnpicklingError(f"numpy array of {self.kind!r}: only plain numbers are read")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order in ("<", ">"):
            self.kind = order + self.kind.lstrip("<>=|")

    def __reduce__(self) -> Any:
        return np.dtype(self.kind).__reduce__()


class _Array:
    """Stands in for ``numpy.ndarray``; written again, it is an ordinary array."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        data = data.encode("latin-1") if isinstance(data, str) else data
        self.array = np.frombuffer(data, _numpy(dtype)).reshape(shape, order="F" if fortran else "C").copy()

    def __reduce__(self) -> Any:
        return self.array.__reduce__()


def _numpy(dtype: Any) -> np.dtype[Any]:
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("numpy array without a dtype")
    return np.dtype(dtype.kind)


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, data: bytes | str) -> Any:
    return np.frombuffer(data.encode("latin-1") if isinstance(data, str) else data, _numpy(dtype))[0]


class _Path(pathlib.PurePosixPath):
    """Stands in for ``pathlib.PosixPath`` on every system; written again, it is one."""

    def __reduce__(self) -> Any:
        return pathlib.PosixPath, self.parts


class _Inert:
    """Stands in for a value of a trainer's own class or enumeration; written again, it is a dict of its values."""

    def __new__(cls, *value: Any) -> Any:
        made = super().__new__(cls)
        vars(made).update({"value": value[0]} if value else {})  # of an enumeration
        return made

    def __reduce__(self) -> Any:
        return dict, (), None, None, iter(vars(self).items())


def _allowed(asked: Iterable[str] = ()) -> list[Any]:
    """What a file that asks for these names may have beyond torch's own list, as (stand-in, name)."""
    allowed: list[Any] = [
        (argparse.Namespace, "argparse.Namespace"),
        (lambda *_: {}, "collections.defaultdict"),  # whose factory would be code
        (dict, "builtins.dict"),
        (list, "builtins.list"),
        (int, "builtins.int"),
        (float, "builtins.float"),
        (lambda: b"", "builtins.bytes"),  # protocol 2 calls it for empty ones; others: _codecs.encode
        (_Path, "pathlib.PosixPath"),
        (_Path, "pathlib._local.PosixPath"),
        (_Array, "numpy.ndarray"),
        (_Dtype, "numpy.dtype"),
    ]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed += [(_reconstruct, f"{module}._reconstruct"), (_scalar, f"{module}.scalar")]
    return allowed + [(_Inert, name) for name in asked if _OF_TRAINERS.fullmatch(name)]


def read_pickle(path: Path) -> Any:
    """A ``torch.save`` file as data, its tensors on the CPU, memory-mapped if its format permits.

    CheckpointError if it is empty, truncated, not a checkpoint, needs code, or claims more than it holds.
    """
    is_zip, claims = sniff(path).startswith(b"PK"), Claims()
    try:
        with warnings.catch_warnings():
            # "protocol 4 may not be supported": then it fails, with a reason; classes of storages are deprecated
            warnings.simplefilter("ignore")
            # Files from before torch 1.6 are not zip archives and cannot be mapped; neither can compressed ones.
            mapped = _check_archive(path, claims) if is_zip else _check_stream(path, claims)
            with torch.serialization.safe_globals(_allowed(claims.names)):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        check_content(content, path.stat().st_size)
        return content
    except Exception as error:  # a malformed file can make the reader fail in any way
        raise CheckpointError(f"{path}: {_reason(error, path, is_zip)}") from error


def _check_archive(path: Path, claims: Claims) -> bool:
    """Whether the archive's members can be memory-mapped; raises ArchiveError or ClaimError if it must not be read."""
    archive = read_archive(path)
    with archive.open("data.pkl") as file:
        scan_pickle(BytesIO(file.read()), claims)
    claims.check_copies(path.stat().st_size)
    for storage in claims.storages.values():
        info = archive.members.get(f"data/{storage.key}")
        if info is None:  # torch would also accept a name in another case
            raise ClaimError(f"names bytes that it does not hold (storage {storage.key})")
        if info.file_size != storage.nbytes:
            claim = f"{storage.numel:,} numbers of {storage.dtype}, that is {storage.nbytes:,} bytes"
            raise ClaimError(f"says that storage {storage.key} is {claim}, but holds {info.file_size:,}")
    return archive.stored


def _check_stream(path: Path, claims: Claims) -> bool:
    """As ``_check_archive``, for the format before torch 1.6: several pickles, then the bytes of all storages."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(1) != b"\x80":
            raise ClaimError("is no pickle")
        file.seek(0)
        complete = all(scan_pickle(file, claims) for _ in ("magic number", "protocol", "system", "content"))
        last = Claims()
        complete = complete and scan_pickle(file, last)
    claims.check_copies(size)
    claimed = sum(storage.nbytes for storage in claims.storages.values())
    if claimed > size:
        raise EOFError(f"its tensors claim {claimed:,} bytes")
    if complete and (absent := sorted(claims.storages.keys() - last.texts)):
        raise ClaimError(f"names bytes that it does not hold (storage {absent[0]})")
    return False


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, memory-mapped on the CPU."""
    sniff(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        size = f"{path.stat().st_size:,} bytes"
        raise CheckpointError(f"{path}: damaged or cut short ({size}): {error}; copy or download it again") from error


def sniff(path: Path) -> bytes:
    """The first bytes of a file; raises CheckpointError if it can hold no weights: missing, empty, a web page."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(256)
    again = "download the file itself again"
    if not start:
        raise CheckpointError(f"{path}: the file is empty (0 bytes); {again}")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a Git LFS pointer, not the weights; run `git lfs pull` in its repository")
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path}: a web page, not weights (a failed download?); {again}")
    if text.startswith(b"{"):
        raise CheckpointError(f"{path}: JSON text, not weights (an error message saved as a file?); {again}")
    return start


_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}


def _reason(error: Exception, path: Path, is_zip: bool) -> str:
    message = str(error)
    asked = re.search(r"GLOBAL (\S+)", message)
    name = asked[1] if asked else "" if is_zip else _first_global(path)
    if name:
        name = name if "." in name else f"builtins.{name}"
        return f"asks for {name}, which is code; refused: hanmo never runs code from a checkpoint"
    with path.open("rb") as file:
        start = file.read(8)
    if not start.startswith((b"PK", b"\x80")):
        return f"not a checkpoint that torch wrote: it starts with {start!r}"
    if isinstance(error, EOFError) or "unexpected EOF" in message or (is_zip and not _has_zip_index(path)):
        return f"cut short: it ends after {path.stat().st_size:,} bytes; copy or download it again"
    if isinstance(error, ArchiveError | ClaimError):
        return f"not as torch writes checkpoints, and refused: it {message}"
    if "TorchScript" in message:
        return "a TorchScript archive, which is code; refused: hanmo never runs code from a checkpoint"
    reason = message.split("WeightsUnpickler error:")[-1].strip().split("\n")[0]
    if reason.startswith("Unsupported operand ") and (form := _OPCODES.get(chr(int(reason.split()[-1])))):
        return (
            f"damaged, or pickled in a form that torch's restricted reader lacks ({form.name} of protocol {form.proto}); "
            "in the program that it comes from, load it and save it again: torch.save of Python 3, without pickle_protocol"
        )
    return f"damaged, or not a checkpoint that torch wrote: {without_advice(reason) or type(error).__name__}"


def _has_zip_index(path: Path) -> bool:
    """Whether a zip archive's list of contents, which stands at its end, is there."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True  # there, but damaged


def _first_global(path: Path) -> str:
    """The first name in a plain pickle that is not allowed, for the message; "" if there is none."""
    allowed = {name for _, name in _allowed()} | _OF_TORCH
    strings: list[str] = []
    memo: list[str] = []
    with contextlib.suppress(ValueError), path.open("rb") as file:  # ValueError: not a pickle to its end
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name in ("BINGET", "LONG_BINGET") and isinstance(argument, int) and argument < len(memo):
                argument = memo[argument]
            if isinstance(argument, str):
                strings = [*strings[-1:], argument]
            if opcode.name == "MEMOIZE":
                memo.append(strings[-1] if strings else "")  # correct for strings, the only values looked up
            if opcode.name in ("GLOBAL", "STACK_GLOBAL"):
                module, name = strings if opcode.name == "STACK_GLOBAL" else str(argument).split(" ", 1)
                name = full_name(module, name)
                if name not in allowed and not name.startswith("torch.") and not _OF_TRAINERS.fullmatch(name):
                    return name
    return ""
