"""Converts models between their forms, as a stream of tensors."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hanmo import families
from hanmo.checkpoints.files.resumable import bytes_of, resumable_folder
from hanmo.checkpoints.files.tensor_files import Progress, WeightFile, sharded
from hanmo.checkpoints.files.verifying import verify_reading
from hanmo.checkpoints.locate import Located, local_folder, locate
from hanmo.checkpoints.open import (
    DTYPES,
    RULES_FOLDER,
    check_vocabulary,
    dtype_name,
    find_rule_files,
    open_model,
    open_tokenizer,
)
from hanmo.checkpoints.originals.weights import find_weights
from hanmo.checkpoints.originals.writer import VALUE_HEAD, Origin, original_form
from hanmo.checkpoints.save import SHARD_BYTES, save_model, save_rule_files, write_generation
from hanmo.checkpoints.source import Source, source_of
from hanmo.errors import CheckpointError, ConfigError, unknown
from hanmo.families.base import Family
from hanmo.families.safe_loading import safe_tokenizer
from hanmo.files import write_text
from hanmo.folders import recover_missing

FORMS = ("hanmo", "hf", "original")


@dataclass(frozen=True)
class _Form:
    files: list[WeightFile]
    texts: dict[str, str]  # of text files, by name
    finish: Callable[[Path], list[str]]  # writes the other files into the folder; returns notes


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str = "hanmo",
    size: str | None = None,
    config: str | Path | None = None,
    vocab: str | Path | None = None,
    rules: str | Path | None = None,
    adapter: str | Path | None = None,
    dtype: str | None = None,
    ranks: int | None = None,
    force: bool = False,
    resume: bool = False,
    verify: bool = False,
    start: Callable[[int], None] = lambda _: None,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Convert a model and return a report; the source is never touched, the target is written whole or not at all.

    Args:
        to: "hanmo": our folder, which converts back to the original bit for bit; "hf": a folder for plain
            transformers; "original": the layout of the family's original code.
        adapter: folder of a LoRA adapter to merge into the weights, which are then in memory as a whole.
        ranks: tensor-parallel ranks of "original"; default 1.
        force: write into a folder that is not empty; files that do not belong to the model stay.
        resume: continue an interrupted conversion, and keep the finished files if this one is interrupted.
        verify: read every tensor of the source and of the written files a second time and compare.
        start, progress: called with the bytes to write in all, and the bytes written since the last call.

    Raises:
        CheckpointError: the source cannot be read, or the target must not or cannot be written.
    """
    _check_options(to, dtype, ranks)
    path, target = local_folder(source), Path(target)
    _check_target(path, target, force)
    located = locate(path)
    if adapter is not None:
        if to != "hanmo" or resume or verify:
            raise ConfigError("--adapter: leave out --to, --resume and --verify; the merged folder can be converted on")
        return _merge(located, target, adapter, dtype, size=size, config=config, vocab=vocab, rules=rules)
    content = source_of(located, size, config, needs_config=to != "original")
    if verify:
        verify_reading(located.weights)
    options = {"to": to, "size": size, "config": config, "vocab": vocab, "rules": rules, "dtype": dtype, "ranks": ranks}
    job: dict[str, Any] = {key: None if value is None else str(value) for key, value in options.items()}
    job["files"] = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in located.weights.files]
    wanted = DTYPES[dtype] if dtype else None
    if to == "original":
        form = _original(content, vocab, ranks, wanted)
    else:
        form = (_ours if to == "hanmo" else _transformers)(content, _family(content, vocab, rules), wanted)
    start(sum(bytes_of(file.tensors) for file in form.files))
    with resumable_folder(target, job, resume=resume, verify=verify) as folder:
        for file in form.files:
            folder.write(file, progress)
        for name, text in form.texts.items():
            write_text(folder.path / name, text)
        notes = form.finish(folder.path)
    return _report(content, target, to, _losses(content, to, wanted) + notes)


def _merge(located: Located, target: Path, adapter: str | Path, dtype: str | None, **given: Any) -> dict[str, Any]:
    """Write a model with an adapter in its weights as our folder."""
    stored = dtype_name(located.weights.dtype)
    wanted = dtype or (stored if stored in DTYPES else None)
    opened = open_model(located.path, adapter=adapter, dtype=wanted, device="cpu", **given)
    save_model(opened, target)
    return _about(target, "hanmo", opened.source, opened.family.name, opened.network.num_parameters(), [])


def _check_options(to: str, dtype: str | None, ranks: int | None) -> None:
    if to not in FORMS:
        raise ConfigError(unknown("form", to, FORMS))
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(unknown("dtype", dtype, DTYPES))
    if ranks is not None and (ranks < 1 or to != "original"):
        raise ConfigError(f"--tensor-parallel {ranks}: 1 or more, together with --to original")


def _check_target(source: Path, target: Path, force: bool) -> None:
    recover_missing(target)
    here, there = (Path(os.path.realpath(path)) for path in (source, target))
    if there == here or there in here.parents or here in there.parents:
        raise CheckpointError(f"{target}: is the source, holds it or lies in it; write to another folder")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise CheckpointError(f"{target}: is not empty; choose another folder, or give --force to write into it")
    if target.is_file():
        raise CheckpointError(f"{target}: is a file; give a folder")


def _tokenizer(source: Source, vocab: str | Path | None) -> PreTrainedTokenizerBase:
    located, config = source.located, source.config
    if located.original is None:
        return safe_tokenizer(located.path, located.family.tokenizer_class, config)
    tokenizer = open_tokenizer(located.original, vocab)
    if config is not None:
        check_vocabulary(located.family, config.vocab_size, tokenizer, str(located.path))
    return tokenizer


def _family(source: Source, vocab: str | Path | None, rules: str | Path | None) -> Family:
    located, config = source.located, source.config
    assert config is not None, "only --to original does without a configuration"
    folder = located.path / RULES_FOLDER if rules is None else Path(rules)
    assets = find_rule_files(located.family, folder, optional=rules is None)
    return located.family(config, _tokenizer(source, vocab), assets, located.generation)


def _ours(source: Source, family: Family, dtype: torch.dtype | None) -> _Form:
    original, config = source.located.original, family.config
    if family.name != families.TRANSFORMERS:  # these folders name the class to load
        config.architectures = [family.network_class.__name__]
    config.dtype = dtype or (original.weights.dtype if original else config.dtype)

    def finish(folder: Path) -> list[str]:
        config.save_pretrained(folder)
        family.tokenizer.save_pretrained(folder)
        save_rule_files(family, folder)
        write_generation(family, folder)
        if original is not None:
            Origin.of(original).write(folder)
        return []

    return _Form(*sharded({name: source.tensor(name, dtype) for name in source.shapes}, SHARD_BYTES), finish)


def _transformers(source: Source, family: Family, dtype: torch.dtype | None) -> _Form:
    wanted, export = dtype or torch.float32, family.as_transformers()
    tensors = {theirs: source.scaled(ours, wanted, by) for theirs, (ours, by) in export.tensors.items()}
    return _Form(*sharded(tensors, SHARD_BYTES), lambda folder: export.write(folder, wanted))


def _original(source: Source, vocab: str | Path | None, ranks: int | None, dtype: torch.dtype | None) -> _Form:
    located = source.located
    files, texts, notes = original_form(source, ranks, dtype)

    def finish(folder: Path) -> list[str]:
        vocabulary = located.path / located.family.tokenizer_class.vocab_files_names["vocab_file"]
        if located.original is None or vocab is not None or vocabulary.is_file():
            _tokenizer(source, vocab).save_vocabulary(str(folder))
        return notes

    return _Form(files, texts, finish)


def _losses(source: Source, to: str, dtype: torch.dtype | None) -> list[str]:
    """Notes on the parts that the target cannot hold, and on precision lost to a narrower dtype."""
    notes = []
    if to != "hanmo" and any(name.startswith(f"{VALUE_HEAD}.") for name in source.shapes):
        notes.append(f"the value head has no place in the form {to} and is left out: the target only generates")
    elif source.located.original is not None and source.located.weights.state.get("optimizer") is not None:
        notes.append("the optimizer's state is not taken along")
    if dtype is None:
        return notes
    step, small = torch.finfo(dtype).eps / 2, torch.finfo(dtype).tiny
    for before in sorted({kind for kind in source.dtypes.values() if kind.is_floating_point}, key=str):
        if torch.promote_types(before, dtype) != dtype:
            size = f"each weight by up to {step:.1e} of its size, and by more below {small:.0e}"
            notes.append(f"{dtype_name(before)} to {dtype_name(dtype)} rounds: {size}")
    return notes


def _report(source: Source, target: Path, to: str, notes: list[str]) -> dict[str, Any]:
    if source.absent:
        notes.append(f"the source lacks {', '.join(source.absent)}: written as zeros")
    parameters = sum(torch.Size(shape).numel() for shape in source.shapes.values())
    return _about(target, to, source.title, source.located.family.name, parameters, notes)


def _about(target: Path, to: str, source: str, family: str, parameters: int, notes: list[str]) -> dict[str, Any]:
    written = find_weights(target)
    return {
        "source": source,
        "target": str(target),
        "form": to,
        "family": family,
        "dtype": dtype_name(written.dtype),
        "parameters": parameters,
        "files": [str(file.relative_to(target)) for file in written.files],
        "bytes": sum(file.stat().st_size for file in target.rglob("*") if file.is_file()),
        "notes": notes,
    }
