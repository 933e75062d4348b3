"""From any form of a model to any other, one tensor at a time where no network is needed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from hanmo.checkpoints.files import find_weights
from hanmo.checkpoints.hub import local_folder
from hanmo.checkpoints.layout import Original, recognise
from hanmo.checkpoints.opening import (
    DTYPES,
    RULES,
    check_vocabulary,
    dtype_name,
    family_of_folder,
    family_of_ours,
    find_rules,
    keeps_precision,
    most_common_dtype,
    open_model,
    open_tokenizer,
)
from hanmo.checkpoints.saving import new_folder, save_rules, write_sharded
from hanmo.checkpoints.sizes import absent_tensors, expected_shapes, settle_config
from hanmo.checkpoints.writing import (
    Origin,
    Progress,
    check_divides,
    default_origin,
    layout_of,
    origin_of_folder,
    write_bin_config,
    write_original,
    written_entries,
)
from hanmo.errors import CheckpointError, ConfigError, UnsupportedError, unknown
from hanmo.families.base import Family

FORMS = ("hanmo", "hf", "original")


@dataclass(frozen=True)
class _Source:
    """What is converted: our tensors by name, however they are stored.

    Attributes:
        config: None for an original whose configuration nothing decides; only re-splitting goes without.
        counts: what counts the layers: the configuration, or the names found.
        absent: our tensors that the files lack; they are zero.
    """

    family: type[Family]
    config: PretrainedConfig | None
    counts: Any
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    read: Callable[[str], Tensor]
    absent: list[str]
    original: Original | None
    what: str

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One of our tensors in the dtype to write."""
        if name in self.absent:
            return torch.zeros(self.shapes[name], dtype=self.dtype_of(name, dtype))
        stored = self.read(name)
        written = stored.to(self.dtype_of(name, dtype))
        if written.dtype != stored.dtype and not torch.equal(written.isfinite(), stored.isfinite()):
            raise CheckpointError(
                f"{name}: holds {stored.abs().max():.3g}, which does not fit {dtype_name(written.dtype)}; use bf16"
            )
        return written

    def plan(self, dtype: torch.dtype | None) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of everything that is to be written."""
        return {name: (shape, self.dtype_of(name, dtype)) for name, shape in self.shapes.items()}

    def dtype_of(self, name: str, dtype: torch.dtype | None) -> torch.dtype:
        """As wanted; as stored for whole numbers and where nothing is wanted. Some tensors are never rounded."""
        stored = self.dtypes[name]
        if dtype is None or not stored.is_floating_point:
            return stored
        return torch.promote_types(stored, dtype) if keeps_precision(self.family, name) else dtype


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
    start: Callable[[int], None] = lambda _: None,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Convert a model; the source is never touched, the target is written whole or not at all.

    Args:
        to: "hanmo": our folder, complete, from which the original can be made again bit for bit; "hf": a folder for
            plain transformers; "original": the layout of the family's first programs.
        ranks: tensor-parallel ranks of "original"; default 1.
        force: write into a folder that holds something; what has nothing to do with the model stays.
        start: told the bytes to do before the work begins.
        progress: told the bytes of every tensor that is done.

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
    if to == "hf":
        return _to_hf(source, target, size, config, vocab, rules, dtype)
    content = _source(source, size, config, needs_config=to == "hanmo")
    wanted = DTYPES[dtype] if dtype else None
    plan = content.plan(wanted)
    start(sum(torch.Size(shape).numel() * kind.itemsize for shape, kind in plan.values()))
    if to == "hanmo":
        notes = _to_hanmo(content, source, target, vocab, rules, wanted, progress)
    else:
        notes = _to_original(content, source, target, vocab, wanted, ranks, progress)
    if content.absent:
        notes.append(f"the source lacks {', '.join(content.absent)}: written as zeros")
    return _report(content.family, content.what, target, to, notes, content.shapes)


def _check_target(source: Path, target: Path, force: bool) -> None:
    here, there = source.resolve(), target.resolve()
    if there == here or there in here.parents:
        raise CheckpointError(f"{target}: is the source or holds it; write to another folder")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise CheckpointError(f"{target}: is not empty; choose another folder, or say --force to write into it")
    if target.is_file():
        raise CheckpointError(f"{target}: is a file; give a folder")


def _source(path: Path, size: str | None, config: str | Path | None, needs_config: bool) -> _Source:
    if family := family_of_ours(path):
        return _our_source(path, family)
    if family_of_folder(path):
        raise UnsupportedError(f"{path}: is a transformers model as it is, and opens as it is: nothing to convert")
    original = recognise(find_weights(path))
    original.require_complete()
    original.check_copies()
    settled, size_name = _settled(original, size, config, needs_config)
    shapes, dtypes = dict(original.shapes), original.dtypes()
    absent: list[str] = []
    if settled is not None:
        absent = absent_tensors(original, settled)
        expected = expected_shapes(original.family, settled)
        shapes.update({name: expected[name] for name in absent})
        dtypes.update(dict.fromkeys(absent, original.dtype))
    ranks = f", {len(original.weights.ranks)} ranks" if len(original.weights.ranks) > 1 else ""
    what = f"{path}: {size_name or original.family.name} in {original.layout.name} layout{ranks}"
    read = functools.partial(Original.tensor, original)
    counts = original.counts if settled is None else settled
    return _Source(original.family, settled, counts, shapes, dtypes, read, absent, original, what)


def _our_source(path: Path, family: type[Family]) -> _Source:
    config = family.config_class.from_pretrained(path)
    tensors = find_weights(path).ranks[0]
    shapes = expected_shapes(family, config)
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shape:
            raise CheckpointError(f"{path}: {name} is {found or 'missing'}, expected {shape}")
    dtypes = {name: tensors[name].dtype for name in shapes}
    what = f"{path}: {family.name} in hanmo's form"
    return _Source(family, config, config, shapes, dtypes, tensors.__getitem__, [], None, what)


def _settled(
    original: Original, size: str | None, config: str | Path | None, needed: bool
) -> tuple[PretrainedConfig | None, str | None]:
    """The configuration and the size's name; re-splitting does without, but what is given must fit."""
    try:
        return settle_config(original, size, config)
    except CheckpointError:
        if needed or size or config:
            raise
        return None, None


def _to_hanmo(
    content: _Source,
    source: Path,
    target: Path,
    vocab: str | Path | None,
    rules: str | Path | None,
    dtype: torch.dtype | None,
    progress: Progress,
) -> list[str]:
    assert content.config is not None, "our folder has a configuration"
    tokenizer = _tokenizer(content, source, vocab)
    family = content.family(content.config, tokenizer, _rules(content, source, rules))
    plan = content.plan(dtype)
    content.config.architectures = [content.family.network_class.__name__]
    content.config.dtype = dtype or (content.original.dtype if content.original else content.config.dtype)

    def tensors() -> Any:
        for name in plan:
            tensor = content.tensor(name, dtype)
            progress(tensor.nbytes)
            yield name, tensor

    with new_folder(target, keep=True) as draft:
        write_sharded(draft, plan, tensors())
        content.config.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        save_rules(family, draft)
        if content.original is not None:
            Origin.of(content.original).write(draft)
    return _dropped(content) + _rounding(content, dtype)


def _to_original(
    content: _Source,
    source: Path,
    target: Path,
    vocab: str | Path | None,
    dtype: torch.dtype | None,
    ranks: int | None,
    progress: Progress,
) -> list[str]:
    if content.original is None:
        origin = origin_of_folder(find_weights(source), content.family, ranks)
        ranks = ranks or origin.ranks
    else:
        origin, ranks = Origin.of(content.original), ranks or 1
        if ranks > 1 and not content.original.layout.splits:
            origin = default_origin(content.family, ranks)
    layout = layout_of(content.family, origin.layout)
    entries = written_entries(layout, origin, content.counts)
    check_divides(entries, content.shapes, ranks, getattr(content.config, "num_attention_heads", None))
    with new_folder(target, keep=True) as draft:
        write_original(draft, layout, entries, lambda name: content.tensor(name, dtype), origin, ranks, progress)
        if not layout.splits:
            assert content.config is not None, "a bin folder has its config.json"
            write_bin_config(draft, origin, content.config)
        _copy_vocabulary(content, source, vocab, draft)
    return _dropped(content) + _rounding(content, dtype)


def _copy_vocabulary(content: _Source, source: Path, vocab: str | Path | None, folder: Path) -> None:
    """The vocabulary beside original weights, where there is one to be found."""
    name = content.family.tokenizer_class.vocab_files_names["vocab_file"]
    if content.original is None:
        content.family.tokenizer_class.from_pretrained(source).save_vocabulary(str(folder))
    elif vocab is not None or (source / name).is_file():
        _tokenizer(content, source, vocab).save_vocabulary(str(folder))


def _to_hf(
    source: Path,
    target: Path,
    size: str | None,
    config: str | Path | None,
    vocab: str | Path | None,
    rules: str | Path | None,
    dtype: str | None,
) -> dict[str, Any]:
    opened = open_model(source, size=size, config=config, vocab=vocab, rules=rules, dtype="fp32", device="cpu")
    with new_folder(target, keep=True) as draft:
        notes = opened.family.export_hf(opened.network, draft, DTYPES[dtype or "fp32"])
    shapes = {name: tuple(parameter.shape) for name, parameter in opened.network.named_parameters()}
    return _report(type(opened.family), opened.source, target, "hf", notes, shapes)


def _tokenizer(content: _Source, source: Path, vocab: str | Path | None) -> PreTrainedTokenizerBase:
    if content.original is None:
        return content.family.tokenizer_class.from_pretrained(source)
    tokenizer = open_tokenizer(content.original, vocab)
    if content.config is not None:
        check_vocabulary(content.family, content.config.vocab_size, tokenizer, str(source))
    return tokenizer


def _rules(content: _Source, source: Path, rules: str | Path | None) -> dict[str, str]:
    if rules is not None:
        return find_rules(content.family, Path(rules))
    return find_rules(content.family, source / RULES, optional=True)


def _dropped(content: _Source) -> list[str]:
    if content.original is not None and content.original.weights.state.get("optimizer") is not None:
        return ["the optimizer's state is not taken along"]
    return []


def _rounding(content: _Source, dtype: torch.dtype | None) -> list[str]:
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
