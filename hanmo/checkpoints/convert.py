"""Converts any form of a model to any other, as a stream of tensors."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hanmo import families
from hanmo.checkpoints.files.resumable import ResumableFolder, bytes_of, resumable_folder
from hanmo.checkpoints.files.tensor_files import LazyTensor, Progress, shards, write_safetensors, write_torch
from hanmo.checkpoints.files.verifying import verify_reading
from hanmo.checkpoints.hub import local_folder
from hanmo.checkpoints.locate import locate
from hanmo.checkpoints.open import DTYPES, RULES_FOLDER, check_vocabulary, dtype_name, find_rule_files, open_tokenizer
from hanmo.checkpoints.originals.weights import find_weights
from hanmo.checkpoints.originals.writer import VALUE_HEAD, Origin, original_form
from hanmo.checkpoints.save import SHARD_BYTES, save_rule_files, write_generation
from hanmo.checkpoints.source import Source, source_of
from hanmo.errors import CheckpointError, ConfigError, unknown
from hanmo.families.base import Family
from hanmo.families.safe_loading import safe_tokenizer
from hanmo.files import json_text, write_text
from hanmo.folders import recover_missing

FORMS = ("hanmo", "hf", "original")


@dataclass(frozen=True)
class _Conversion:
    """The request to ``convert``, with the located source.

    Attributes:
        job: everything that decides the content of the target, as JSON.
    """

    source: Source
    target: Path
    vocab: str | Path | None
    rules: str | Path | None
    dtype: torch.dtype | None
    ranks: int | None
    job: dict[str, Any]
    resume: bool
    verify: bool
    start: Callable[[int], None]
    progress: Progress

    @property
    def path(self) -> Path:
        return self.source.located.path

    def folder(self) -> contextlib.AbstractContextManager[ResumableFolder]:
        return resumable_folder(self.target, self.job, resume=self.resume, verify=self.verify)

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        located, config = self.source.located, self.source.config
        if located.original is None:
            return safe_tokenizer(self.path, located.family.tokenizer_class, config)
        tokenizer = open_tokenizer(located.original, self.vocab)
        if config is not None:
            check_vocabulary(located.family, config.vocab_size, tokenizer, str(self.path))
        return tokenizer

    def family(self) -> Family:
        """The family object of the source, which has a configuration, with its tokenizer and score rules."""
        located, config = self.source.located, self.source.config
        assert config is not None, "only --to original does without a configuration"
        folder = Path(self.rules) if self.rules is not None else self.path / RULES_FOLDER
        rules = find_rule_files(located.family, folder, optional=self.rules is None)
        return located.family(config, self.tokenizer, rules, located.generation)


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str = "hanmo",
    size: str | None = None,
    config: str | Path | None = None,
    vocab: str | Path | None = None,
    rules: str | Path | None = None,
    dtype: str | None = None,
    ranks: int | None = None,
    force: bool = False,
    resume: bool = False,
    verify: bool = False,
    start: Callable[[int], None] = lambda _: None,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Convert a model; the source is never touched, the target is written whole or not at all.

    Args:
        to: "hanmo": our folder, complete, from which the original can be made again bit for bit; "hf": a folder for
            plain transformers; "original": the layout of the family's first programs.
        ranks: tensor-parallel ranks of "original"; default 1.
        force: write into a folder that is not empty; files that are not the model's stay.
        resume: continue an interrupted conversion after its last finished file, and keep the finished files if this
            one is interrupted.
        verify: read the source a second time with another reader, and the written files again from the disk, and
            compare every tensor before the target appears.
        start: called with the number of bytes to write before the work begins.
        progress: called with the number of bytes written since the last call.

    Returns:
        A report: source, target, form, family, dtype, parameters, files, bytes, notes.

    Raises:
        CheckpointError: the source cannot be read, or the target must not or cannot be written.
    """
    path, target = local_folder(source), Path(target)
    if to not in FORMS:
        raise ConfigError(unknown("form", to, FORMS))
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(unknown("dtype", dtype, DTYPES))
    if ranks is not None and (ranks < 1 or to != "original"):
        raise ConfigError(f"--tensor-parallel {ranks}: 1 or more, together with --to original")
    _check_target(path, target, force)
    located = locate(path)
    content = source_of(located, size, config, needs_config=to != "original")
    if verify:
        verify_reading(located.weights)
    options = {"to": to, "size": size, "config": config, "vocab": vocab, "rules": rules, "dtype": dtype, "ranks": ranks}
    job: dict[str, Any] = {key: None if value is None else str(value) for key, value in options.items()}
    job["files"] = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in located.weights.files]
    wanted = DTYPES[dtype] if dtype else None
    conversion = _Conversion(content, target, vocab, rules, wanted, ranks, job, resume, verify, start, progress)
    notes = {"hanmo": _to_hanmo, "hf": _to_hf, "original": _to_original}[to](conversion)
    notes = _losses(content, to) + _rounding(content, wanted) + notes
    if content.absent:
        notes.append(f"the source lacks {', '.join(content.absent)}: written as zeros")
    return _report(content, target, to, notes)


def _check_target(source: Path, target: Path, force: bool) -> None:
    recover_missing(target)
    here, there = (Path(os.path.realpath(path)) for path in (source, target))
    if there == here or there in here.parents or here in there.parents:
        raise CheckpointError(f"{target}: is the source, holds it or lies in it; write to another folder")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise CheckpointError(f"{target}: is not empty; choose another folder, or say --force to write into it")
    if target.is_file():
        raise CheckpointError(f"{target}: is a file; give a folder")


def _to_hanmo(conversion: _Conversion) -> list[str]:
    source, family = conversion.source, conversion.family()
    original, config = source.located.original, family.config
    if family.name != families.TRANSFORMERS:  # whose folders name the class that is to be loaded
        config.architectures = [family.network_class.__name__]
    config.dtype = conversion.dtype or (original.weights.dtype if original else config.dtype)
    tensors = {name: source.tensor(name, conversion.dtype) for name in source.shapes}
    with _safetensors(tensors, conversion) as folder:
        config.save_pretrained(folder.path)
        family.tokenizer.save_pretrained(folder.path)
        save_rule_files(family, folder.path)
        write_generation(family, folder.path)
        if original is not None:
            Origin.of(original).write(folder.path)
    return []


def _to_hf(conversion: _Conversion) -> list[str]:
    source, dtype = conversion.source, conversion.dtype or torch.float32
    export = conversion.family().as_transformers()
    tensors = {theirs: source.scaled(ours, dtype, by) for theirs, (ours, by) in export.tensors.items()}
    with _safetensors(tensors, conversion) as folder:
        return export.write(folder.path, dtype)


def _to_original(conversion: _Conversion) -> list[str]:
    located = conversion.source.located
    form = original_form(conversion.source, conversion.ranks, conversion.dtype)
    conversion.start(sum(bytes_of(file.tensors) for file in form.files))
    with conversion.folder() as folder:
        for file in form.files:
            folder.write(file.name, file.tensors, functools.partial(write_torch, file.content), conversion.progress)
        for name, text in form.texts.items():
            write_text(folder.path / name, text)
        vocabulary = located.path / located.family.tokenizer_class.vocab_files_names["vocab_file"]
        if located.original is None or conversion.vocab is not None or vocabulary.is_file():
            conversion.tokenizer.save_vocabulary(str(folder.path))
    if form.padded is None:
        return []
    return [
        f"{form.ranks} does not divide the vocabulary's {form.padded:,} rows: filled up with zeros, which hanmo leaves "
        "out again"
    ]


@contextlib.contextmanager
def _safetensors(tensors: dict[str, LazyTensor], conversion: _Conversion) -> Iterator[ResumableFolder]:
    """The target with these weights, sharded by size; the block adds the other files."""
    split = shards(tensors, SHARD_BYTES)
    conversion.start(bytes_of(tensors))
    with conversion.folder() as folder:
        for file, names in split.filename_to_tensors.items():
            of_file = {name: tensors[name] for name in names}
            folder.write(file, of_file, functools.partial(write_safetensors, of_file), conversion.progress)
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            write_text(folder.path / "model.safetensors.index.json", json_text(index, indent=2) + "\n")
        yield folder


def _losses(source: Source, to: str) -> list[str]:
    """Notes on the parts of the source that the target has no place for."""
    if to != "hanmo" and any(name.startswith(f"{VALUE_HEAD}.") for name in source.shapes):
        return [f"the value head has no place in the form {to} and is left out: the target only generates"]
    if source.located.original is not None and source.located.weights.state.get("optimizer") is not None:
        return ["the optimizer's state is not taken along"]
    return []


def _rounding(source: Source, dtype: torch.dtype | None) -> list[str]:
    """Notes on the precision that a narrower dtype loses."""
    if dtype is None:
        return []
    step, small = torch.finfo(dtype).eps / 2, torch.finfo(dtype).tiny
    stored = {kind for kind in source.dtypes.values() if kind.is_floating_point}
    return [
        f"{dtype_name(before)} to {dtype_name(dtype)} rounds: each weight by up to {step:.1e} of its size, "
        f"and by more below {small:.0e}"
        for before in sorted(stored, key=str)
        if torch.promote_types(before, dtype) != dtype
    ]


def _report(source: Source, target: Path, to: str, notes: list[str]) -> dict[str, Any]:
    written = find_weights(target)
    return {
        "source": source.title,
        "target": str(target),
        "form": to,
        "family": source.located.family.name,
        "dtype": dtype_name(written.dtype),
        "parameters": sum(torch.Size(shape).numel() for shape in source.shapes.values()),
        "files": [str(file.relative_to(target)) for file in written.files],
        "bytes": sum(file.stat().st_size for file in target.rglob("*") if file.is_file()),
        "notes": notes,
    }
