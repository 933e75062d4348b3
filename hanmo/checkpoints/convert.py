"""From any form of a model to any other, as a stream of tensors."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hanmo import families
from hanmo.checkpoints.files.resumable import ResumableFolder, bytes_of, resumable_folder
from hanmo.checkpoints.files.tensor_files import (
    LazyTensor,
    Progress,
    shard_index,
    shards,
    write_safetensors,
    write_torch,
)
from hanmo.checkpoints.files.verifying import verify_reading
from hanmo.checkpoints.generation_config import read_generation, write_generation
from hanmo.checkpoints.hub import local_folder
from hanmo.checkpoints.open import (
    DTYPES,
    RULES,
    check_vocabulary,
    dtype_name,
    find_rules,
    most_common_dtype,
    open_tokenizer,
)
from hanmo.checkpoints.originals.locate import find_weights
from hanmo.checkpoints.originals.writer import (
    VALUE_HEAD,
    Origin,
    check_all_have_a_place,
    check_divides,
    default_origin,
    filled_rows,
    layout_of,
    origin_of_folder,
    rank_files,
    write_bin_config,
    written_entries,
)
from hanmo.checkpoints.save import SHARD_BYTES, save_rules
from hanmo.checkpoints.source import Source, find_source
from hanmo.errors import CheckpointError, ConfigError, UnsupportedError, unknown
from hanmo.families.base import Family
from hanmo.families.safe_loading import safe_tokenizer
from hanmo.files import write_text
from hanmo.folders import recover_missing

FORMS = ("hanmo", "hf", "original")


@dataclass(frozen=True)
class _Order:
    """What is to be made of a source and where, as ``convert`` was told."""

    source: Path
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

    def draft(self, content: Source) -> contextlib.AbstractContextManager[ResumableFolder]:
        files = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in content.files]
        return resumable_folder(self.target, {**self.job, "files": files}, resume=self.resume, verify=self.verify)


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
        force: write into a folder that holds something; what has nothing to do with the model stays.
        resume: continue a conversion that was interrupted, from its last finished file, and keep what is finished if
            this one is interrupted; without it nothing is kept.
        verify: read the source a second time by another way, and what is written again from the disk, and compare
            every tensor before the target appears.
        start: told the bytes to do before the work begins.
        progress: told the bytes that are done, a few megabytes at a time.

    Returns:
        What was written: source, target, form, family, size, dtype, parameters, files, bytes, notes.

    Raises:
        CheckpointError: the source cannot be read, or the target must not or cannot be written.
    """
    source, target = local_folder(source), Path(target)
    if to not in FORMS:
        raise ConfigError(unknown("form", to, FORMS))
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(unknown("dtype", dtype, DTYPES))
    if ranks is not None and (ranks < 1 or to != "original"):
        raise ConfigError(f"--tensor-parallel {ranks}: 1 or more, together with --to original")
    _check_target(source, target, force)
    content = find_source(source, size, config, needs_config=to != "original")
    if verify:
        verify_reading(find_weights(source))
    said = {"to": to, "size": size, "config": config, "vocab": vocab, "rules": rules, "dtype": dtype, "ranks": ranks}
    job = {key: None if value is None else str(value) for key, value in said.items()}
    wanted = DTYPES[dtype] if dtype else None
    order = _Order(source, target, vocab, rules, wanted, ranks, job, resume, verify, start, progress)
    more = {"hanmo": _to_hanmo, "hf": _to_hf, "original": _to_original}[to](content, order)
    notes = _dropped(content, to) + _rounding(content, wanted) + more
    if content.absent:
        notes.append(f"the source lacks {', '.join(content.absent)}: written as zeros")
    return _report(content.family, content.what, target, to, notes, content.shapes)


def _check_target(source: Path, target: Path, force: bool) -> None:
    recover_missing(target)
    here, there = source.resolve(), target.resolve()
    if there == here or there in here.parents or here in there.parents:
        raise CheckpointError(f"{target}: is the source, holds it or lies in it; write to another folder")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise CheckpointError(f"{target}: is not empty; choose another folder, or say --force to write into it")
    if target.is_file():
        raise CheckpointError(f"{target}: is a file; give a folder")


def _to_hanmo(content: Source, order: _Order) -> list[str]:
    assert content.config is not None, "our folder has a configuration"
    tokenizer = _tokenizer(content, order.source, order.vocab)
    generation = read_generation(order.source) if content.original is None else {}
    family = content.family(content.config, tokenizer, _rules(content, order.source, order.rules), generation)
    if content.family.name != families.TRANSFORMERS:  # whose folders name the class that is to be loaded
        content.config.architectures = [content.family.network_class.__name__]
    stored = content.original.dtype if content.original else content.config.dtype
    content.config.dtype = order.dtype or stored
    tensors = {name: content.stored(name, order.dtype) for name in content.shapes}
    with _safetensors(tensors, content, order) as draft:
        content.config.save_pretrained(draft.folder)
        tokenizer.save_pretrained(draft.folder)
        save_rules(family, draft.folder)
        write_generation(family, draft.folder)
        if content.original is not None:
            Origin.of(content.original).write(draft.folder)
    return []


def _to_original(content: Source, order: _Order) -> list[str]:
    """Write it; returns what is to be known about it."""
    ranks = order.ranks
    if not content.family.original_format.LAYOUTS:
        raise UnsupportedError(f"{order.source}: a model of transformers has no other layout that is its original one")
    if content.original is None:
        origin = origin_of_folder(find_weights(order.source), content.family, ranks)
        ranks = ranks or origin.ranks
    else:
        origin, ranks = Origin.of(content.original), ranks or 1
        if ranks > 1 and not content.original.layout.splits:
            origin = default_origin(content.family, ranks)
    layout = layout_of(content.family, origin.layout)
    entries = written_entries(layout, origin, content.counts)
    check_all_have_a_place(layout, content.counts, content.shapes, str(order.source))
    check_divides(entries, content.shapes, ranks, getattr(content.config, "num_attention_heads", None))
    piece, rows = functools.partial(content.piece, dtype=order.dtype), filled_rows(entries, content.shapes, ranks)
    files = rank_files(layout, entries, piece, origin, ranks, rows)
    order.start(sum(bytes_of(file.tensors) for file in files))
    with order.draft(content) as draft:
        for file in files:
            draft.write(file.name, file.tensors, functools.partial(write_torch, file.content), order.progress)
        for name, text in origin.trackers.items():
            write_text(draft.folder / name, text)
        if not layout.splits:
            assert content.config is not None, "a bin folder has its config.json"
            write_bin_config(draft.folder, origin, content.config)
        _copy_vocabulary(content, order.source, order.vocab, draft.folder)
    if rows is None:
        return []
    return [
        f"{ranks} does not divide the vocabulary's {rows:,} rows: filled up with zeros, which hanmo leaves out again"
    ]


def _copy_vocabulary(content: Source, source: Path, vocab: str | Path | None, folder: Path) -> None:
    """The vocabulary beside original weights, where there is one to be found."""
    name = content.family.tokenizer_class.vocab_files_names["vocab_file"]
    if content.original is None:
        safe_tokenizer(source, content.family.tokenizer_class).save_vocabulary(str(folder))
    elif vocab is not None or (source / name).is_file():
        _tokenizer(content, source, vocab).save_vocabulary(str(folder))


def _to_hf(content: Source, order: _Order) -> list[str]:
    assert content.config is not None, "transformers needs a configuration"
    tokenizer = _tokenizer(content, order.source, order.vocab)
    family = content.family(content.config, tokenizer, _rules(content, order.source, order.rules))
    dtype = order.dtype or torch.float32
    export = family.as_transformers()
    tensors = {theirs: content.scaled(ours, dtype, by) for theirs, (ours, by) in export.tensors.items()}
    with _safetensors(tensors, content, order) as draft:
        return export.write(draft.folder, dtype)


@contextlib.contextmanager
def _safetensors(tensors: dict[str, LazyTensor], content: Source, order: _Order) -> Iterator[ResumableFolder]:
    """A draft with these weights, sharded by size; the block adds what lies beside."""
    files = shards(tensors, SHARD_BYTES)
    order.start(sum(bytes_of(tensors) for tensors in files.values()))
    with order.draft(content) as draft:
        for file, of_file in files.items():
            draft.write(file, of_file, functools.partial(write_safetensors, of_file), order.progress)
        if len(files) > 1:
            write_text(draft.folder / "model.safetensors.index.json", shard_index(files))
        yield draft


def _tokenizer(content: Source, source: Path, vocab: str | Path | None) -> PreTrainedTokenizerBase:
    if content.original is None:
        return safe_tokenizer(source, content.family.tokenizer_class)
    tokenizer = open_tokenizer(content.original, vocab)
    if content.config is not None:
        check_vocabulary(content.family, content.config.vocab_size, tokenizer, str(source))
    return tokenizer


def _rules(content: Source, source: Path, rules: str | Path | None) -> dict[str, str]:
    if rules is not None:
        return find_rules(content.family, Path(rules))
    return find_rules(content.family, source / RULES, optional=True)


def _dropped(content: Source, to: str) -> list[str]:
    if to != "hanmo" and any(name.startswith(f"{VALUE_HEAD}.") for name in content.shapes):
        return [f"the value head has no place in the form {to} and is left out: what is written only speaks"]
    if content.original is not None and content.original.weights.state.get("optimizer") is not None:
        return ["the optimizer's state is not taken along"]
    return []


def _rounding(content: Source, dtype: torch.dtype | None) -> list[str]:
    """What a narrower dtype loses."""
    notes = []
    for stored in sorted({str(kind) for kind in content.dtypes.values() if kind.is_floating_point}):
        before = next(kind for kind in content.dtypes.values() if str(kind) == stored)
        if dtype is None or torch.promote_types(before, dtype) == dtype:
            continue
        step = torch.finfo(dtype).eps / 2
        small = torch.finfo(dtype).tiny
        notes.append(
            f"{dtype_name(before)} to {dtype_name(dtype)} rounds: each weight by up to {step:.1e} of its size, "
            f"and by more below {small:.0e}"
        )
    return notes


def _report(
    family: type[Family], what: str, target: Path, to: str, notes: list[str], shapes: dict[str, tuple[int, ...]]
) -> dict[str, Any]:
    files = sorted(file for file in target.rglob("*") if file.is_file())
    written = find_weights(target)
    return {
        "source": what,
        "target": str(target),
        "form": to,
        "family": family.name,
        "dtype": dtype_name(most_common_dtype(written)),
        "parameters": sum(torch.Size(shape).numel() for shape in shapes.values()),
        "files": [str(file.relative_to(target)) for file in written.files],
        "bytes": sum(file.stat().st_size for file in files),
        "notes": notes,
    }
