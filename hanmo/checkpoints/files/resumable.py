"""Writes a folder of weights file by file, with a content hash per tensor, so that an interrupted run can resume.

.NAME.partial/      the files finished so far, beside the folder NAME that it becomes
    job.json        the job
    tensors.json    per file: its size and, per tensor, shape, dtype and hash; stays in the finished folder
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hanmo.checkpoints.files.tensor_files import HASH, LazyTensor, Progress, WeightFile, content_hash
from hanmo.checkpoints.originals.weights import Weights, find_weights
from hanmo.checkpoints.save import INDEX, is_no_weights
from hanmo.errors import CheckpointError
from hanmo.files import json_text, read_json, replacing, system_errors, write_text
from hanmo.folders import finish_folder, recover
from hanmo.locks import holding

_JOB = "job.json"


class ResumableFolder:
    """The folder being written, at ``path`` until it is finished; ``files``: the content of its index of hashes."""

    def __init__(self, path: Path, job: dict[str, Any]):
        self.path = path
        self.files = read_index(path / INDEX) or {}
        path.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or any(item.is_symlink() for item in path.rglob("*")):
            raise CheckpointError(f"{path}: holds links, which a conversion never makes; remove it and begin again")
        for half in path.rglob(".*.tmp"):  # of a process that was killed
            half.unlink()
        write_text(path / _JOB, json_text({"job": job}, indent=2) + "\n")

    def write(self, file: WeightFile, progress: Progress) -> None:
        """Write a file of weights and record its hashes, unless an earlier run has finished it."""
        path = self.path / file.name
        if path.is_file() and path.stat().st_size == self.files.get(file.name, {}).get("bytes"):
            progress(bytes_of(file.tensors))
            return
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # copying is memory-bound: a second thread doubled the processor time
        try:
            with replacing(path) as temporary:
                file.write(temporary, progress)
        finally:
            torch.set_num_threads(threads)
        facts = {name: {**_form(tensor), "hash": tensor.digest} for name, tensor in file.tensors.items()}
        self.files[file.name] = {"bytes": path.stat().st_size, "tensors": facts}
        write_text(self.path / INDEX, json_text({"hash": HASH, "files": self.files}) + "\n")


def bytes_of(tensors: dict[str, LazyTensor]) -> int:
    """The bytes that these tensors take in a file; a tensor with several names is stored once."""
    return sum(tensor.nbytes for tensor in set(tensors.values()))


@contextlib.contextmanager
def resumable_folder(target: Path, job: dict[str, Any], *, resume: bool, verify: bool) -> Iterator[ResumableFolder]:
    """A draft folder that becomes ``target`` when the block ends without an error.

    After an error it is removed. With ``resume`` it is kept, and the next call with the same ``job`` (everything that
    determines the content, as JSON) continues it, also after a killed process. ``verify``: read the weights
    again and compare the hashes before the target appears. InUseError if another run writes it; CheckpointError if it
    cannot be written, a file has changed since, or the interrupted job was a different one.
    """
    resolved = Path(os.path.realpath(target))  # also resolves circular links
    path = resolved.with_name(f".{resolved.name}.partial")
    job = json.loads(json.dumps(job))
    try:
        with holding(target):
            recover(resolved)
            _clear_earlier(path, job, resume)
            try:
                with system_errors():
                    yield ResumableFolder(path, job)
                if verify:
                    verify_index(find_weights(path), from_disk=True)
                (path / _JOB).unlink()
                finish_folder(resolved, path, is_no_weights)
            except BaseException:
                if not resume:
                    shutil.rmtree(path, ignore_errors=True)
                raise
    except OSError as error:
        kept = f"; the finished files lie in {path}: --resume continues" if resume else ""
        problem = f"cannot be written: {error.strerror or error}; nothing has been changed"
        raise CheckpointError(f"{target}: {problem}{kept}") from error


def _clear_earlier(path: Path, job: dict[str, Any], resume: bool) -> None:
    """Remove the folder of an interrupted run, unless this one continues it."""
    interrupted = (path / _JOB).is_file()
    if not interrupted or not resume:
        shutil.rmtree(path, ignore_errors=not interrupted)
        return
    before = read_json(path / _JOB).get("job") or {}
    if before != job:
        changed = ", ".join(f"{key} ({before.get(key)!r} then)" for key in job if before.get(key) != job[key])
        advice = "repeat it as it was, or leave out --resume to begin again"
        raise CheckpointError(f"{path}: the interrupted conversion was another one: different are {changed}; {advice}")


def verify_index(weights: Weights, from_disk: bool = False) -> int | None:
    """Compare all weights with the index beside them: the number of tensors; None without an index.

    ``from_disk``: drop the files from the system's cache first. CheckpointError names a tensor that differs.
    """
    index = weights.folder / INDEX
    files = read_index(index)
    if files is None:
        return None
    names = [str(file.relative_to(weights.folder)) for file in weights.files]
    for name, facts in files.items():
        if name not in names:
            raise CheckpointError(f"{index}: lists {name}, which is missing; the files are {', '.join(names)}")
        number = names.index(name)
        path, tensors = weights.files[number], weights.ranks[number if len(weights.ranks) > 1 else 0]
        if from_disk and hasattr(os, "posix_fadvise"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for tensor_name, fact in facts["tensors"].items():
            _compare(path, tensor_name, tensors.get(tensor_name), fact)
    return sum(len(facts["tensors"]) for facts in files.values())


def read_index(index: Path) -> dict[str, dict[str, Any]] | None:
    """The files in an index, by name; None without one, or if it uses another hash; CheckpointError if malformed."""
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


def _form(tensor: Tensor | LazyTensor) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}


def _compare(file: Path, name: str, tensor: Tensor | None, fact: dict[str, Any]) -> None:
    if tensor is None:
        raise CheckpointError(f"{file}: {name} is missing; it was written (see {INDEX})")
    if (found := _form(tensor)) != {key: fact[key] for key in found}:
        raise CheckpointError(f"{file}: {name} is {found}, not as it was written ({fact})")
    if (digest := content_hash(tensor)) != fact["hash"]:
        damage = f"its content hash is {digest}, {INDEX} says {fact['hash']}; the file is damaged"
        raise CheckpointError(f"{file}: {name} is not as it was written: {damage}: convert or copy it again")
