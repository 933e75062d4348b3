"""Finds the files of a checkpoint and maps their tensors by name, whatever the container; only indexes are read.

megatron      a tracker file and ITERATION/mp_rank_RR_model_states.pt, one file per tensor-parallel rank
megatron-lm   a tracker file and iter_ITERATION/mp_rank_RR/model_optim_rng.pt, likewise; tensors in nested dicts
bin           pytorch_model.bin, or its shards with an index
safetensors   model.safetensors, or its shards with an index
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hanmo.checkpoints.originals.unpickle import read_pickle, read_safetensors, sniff
from hanmo.errors import CheckpointError
from hanmo.families.untrusted import check_counts
from hanmo.files import plain_name, read_json

TRACKER = "latest_checkpointed_iteration.txt"
TRACKERS = (TRACKER, "latest")  # the second is DeepSpeed's, used only if the first is missing
_TAG = re.compile(r"(?:iter_|global_step)?([0-9]{1,19})")  # of an iteration
_RANK_FILE = re.compile(r"mp_rank_(\d{2,})_model_states( ?\(\d+\))?\.pt")  # a browser numbers what it loads again
_SHARDED = "zero_pp_rank_*_model_states.pt"  # DeepSpeed's, of ZeRO's third stage
_RANK_FOLDER = re.compile(r"mp_rank_(\d{2,})")
_NESTED_FILE = "model_optim_rng.pt"
NESTED = "megatron-lm"
ROWS = "vocabulary_rows"  # beside the weights: how many vocabulary rows are tokens, not padding
COMPUTED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # dtypes of networks
_STORED = (*COMPUTED, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
ONE_RANK = ("bin", "safetensors")  # containers whose tensors are not split
RANK_ARGUMENTS = ("tensor_model_parallel_size", "model_parallel_size")  # of Megatron-LM's command line


def rank_file(rank: int, container: str = "megatron") -> str:
    """The name of a rank's file below the iteration's folder, as the original loaders look for it."""
    return f"mp_rank_{rank:02d}/{_NESTED_FILE}" if container == NESTED else f"mp_rank_{rank:02d}_model_states.pt"


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint, memory-mapped."""

    path: Path  # the folder or single file at which they were found
    container: str  # "megatron", "megatron-lm", "bin" or "safetensors"
    files: list[Path]  # in rank or shard order
    ranks: list[dict[str, Tensor]]  # by name: one dict per tensor-parallel rank, a single dict for other containers
    state: dict[str, Any] = field(default_factory=dict)  # the content of a megatron file of rank 0 besides its tensors
    iteration: int | None = None  # of a megatron checkpoint
    config: dict[str, Any] | None = None  # the content of config.json beside the weights

    @property
    def names(self) -> list[str]:
        return list(self.ranks[0])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most numbers, not counting packed ones if there are others."""
        numbers = self.numbers
        return max(numbers, key=lambda dtype: (dtype in COMPUTED, numbers[dtype]))

    def check_dtypes(self, quantized: bool = False) -> None:
        """Raise CheckpointError for numbers that no network of ours computes with, such as FP8, FP4 or complex ones.

        ``quantized``: transformers reads them, as config.json says how they are packed.
        """
        if quantized and "quantization_config" in (self.config or {}):
            return
        known = _STORED if self.dtype in COMPUTED else COMPUTED
        for name, tensor in self.ranks[0].items():
            if tensor.dtype not in known:
                kind = f"numbers of {str(tensor.dtype).removeprefix('torch.')}"
                advice = "hanmo only inspects; take the model in bf16, fp16 or fp32"
                raise CheckpointError(f"{self.path}: {name} holds {kind}, which {advice}")

    @property
    def numbers(self) -> Counter[torch.dtype]:
        """The number of elements, by dtype."""
        counts: Counter[torch.dtype] = Counter()
        for tensor in self.ranks[0].values():
            counts[tensor.dtype] += tensor.numel()
        return counts

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent


def find_weights(path: str | Path) -> Weights:
    """The weights at a folder or file; CheckpointError if they are not there, incomplete or cannot be read."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.is_file():
        if _RANK_FILE.fullmatch(path.name) or path.match(_SHARDED):
            return find_weights(path.parent)
        if path.name == _NESTED_FILE and _RANK_FOLDER.fullmatch(path.parent.name):
            return find_weights(path.parent.parent)
        if path.suffix == ".ckpt" and not sniff(path).startswith((b"PK", b"\x80")):
            raise CheckpointError(_mindspore(path))
        return _one_rank(path, "safetensors" if path.suffix == ".safetensors" else "bin", [path])
    if folder := _iteration_folder(path):
        return _megatron(path, folder)
    for container, stem in (("safetensors", "model.safetensors"), ("bin", "pytorch_model.bin")):
        if (path / stem).is_file():
            return _one_rank(path, container, [path / stem])
        if (index := path / f"{stem}.index.json").is_file():
            return _from_shards(path, container, index)
    raise CheckpointError(_nothing_here(path))


def _one_rank(path: Path, container: str, files: list[Path]) -> Weights:
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_safetensors(file) if container == "safetensors" else _tensors(file, read_pickle(file))
    if not tensors:
        raise CheckpointError(f"{path}: expected tensors by name, but there are none")
    folder = path if path.is_dir() else path.parent
    return Weights(path, container, files, [tensors], config=_config(folder, tensors))


def _from_shards(folder: Path, container: str, index: Path) -> Weights:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map")
    names = sorted({plain_name(name, index) for name in weight_map.values()})
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(f"{index}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing[:8])}")
    weights = _one_rank(folder, container, [folder / name for name in names])
    if absent := [name for name in weight_map if name not in weights.ranks[0]]:
        raise CheckpointError(f"{index}: {absent[0]} and {len(absent) - 1} more are in none of the shards")
    return weights


def _iteration_folder(path: Path) -> Path | None:
    """The folder of rank files, by the tracker file or itself; None if this is no megatron checkpoint."""
    for name in TRACKERS:
        tracker = path / name
        if not tracker.is_file():
            continue
        text = read_tracker(tracker).strip()
        names = tracked_folders(text)
        if not names:
            raise CheckpointError(f"{tracker}: says {text[:40]!r}, expected an iteration above 0 or 'release'")
        folder = next((path / name for name in names if (path / name).is_dir()), None)
        if folder is None:
            here = ", ".join(item.name for item in sorted(path.iterdir()) if item.is_dir())
            lack = f"there is no folder {path / text}; folders here: {here or 'none'}"
            raise CheckpointError(f"{tracker}: names {text}, but {lack}")
        return folder
    return path if _rank_files(path)[1] or any(path.glob(_SHARDED)) else None


def read_tracker(file: Path) -> str:
    """The text of a tracker file, also with the marks of UTF-8 and UTF-16 that editors and shells of Windows write."""
    content = file.read_bytes()
    coding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    return content.decode(coding, errors="replace")


def tracked_folders(text: str) -> tuple[str, ...]:
    """The folder names that a tracker file's text may stand for; empty for any other text."""
    name = text.strip()
    if name == "release":
        return (name,)
    tag = _TAG.fullmatch(name)
    return (name, f"iter_{int(tag[1]):07d}") if tag and int(tag[1]) else ()


def _rank_files(folder: Path) -> tuple[str, dict[int, Path]]:
    """The container, and its files by rank, if any."""
    folders = {int(match[1]): item for item in folder.iterdir() if (match := _RANK_FOLDER.fullmatch(item.name))}
    if nested := {rank: item / _NESTED_FILE for rank, item in folders.items() if (item / _NESTED_FILE).is_file()}:
        return NESTED, nested
    files = sorted(folder.iterdir())  # of two for one rank the unnumbered one is the last
    return "megatron", {int(match[1]): item for item in files if (match := _RANK_FILE.fullmatch(item.name))}


def _megatron(path: Path, folder: Path) -> Weights:
    container, found = _rank_files(folder)
    if not found and (sharded := sorted(folder.glob(_SHARDED))):
        raise CheckpointError(_zero_3(folder, sharded))
    if not found:
        wanted = " or ".join(rank_file(0, kind) for kind in ("megatron", NESTED))
        raise CheckpointError(f"{folder}: holds no {wanted}; {_listing(folder)}")
    states, tensors = {}, {}
    for rank in sorted(found):
        states[rank], tensors[rank] = _split_content(found[rank], read_pickle(found[rank]), container)
    first = states[min(states)]
    claims = [first.get("mp_world_size"), *(getattr(first.get("args"), name, None) for name in RANK_ARGUMENTS)]
    claimed = next((value for value in claims if isinstance(value, int)), None)
    count = max([len(found), max(found) + 1, claimed or 1])
    for rank in range(count):
        if rank not in found:
            name, others = rank_file(rank, container), ", ".join(str(found[r].relative_to(folder)) for r in found)
            raise CheckpointError(f"{folder}: rank {rank} of {count} is missing ({name}); found {others}")
    if claimed and claimed != count:
        raise CheckpointError(f"{folder}: {count} rank files, but they were written for {claimed} ranks")
    stated = {rank: state.get("iteration", state.get("total_iters")) for rank, state in states.items()}
    iterations = {rank: value if isinstance(value, int) else None for rank, value in stated.items()}
    if len(set(iterations.values())) > 1:
        found_iterations = ", ".join(f"rank {rank}: {iteration}" for rank, iteration in iterations.items())
        raise CheckpointError(f"{folder}: the ranks are of different iterations ({found_iterations})")
    iteration = iterations[0]
    tag = _TAG.fullmatch(folder.name) if folder != path else None
    if tag and iteration is not None and int(tag[1]) != iteration:
        problem = f"the tracker file says iteration {int(tag[1])}, the weights say {iteration}"
        raise CheckpointError(f"{folder}: {problem}; give {folder} itself to open it anyway")
    files, ranks = [found[rank] for rank in range(count)], [tensors[rank] for rank in range(count)]
    config = _config(folder, ranks[0]) or _config(path, ranks[0])
    return Weights(path, container, files, ranks, states[0], iteration, config)


def _split_content(path: Path, content: Any, container: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of a rank's file beside its tensors, and its tensors by name."""
    keys = ["module"] if container == "megatron" else ["model", "language_model"]
    inner, state = content, dict(content) if isinstance(content, dict) else {}
    for key in keys:
        if not isinstance(inner, dict) or not isinstance(inner.get(key), dict):
            held = ", ".join(map(str, inner)) if isinstance(inner, dict) else type(inner).__name__
            raise CheckpointError(f"{path}: has no {'.'.join(keys)!r} with the weights; it holds: {held}")
        inner = inner[key]
    del state[keys[0]]
    if len(keys) > 1 and (beside := {k: v for k, v in content[keys[0]].items() if k != keys[1]}):
        state[keys[0]] = beside
    return state, _tensors(path, _flat(inner))


def _flat(nested: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, the keys joined by dots; a few levels deep, for a file may hold a dict that holds itself."""
    result: dict[str, Any] = {}
    for key, value in nested.items():
        nests = isinstance(value, dict) and value and prefix.count(".") < 4
        result |= _flat(value, f"{prefix}{key}.") if nests else {f"{prefix}{key}": value}
    return result


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected tensors by name, found {type(content).__name__}")
    strangers = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strangers or not content:
        held = f"beside tensors it holds {', '.join(strangers[:8])}" if strangers else "it is empty"
        held += f"; if it is a rank's file, name it {rank_file(0)}" if "module" in strangers else ""
        raise CheckpointError(f"{path}: expected tensors by name, but {held}")
    return dict(content)


def _config(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    path = folder / "config.json"
    if not path.is_file():
        return None
    config = read_json(path)
    check_counts(config, len(tensors), path)
    return config


def _nothing_here(path: Path) -> str:
    inside = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and _iteration_folder(folder) == folder]
    if inside:
        return f"{path}: has no {TRACKER}; give one of its folders of weights: {', '.join(map(str, inside[:8]))}"
    if found := sorted(path.glob("*.ckpt*")):
        return _mindspore(found[0])
    expected = f"model.safetensors, pytorch_model.bin, or {TRACKER} with {rank_file(0)} or {rank_file(0, NESTED)}"
    return f"{path}: no weights here; {_listing(path)}; expected {expected}"


def _zero_3(folder: Path, files: list[Path]) -> str:
    spread = f"a checkpoint of DeepSpeed's ZeRO-3, whose weights are spread over {len(files)} files ({files[0].name})"
    advice = (
        f"join them with the zero_to_fp32.py that DeepSpeed left in {folder.parent}, and give the file that it writes"
    )
    return f"{folder}: {spread}; {advice}"


def _mindspore(path: Path) -> str:
    forms = f"pytorch_model.bin with config.json, or {rank_file(0, NESTED)}"
    advice = f"take the converted form of this model ({forms}); docs/models.md says where they are"
    return f"{path}: a MindSpore checkpoint, which hanmo does not read; {advice}"


def _listing(folder: Path) -> str:
    names = sorted(item.name + "/" * item.is_dir() for item in folder.iterdir())
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"found {', '.join(names[:12])}{more}" if names else "the folder is empty"
