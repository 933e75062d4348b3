"""Writes files of weights as a stream, with a few megabytes in memory whatever the size of the model.

The libraries' own writers take all tensors of a file at once: a second copy of the model where tensors are cut, merged
or converted. A safetensors file is a JSON header and the bytes; a file of torch (1.6 and later) is an uncompressed zip
archive of a pickle that names storages, and of one member per storage.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pickle
import zipfile
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from hanmo.errors import UnsupportedError
from hanmo.files import json_text

_SMALL = 64 << 10  # writes are joined up to this many bytes
_AHEAD = 4  # most writes that wait for the disk
_to_disk = getattr(os, "fdatasync", os.fsync)  # macOS has only the second
BLOCK = 2 << 20  # bytes that are read, converted, hashed and written at a time
_ALIGNMENT = 64  # of tensors in torch's files, so that they can be mapped
_NAMES = {  # dtype -> its name in safetensors, and torch's storage class
    torch.float64: ("F64", torch.DoubleStorage),
    torch.float32: ("F32", torch.FloatStorage),
    torch.float16: ("F16", torch.HalfStorage),
    torch.bfloat16: ("BF16", torch.BFloat16Storage),
    torch.int64: ("I64", torch.LongStorage),
    torch.int32: ("I32", torch.IntStorage),
    torch.int16: ("I16", torch.ShortStorage),
    torch.int8: ("I8", torch.CharStorage),
    torch.uint8: ("U8", torch.ByteStorage),
    torch.bool: ("BOOL", torch.BoolStorage),
}

# xxhash comes with hanmo[train], through datasets.
HASH = "xxh3_64" if importlib.util.find_spec("xxhash") else "blake2b_64"

Progress = Callable[[int], None]  # called with the bytes written since the last call


def _names(dtype: torch.dtype) -> tuple[str, Any]:
    if dtype not in _NAMES:
        written = ", ".join(map(str, _NAMES))
        raise UnsupportedError(f"a tensor of {dtype}, which hanmo does not write; it writes {written}")
    return _NAMES[dtype]


def _new_digest() -> Any:
    if HASH == "blake2b_64":
        return hashlib.blake2b(digest_size=8)
    import xxhash

    return xxhash.xxh3_64()


@dataclass(eq=False)
class LazyTensor:
    """A tensor to write, of known shape and dtype, which is read block by block as it is written."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Callable[[], Iterable[Tensor]]  # its content in order, in this dtype
    digest: str = ""  # content hash; empty until it is written

    @classmethod
    def of(cls, tensor: Tensor) -> LazyTensor:
        return cls(tuple(tensor.shape), tensor.dtype, lambda: in_blocks([tensor]))

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def write(self, file: BinaryIO | Any, progress: Progress) -> None:
        digest, left = _new_digest(), self.nbytes
        for block in self.blocks():
            assert block.dtype == self.dtype, "a block is not of the tensor's dtype"
            data = _bytes(block)
            file.write(data)
            digest.update(data)
            progress(len(data))
            left -= len(data)
        assert left == 0, "the blocks are not the whole tensor"
        self.digest = digest.hexdigest()


def in_blocks(views: Sequence[Tensor], dim: int = 0) -> Iterator[Tensor]:
    """The tensor of these views joined on ``dim``, as blocks of rows of about ``BLOCK`` bytes."""
    if dim == 0 or len(views) == 1:
        for view in views:
            yield from view.split(_rows(view)) if view.dim() else (view,)
        return
    rows = _rows(*views)
    for start in range(0, len(views[0]), rows):
        yield torch.cat([view[start : start + rows] for view in views], dim=dim)


def _rows(*views: Tensor) -> int:
    return max(1, BLOCK * max(1, len(views[0])) // max(1, sum(view.nbytes for view in views))) if views[0].dim() else 1


def content_hash(tensor: Tensor) -> str:
    """The hash that ``LazyTensor.write`` gives a tensor of these bytes."""
    digest = _new_digest()
    for block in in_blocks([tensor]):
        digest.update(_bytes(block))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


class BackgroundFile:
    """A new file that threads write and flush to the disk while the next bytes are computed."""

    # A plain file with one flush at the end took 1.8 to 2.1 times as long to write 300 MB.
    def __init__(self, path: Path):
        self._file = FileIO(path, "wb")
        self._position = 0  # file offset of the next write
        self._small = bytearray()  # bytes before it not yet handed to a thread
        self._writer, self._flusher = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._writes: deque[Future[None]] = deque()
        self._flush: Future[None] | None = None

    def close(self) -> None:
        self._writer.shutdown(cancel_futures=True)
        self._flusher.shutdown()
        self._file.close()

    def write(self, data: Any) -> int:
        """Queue a write; ``data`` must not change until it is done. Raises the error of an earlier write."""
        if len(data) < _SMALL:
            self._small += data
        else:
            self._send_small()
            self._send(self._position, data)
        self._position += len(data)
        if len(self._small) >= _SMALL:
            self._send_small()
        return len(data)

    def _send_small(self) -> None:
        if self._small:
            self._send(self._position - len(self._small), self._small)
            self._small = bytearray()

    def _send(self, position: int, data: Any) -> None:
        if len(self._writes) == _AHEAD:
            self._writes.popleft().result()
        self._writes.append(self._writer.submit(self._write, position, memoryview(data)))

    def _write(self, position: int, data: memoryview) -> None:
        self._file.seek(position)
        while data:
            data = data[self._file.write(data) :]
        if self._flush is None or self._flush.done():
            if self._flush is not None:
                self._flush.result()  # the system reports a failed flush only once
            self._flush = self._flusher.submit(_to_disk, self._file.fileno())

    def flush(self) -> None:
        """Wait until everything is written."""
        self._send_small()
        while self._writes:
            self._writes.popleft().result()
        if self._flush is not None:
            self._flush.result()

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        self._send_small()
        self._position = position
        return position


def write_safetensors(tensors: dict[str, LazyTensor], path: Path, progress: Progress = lambda _: None) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, stored in tensors.items():
        end = offset + stored.nbytes
        header[name] = {"dtype": _names(stored.dtype)[0], "shape": stored.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    with closing(BackgroundFile(path)) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for stored in tensors.values():
            stored.write(file, progress)
        file.flush()


class _Storage(NamedTuple):
    stored: LazyTensor
    key: str


class _Pickler(pickle.Pickler):
    """Pickles tensors as torch does, by the names of their storages, without their bytes."""

    def __init__(self, file: BinaryIO):
        super().__init__(file, protocol=2)  # torch's
        self.storages: list[_Storage] = []

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            value = LazyTensor.of(value)
        if not isinstance(value, LazyTensor):
            return NotImplemented
        storage = _Storage(value, str(len(self.storages)))
        self.storages.append(storage)
        strides = torch.empty(value.shape, device="meta").stride()
        # Shape, strides, and no gradient or hooks; every tensor fills its storage.
        return torch._utils._rebuild_tensor_v2, (storage, 0, value.shape, strides, False, OrderedDict())

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        stored = value.stored
        return "storage", _names(stored.dtype)[1], value.key, "cpu", stored.nbytes // stored.dtype.itemsize


def write_torch(content: Any, path: Path, progress: Progress = lambda _: None) -> None:
    """Write a file for ``torch.load``; ``content`` may hold tensors and lazy tensors, each of which is written once."""
    pickled = BytesIO()
    pickler = _Pickler(pickled)
    pickler.dump(content)
    with closing(BackgroundFile(path)) as file, zipfile.ZipFile(file, "w") as archive:
        for name, text in (("data.pkl", pickled.getvalue()), ("byteorder", b"little"), ("version", b"3\n")):
            with _member(file, archive, name, len(text)) as member:
                member.write(text)
        for storage in pickler.storages:
            with _member(file, archive, f"data/{storage.key}", storage.stored.nbytes) as member:
                storage.stored.write(member, progress)


def _member(file: BackgroundFile, archive: zipfile.ZipFile, name: str, size: int) -> Any:
    """Open a member for writing; its content begins at a multiple of the alignment."""
    info = zipfile.ZipInfo(f"archive/{name}")
    huge = size >= zipfile.ZIP64_LIMIT
    # The local header is 30 bytes, the name, and extra fields: 20 bytes for huge sizes, 4 and the padding for ours.
    begin = file.tell() + 30 + len(info.filename) + 20 * huge + 4
    padding = -begin % _ALIGNMENT
    info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    return archive.open(info, "w", force_zip64=huge)


@dataclass(frozen=True)
class WeightFile:
    name: str  # file name, relative to the folder
    tensors: dict[str, LazyTensor]
    content: dict[str, Any] | None = None  # the whole content of a torch file; None for a safetensors file

    def write(self, path: Path, progress: Progress) -> None:
        if self.content is None:
            write_safetensors(self.tensors, path, progress)
        else:
            write_torch(self.content, path, progress)


def sharded(tensors: dict[str, LazyTensor], limit: int) -> tuple[list[WeightFile], dict[str, str]]:
    """Safetensors files of at most ``limit`` bytes or a single tensor each, and an index if there are several."""
    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    parts = split.filename_to_tensors.items()
    files = [WeightFile(file, {name: tensors[name] for name in names}) for file, names in parts]
    if not split.is_sharded:
        return files, {}
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    return files, {"model.safetensors.index.json": json_text(index, indent=2) + "\n"}
