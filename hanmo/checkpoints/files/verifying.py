"""Compares tensors, as torch and safetensors read them, with a second reading by the standard library alone.

An error in one implementation, or a file that the two read differently, shows as a difference.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from hanmo.checkpoints.originals.archives import read_archive
from hanmo.checkpoints.originals.unpickle import sniff
from hanmo.checkpoints.originals.weights import Weights
from hanmo.errors import CheckpointError

_BLOCK = 1 << 20  # bytes read at a time; a multiple of every number's size


def verify_reading(weights: Weights) -> None:
    """Compare every tensor with a second reading of its file; CheckpointError names one that differs."""
    if weights.container == "safetensors":
        held = {name: digest for file in weights.files for name, digest in _in_safetensors(file)}
        for name, tensor in weights.ranks[0].items():
            if _digest(tensor.contiguous()) != held.get(name):
                raise CheckpointError(f"{weights.path}: {name} was not read as the file holds it; nothing is written")
        return
    for number, tensors in enumerate(weights.ranks):
        files = [weights.files[number]] if len(weights.ranks) > 1 else weights.files
        if not all(sniff(file).startswith(b"PK") for file in files):
            continue  # from before torch 1.6
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
    while length > 0 and (block := file.read(min(_BLOCK, length))):
        length -= len(block)
        if size > 1:
            block = torch.frombuffer(bytearray(block), dtype=torch.uint8).reshape(-1, size).flip(1).numpy().tobytes()
        digest.update(block)
    return digest.hexdigest()


def _digest(tensor: Tensor) -> str:
    return hashlib.blake2b(tensor.detach().reshape(-1).view(torch.uint8).numpy().data, digest_size=16).hexdigest()
