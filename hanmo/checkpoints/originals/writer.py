"""Writes our tensors in an original layout: fused, split over ranks, under the original's names."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from hanmo.checkpoints.files.tensor_files import LazyTensor, WeightFile, write_torch
from hanmo.checkpoints.locate import Located
from hanmo.checkpoints.originals.config_inference import Shapes
from hanmo.checkpoints.originals.recognise import Original, without_optional
from hanmo.checkpoints.originals.unpickle import read_pickle
from hanmo.checkpoints.originals.weights import (
    NESTED,
    ONE_RANK,
    RANK_ARGUMENTS,
    ROWS,
    TRACKERS,
    rank_file,
    read_tracker,
    tracked_folders,
)
from hanmo.checkpoints.source import Source
from hanmo.errors import CheckpointError, UnsupportedError, unknown
from hanmo.families.base import Family
from hanmo.families.weight_map import Layout, TensorMapping, expand
from hanmo.files import json_text, plain_name, read_json

ORIGIN, STATE = "origin.json", "original_state.pt"
VALUE_HEAD = "value_head"  # prefix of its tensors' names


@dataclass(frozen=True)
class Origin:
    """The parts of an original checkpoint that our own folder does not need, kept for the way back."""

    layout: str
    ranks: int = 1  # tensor-parallel ones
    prefix: str = ""
    absent: list[str] = field(default_factory=list)  # names of the layout that the files lacked
    trackers: dict[str, str] = field(default_factory=dict)  # texts by name; none if rank files lay in the folder itself
    folder: str = ""  # of the rank files, named by the tracker
    config: dict[str, Any] | None = None  # the original's config.json
    state: dict[str, Any] = field(default_factory=dict)  # the files' content beside the weights, without the optimizer
    strangers: dict[str, Tensor] = field(default_factory=dict)  # tensors that carry no weights

    @classmethod
    def of(cls, original: Original) -> Origin:
        weights, layout = original.weights, original.layout
        if layout.splits and weights.container in ONE_RANK:  # as DeepSpeed's zero_to_fp32.py joins the ranks
            return replace(_usual_origin(layout, 1), absent=original.absent)
        known = {original.prefix + name for entry in original.entries for name in (entry.theirs, *entry.copies)}
        folder = weights.files[0].parents[1 if weights.container == NESTED else 0]  # of the iteration
        tracked = layout.splits and folder != weights.path
        files = [weights.path / name for name in TRACKERS] if tracked else []
        return cls(
            layout=layout.name,
            ranks=len(weights.ranks),
            prefix=original.prefix,
            absent=original.absent,
            trackers={file.name: read_tracker(file) for file in files if file.is_file()},
            folder=folder.name if tracked else "",
            config=weights.config,
            state={**weights.state, "optimizer": None} if "optimizer" in weights.state else weights.state,
            strangers=_shared({name: tensor for name, tensor in weights.ranks[0].items() if name not in known}),
        )

    @classmethod
    def read(cls, folder: Path) -> Origin | None:
        """The origin in a folder of ours, if any; raises CheckpointError if its files are not as ``write`` leaves them."""
        file = folder / ORIGIN
        if not file.is_file():
            return None
        try:
            origin = cls(**read_json(file), **read_pickle(folder / STATE))
        except TypeError as error:
            raise CheckpointError(f"{file}: not as hanmo wrote it: {error}") from error
        origin._check(file)
        return origin

    def _check(self, file: Path) -> None:
        """Check the fields, which become file names and the content of pickles: the folder is untrusted."""
        kinds: dict[str, Any] = {
            "layout": str, "ranks": int, "prefix": str, "absent": list, "trackers": dict, "config": dict | None,
            "state": dict, "strangers": dict,
        }  # fmt: skip
        wrong = [name for name, kind in kinds.items() if not isinstance(getattr(self, name), kind)]
        if not wrong:
            wrong = [f"tracker {name!r}" for name, text in self.trackers.items() if not isinstance(text, str)]
            wrong += [f"tensor {name!r}" for name, one in self.strangers.items() if not isinstance(one, Tensor)]
        if wrong:
            raise CheckpointError(f"{file}: not as hanmo wrote it: {wrong[0][:80]} is of another kind")
        if self.ranks < 1 or "module" in self.state or not isinstance(self.state.get("model", {}), dict):
            raise CheckpointError(f"{file}: not as hanmo wrote it: {self.ranks} ranks, or weights in {STATE}")
        if strange := self.trackers.keys() - set(TRACKERS):
            expected = " or ".join(TRACKERS)
            raise CheckpointError(f"{file}: names the tracker file {min(strange)[:80]!r}; expected {expected}")
        if self.folder != "":
            plain_name(self.folder, file)
        tracked = next((self.trackers[name] for name in TRACKERS if name in self.trackers), None)
        if tracked is not None and self.folder not in tracked_folders(tracked):
            problem = f"the tracker file says {tracked.strip()[:40]!r}, but the folder is {self.folder!r}"
            raise CheckpointError(f"{file}: not as hanmo wrote it: {problem}")

    def write(self, folder: Path) -> None:
        texts = {key: value for key, value in vars(self).items() if key not in ("state", "strangers")}
        (folder / ORIGIN).write_text(json_text(texts, indent=2) + "\n", encoding="utf-8")
        write_torch({"state": self.state, "strangers": self.strangers}, folder / STATE)


def _shared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, equal ones once in memory and so in a file: masks are the same in every layer."""
    kept: list[Tensor] = []
    result = {}
    for name, tensor in tensors.items():
        same = (one for one in kept if one.dtype == tensor.dtype and torch.equal(one, tensor))
        result[name] = next(same, tensor)
        if result[name] is tensor:
            kept.append(tensor)
    return result


def default_origin(family: type[Family], ranks: int) -> Origin:
    """The layout in which a model without an origin is written for the family's original code."""
    layouts = [layout for layout in family.original_format.LAYOUTS if ranks == 1 or layout.splits]
    if not layouts:
        raise UnsupportedError(f"{family.name} has no original layout for {ranks} tensor-parallel ranks")
    return _usual_origin(layouts[0], ranks)


def _usual_origin(layout: Layout, ranks: int) -> Origin:
    prefix = layout.prefixes[0]
    if not layout.splits:
        return Origin(layout.name, prefix=prefix)
    folder = "iter_0000001" if layout.container == NESTED else "1"
    return Origin(layout.name, ranks, prefix, trackers={TRACKERS[0]: "1"}, folder=folder, state={"iteration": 1})


def layout_of(family: type[Family], name: str) -> Layout:
    """The family's layout of this name, or a CheckpointError."""
    layouts = {layout.name: layout for layout in family.original_format.LAYOUTS}
    if name not in layouts:
        raise CheckpointError(f"{ORIGIN}: {unknown(f'layout of {family.name}', name, layouts)}")
    return layouts[name]


def check_all_have_a_place(entries: Sequence[TensorMapping], shapes: Shapes, where: str) -> None:
    """Raise UnsupportedError for tensors that a layout cannot hold; a value head may be left out."""
    placed = {ours for entry in entries for ours in entry.ours}
    homeless = [name for name in shapes if name not in placed and not name.startswith(f"{VALUE_HEAD}.")]
    if homeless:
        problem = f"{', '.join(homeless)} has no place in the original layout, whose output head is the embedding"
        advice = "this model's head was trained apart from it (lora.targets): convert it without --to original"
        raise UnsupportedError(f"{where}: {problem}; {advice}")


def check_divides(entries: Sequence[TensorMapping], shapes: Shapes, ranks: int, heads: int | None) -> None:
    """Raise CheckpointError for the first number that ``ranks`` does not divide; rows of the vocabulary are padded."""
    counts = [] if heads is None else [(heads, f"{heads} attention heads")]
    for entry in entries:
        if entry.cut is not None and not entry.vocabulary:
            sizes = [shapes[ours][entry.cut] for ours in entry.ours]
            counts += [(size, f"{entry.theirs}: dimension {entry.cut} has {size}, which") for size in sizes]
    for count, what in counts:
        if count % ranks:
            raise CheckpointError(f"{what} cannot be split over {ranks} ranks: {ranks} does not divide {count}")


def padded_rows(entries: Sequence[TensorMapping], shapes: Shapes, ranks: int) -> int | None:
    """The rows of the vocabulary, if they need padding to divide by this number of ranks."""
    found = (shapes[entry.ours[0]][0] for entry in entries if entry.vocabulary)
    return next((rows for rows in found if rows % ranks), None)


def original_form(
    source: Source, ranks: int | None, dtype: torch.dtype | None
) -> tuple[list[WeightFile], dict[str, str], list[str]]:
    """A model in its original layout, or the family's usual one: weight files, other text files by name, and notes.

    ``ranks``: default: those of the origin of a folder of ours, 1 for an original. UnsupportedError if the family has
    no original layout, or none that holds these tensors; CheckpointError if ``ranks`` does not divide the model.
    """
    family, path = source.located.family, source.located.path
    if not family.original_format.LAYOUTS:
        raise UnsupportedError(f"{path}: a model of transformers has no other layout that is its original one")
    origin = _origin(source.located, ranks)
    ranks = ranks or (origin.ranks if source.located.original is None else 1)
    layout = layout_of(family, origin.layout)
    table = expand(layout.entries, source.counts)
    check_all_have_a_place(table, source.shapes, str(path))
    entries = without_optional(table, origin.absent)
    check_divides(entries, source.shapes, ranks, getattr(source.config, "num_attention_heads", None))
    padded = padded_rows(entries, source.shapes, ranks)
    files, texts = [], dict(origin.trackers)
    for rank in range(ranks):
        tensors = {}
        for entry in entries:
            # One tensor under several names is stored once, as in the original's files.
            names = [origin.prefix + name for name in (entry.theirs, *entry.copies)]
            tensors.update(dict.fromkeys(names, source.piece(entry, rank, ranks, dtype)))
        kept = {id(tensor): LazyTensor.of(tensor) for tensor in origin.strangers.values()}
        tensors.update({name: kept[id(tensor)] for name, tensor in origin.strangers.items()})
        if not layout.splits:
            files.append(WeightFile("pytorch_model.bin", tensors, tensors))
            texts["config.json"] = _bin_config(origin, source.config)
            continue
        content = _content(layout, tensors, _state_of_ranks(origin.state, ranks, padded))
        files.append(WeightFile(str(Path(origin.folder) / rank_file(rank, layout.container)), tensors, content))
    if padded is None:
        return files, texts, []
    filled = f"{ranks} does not divide the vocabulary's {padded:,} rows: filled up with zeros"
    return files, texts, [f"{filled}, which hanmo leaves out again"]


def _origin(located: Located, ranks: int | None) -> Origin:
    """The origin of a model, if it can be written over this number of ranks; else the family's usual one."""
    original, family = located.original, located.family
    kept = Origin.read(located.weights.folder) if original is None else Origin.of(original)
    if kept and (ranks in (None, 1) or layout_of(family, kept.layout).splits):
        return kept
    return default_origin(family, ranks or 1)


def _content(layout: Layout, tensors: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """The content of a rank's file: its tensors where the original's programs look for them, and the state."""
    if layout.container != NESTED:
        return {"module": tensors, **state}
    nested: dict[str, Any] = {}
    for name, tensor in tensors.items():
        module = next((nest for nest in layout.nests if name.startswith(f"{nest}.")), "")
        inner = nested
        for key in module.split(".") if module else ():
            inner = inner.setdefault(key, {})
        inner[name.removeprefix(f"{module}.")] = tensor
    return {**state, "model": {"language_model": nested, **state.get("model", {})}}


def _state_of_ranks(state: dict[str, Any], ranks: int, rows: int | None) -> dict[str, Any]:
    """The content beside the weights, adapted to another number of ranks as the original's conversion script does."""
    changed = {key: value for key, value in state.items() if key != ROWS} | ({} if rows is None else {ROWS: rows})
    if "mp_world_size" in state:
        changed["mp_world_size"] = ranks
    if state.get("mp_world_size", ranks) != ranks and "csr_tensor_module_names" in state:
        changed["csr_tensor_module_names"] = None
    if "args" in state:
        arguments = vars(state["args"])
        of_ranks = {name: ranks for name in RANK_ARGUMENTS if name in arguments}
        changed["args"] = argparse.Namespace(**{**arguments, **of_ranks})
    return changed


def _bin_config(origin: Origin, config: PretrainedConfig | None) -> str:
    """The text of config.json beside pytorch_model.bin: the original's, or ours under the same keys."""
    content = origin.config
    if content is None:
        assert config is not None, "a bin folder has its config.json"
        ours = ("model_type", "architectures", "transformers_version", "dtype")
        content = {key: value for key, value in config.to_dict().items() if key not in ours}
    return json_text(content, indent=2) + "\n"
