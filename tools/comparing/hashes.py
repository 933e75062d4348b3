"""What two checkouts made, as named facts: each a short text that is the same only where every bit is the same."""

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

# Left out because they differ from run to run, or hold nothing that was computed.
FILES = {
    "*.html": "pages, whose looks may change; their figures stand in the files beside them",
    "events.out.tfevents.*": "TensorBoard's copy of the metrics, with the time",
    "training_args.bin": "settings, as a pickle of classes that may have other names",
    "run.lock": "the process that holds the folder",
}
FIELDS = {
    "time": "when a step was logged",
    "seconds": "how long something took",
    "commit": "which checkout made it",
    "rollout_share": "the share of the time that replies took",
    "train_runtime": "how long the training took",
    "train_samples_per_second": "speed",
    "train_steps_per_second": "speed",
}


def digest(value: Any) -> str:
    """A tensor's or array's dtype, shape and bytes as a hash; a number's repr; containers item by item.

    Of anything else only the name of its type: a repr may hold an address in memory.
    """
    hasher = hashlib.sha256()
    _feed(hasher, value)
    return hasher.hexdigest()[:24]


def _feed(hasher: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        value = value.detach()
        if value.layout == torch.strided:
            value = value.cpu().resolve_conj().resolve_neg().contiguous()
            hasher.update(f"{value.dtype} {tuple(value.shape)} ".encode())
            hasher.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            hasher.update(f"{value.layout} ".encode())
            _feed(hasher, value.to_dense())
    elif isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        hasher.update(f"numpy {value.dtype} {value.shape} ".encode())
        hasher.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        hasher.update(f"mapping {len(value)} ".encode())
        for key, item in value.items():
            _feed(hasher, key)
            _feed(hasher, item)
    elif isinstance(value, list | tuple | np.ndarray):
        hasher.update(f"list {len(value)} ".encode())
        for item in value:
            _feed(hasher, item)
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        hasher.update(f"{type(value).__name__} {value!r} ".encode())
    else:
        hasher.update(f"{type(value).__name__} ".encode())


def facts(folder: Path) -> dict[str, str]:
    """Everything in a folder but what ``FILES`` names: file and tensor, file and field, or file -> what it is."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(path.match(pattern) for pattern in FILES):
            name = path.relative_to(folder).as_posix()
            found |= {f"{name}: {part}" if part else name: value for part, value in _parts(path)}
    return found


def _parts(path: Path) -> Iterator[tuple[str, str]]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                yield name, digest(file.get_tensor(name))
    elif path.suffix in (".pt", ".pth", ".bin", ".ckpt") and zipfile.is_zipfile(path):
        # Made a moment ago by code that was run: this pickle may do what that code may do.
        yield from leaves(torch.load(path, map_location="cpu", weights_only=False))
    elif path.suffix == ".json":
        yield from leaves(json.loads(path.read_text(encoding="utf-8")))
    elif path.suffix == ".jsonl":
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for part, value in leaves(json.loads(line)):
                yield f"{number} {part}".strip(), value
    elif path.suffix == ".md":
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.startswith(tuple(f"- {name}: " for name in FIELDS)):
                yield str(number), line
    else:
        yield "", hashlib.sha256(path.read_bytes()).hexdigest()[:24]


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(name of a leaf, what it is): of numbers and short texts themselves, of anything else a hash."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in FIELDS:
                yield from leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        for place, item in enumerate(value):
            yield from leaves(item, f"{name}[{place}]")
    elif value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) < 60):
        yield name, repr(value)
    else:
        yield name, digest(value)
