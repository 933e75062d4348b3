"""Compares tensors with a second reading of their files, and with the hashes that a conversion has written.

Tensors are read through torch and safetensors, which memory-map files; for the second reading the bytes are read through
the standard library. An error in one implementation, or a file that the two read differently, shows as a difference.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from hanmo.checkpoints.files.tensor_files import HASH, content_hash
from hanmo.checkpoints.originals.archives import read_archive
from hanmo.checkpoints.originals.unpickle import sniff
from hanmo.checkpoints.originals.weights import Weights
from hanmo.checkpoints.save import INDEX
from hanmo.errors import CheckpointError
from hanmo.files import read_json

_BLOCK = 1 << 20  # bytes read at a time; a multiple of every number's size


def verify_reading(weights: Weights) -> None:
    """Compare every tensor's bytes with a second reading of its file; CheckpointError names one that differs.

    Files from before torch 1.6 are not compared.
    """
    if weights.container == "safetensors":
        held = {name: digest for file in weights.files for name, digest in _in_safetensors(file)}
        for name, tensor in weights.ranks[0].items():
            if _digest(tensor.contiguous()) != held.get(name):
                raise CheckpointError(f"{weights.path}: {name} was not read as the file holds it; nothing is written")
        return
    for number, tensors in enumerate(weights.ranks):
        files = [weights.files[number]] if len(weights.ranks) > 1 else weights.files
        if not all(sniff(file).startswith(b"PK") for file in files):
            continue
        members = {digest for file in files for digest in _in_archive(file)}
        checked: set[int] = set()
        for name, tensor in tensors.items():
            storage = tensor.untyped_storage()
            if storage.nbytes() == 0 or storage.data_ptr() in checked:
                continue
            checked.add(storage.data_ptr())
            if _digest(torch.tensor((), dtype=torch.uint8).set_(storage)) not in members:
                raise CheckpointError(f"{weights.path}: {name} was not read as the file holds it; nothing is written")


def _in_archive(path: Path) -> Iterator[str]:
    """The digest of each storage; for a big-endian file one digest for every element size that it may have."""
    archive = read_archive(path)
    swapped = "byteorder" in archive.members and archive.open("byteorder").read(8) == b"big"
    for name, info in archive.members.items():
        if not name.startswith("data/"):
            continue
        for size in (1, 2, 4, 8) if swapped else (1,):
            if info.file_size % size == 0:
                with archive.open(name) as file:
                    yield _digest_of(file, info.file_size, size)


def _in_safetensors(path: Path) -> Iterator[tuple[str, str]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name, facts in header.items():
            if name != "__metadata__":
                begin, end = facts["data_offsets"]
                file.seek(8 + length + begin)
                yield name, _digest_of(file, end - begin)


def _digest_of(file: IO[bytes], length: int, size: int = 1) -> str:
    """The digest of the next ``length`` bytes; ``size`` > 1 reverses the bytes of elements of this size."""
    digest = hashlib.blake2b(digest_size=16)
    while length > 0:
        block = file.read(min(_BLOCK, length))
        if not block:
            break
        if size > 1:
            block = torch.frombuffer(bytearray(block), dtype=torch.uint8).reshape(-1, size).flip(1).numpy().tobytes()
        digest.update(block)
        length -= len(block)
    return digest.hexdigest()


def _digest(tensor: Tensor) -> str:
    return hashlib.blake2b(tensor.detach().reshape(-1).view(torch.uint8).numpy().data, digest_size=16).hexdigest()


def verify_index(weights: Weights, from_disk: bool = False) -> int | None:
    """Read all weights again and compare them with the index beside them: the number of tensors; None without an index.

    Args:
        from_disk: first drop the files from the cache of the operating system, where it can.

    Raises:
        CheckpointError: a tensor is not as it was written; says which.
    """
    index = weights.folder / INDEX
    files = read_index(index)
    if files is None:
        return None
    compared = 0
    names = [str(file.relative_to(weights.folder)) for file in weights.files]
    for name, facts in files.items():
        if name not in names:
            raise CheckpointError(f"{index}: lists {name}, which is not among the files: {', '.join(names)}")
        number = names.index(name)
        tensors = weights.ranks[number if len(weights.ranks) > 1 else 0]
        if from_disk and hasattr(os, "posix_fadvise"):
            with weights.files[number].open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for tensor_name, fact in facts["tensors"].items():
            _compare(weights.files[number], tensor_name, tensors.get(tensor_name), fact)
            compared += 1
    return compared


def read_index(index: Path) -> dict[str, dict[str, Any]] | None:
    """The files in an index of hashes, by name; None if there is no index, or one of another kind of hash.

    Raises CheckpointError if it has another form: the folder is untrusted.
    """
    content = read_json(index) if index.is_file() else {}
    if content.get("hash") != HASH:
        return None
    files: Any = content.get("files")
    listed = isinstance(files, dict) and all(isinstance(one, dict) for one in files.values())
    tensors: list[Any] = [one.get("tensors") for one in files.values()] if listed else [None]
    if not all(isinstance(one, dict) for one in tensors) or not all(
        isinstance(fact, dict) and fact.keys() >= {"dtype", "shape", "hash"} for one in tensors for fact in one.values()
    ):
        raise CheckpointError(f"{index}: not as a conversion writes it; remove it, or convert again")
    return files


def _compare(file: Path, name: str, tensor: torch.Tensor | None, fact: dict[str, Any]) -> None:
    if tensor is None:
        raise CheckpointError(f"{file}: {name} is missing; it was written (see {INDEX})")
    found = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
    if found != {key: fact[key] for key in found}:
        raise CheckpointError(f"{file}: {name} is {found}, not as it was written ({fact})")
    if (digest := content_hash(tensor)) != fact["hash"]:
        damage = f"its content hash is {digest}, {INDEX} says {fact['hash']}; the file is damaged"
        raise CheckpointError(f"{file}: {name} is not as it was written: {damage}: convert or copy it again")
