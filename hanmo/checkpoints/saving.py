"""Writing model folders: complete or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from hanmo.checkpoints.opening import RULES, quiet
from hanmo.errors import CheckpointError
from hanmo.families.base import Family, OpenedModel

SHARD_BYTES = 5_000_000_000
_WEIGHT_FILE = re.compile(r"(model|pytorch_model).*\.(safetensors|bin)(\.index\.json)?")
_SAFETENSORS_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_model(opened: OpenedModel, folder: str | Path) -> Path:
    """Write a model as a folder of ours: weights, configuration, tokenizer and rule files.

    What else lies in an existing folder stays there. Until everything is written the old content is untouched.

    Raises:
        CheckpointError: the folder cannot be written (a full disk), and nothing has changed.
    """
    with new_folder(folder, keep=True) as draft:
        with quiet():
            opened.network.save_pretrained(draft, max_shard_size=SHARD_BYTES)
        opened.tokenizer.save_pretrained(draft)
        save_rules(opened.family, draft)
    return Path(folder)


def save_rules(family: Family, folder: Path) -> None:
    """Copy the score rules' files, where ``open_model`` looks for them."""
    for role, source in family.assets.items():
        target = folder / RULES / family.rule_files[role]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


@contextlib.contextmanager
def new_folder(folder: str | Path, keep: bool = False) -> Iterator[Path]:
    """A folder to write to that takes its real name when the block ends without an error, and vanishes otherwise.

    Args:
        keep: what an existing folder of that name holds beside weights and the files written anew is kept.
    """
    folder = Path(folder)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        for file in draft.rglob("*"):
            _flush(file)
        _replace(folder, draft, keep)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {error}; nothing has been changed") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _flush(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _replace(folder: Path, draft: Path, keep: bool) -> None:
    if not folder.exists():
        draft.rename(folder)
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file; give a folder")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    folder.rename(old)
    draft.rename(folder)
    if keep:
        for item in old.iterdir():
            if not (folder / item.name).exists() and not _WEIGHT_FILE.fullmatch(item.name):
                item.rename(folder / item.name)
    shutil.rmtree(old)


Plan = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


def write_sharded(folder: Path, plan: Plan, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write tensors, one at a time, as model.safetensors or as shards with an index.

    Args:
        plan: shape and dtype of every tensor in the order in which ``tensors`` yields them.
    """
    shards: list[dict[str, tuple[tuple[int, ...], torch.dtype]]] = [{}]
    filled = 0
    for name, (shape, dtype) in plan.items():
        size = _bytes(shape, dtype)
        if filled and filled + size > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = (shape, dtype)
        filled += size
    source = iter(tensors)
    if len(shards) == 1:
        write_safetensors(folder / "model.safetensors", shards[0], source)
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard, source)
        weight_map.update(dict.fromkeys(shard, file))
    total = sum(_bytes(shape, dtype) for shape, dtype in plan.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_safetensors(path: Path, plan: Plan, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Write the next ``len(plan)`` tensors to one file; at any time one of them is in memory.

    The safetensors library wants all of a file's tensors at once, which for conversions to another dtype is a
    second copy of the model.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, dtype) in plan.items():
        end = offset + _bytes(shape, dtype)
        header[name] = {"dtype": _SAFETENSORS_DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for expected, (shape, dtype) in plan.items():
            name, tensor = next(tensors)
            assert (name, tuple(tensor.shape), tensor.dtype) == (expected, shape, dtype), f"{name} is not as planned"
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize
