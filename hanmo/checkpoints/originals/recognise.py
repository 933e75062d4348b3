"""Recognises the family and layout of a set of tensors, and maps them to our tensors by the families' tables."""

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch
from torch import Tensor

from hanmo import families
from hanmo.checkpoints.originals.weights import ONE_RANK, ROWS, Weights
from hanmo.errors import CheckpointError
from hanmo.families.base import Family
from hanmo.families.safe_loading import own_code
from hanmo.families.weight_map import Layout, TensorMapping, expand


def merge(pieces: Sequence[Tensor], parts: int, part: int, cut: int | None) -> Tensor:
    """One of the ``parts`` tensors of ours that a tensor of the original fuses; a view if it lies in one piece.

    Fused tensors are concatenated on dimension 0, and each is split separately into ``pieces``, in rank order, on
    dimension ``cut``; None if every rank holds the whole.
    """
    found = [piece.chunk(parts, dim=0)[part] for piece in (pieces[:1] if cut is None else pieces)]
    return found[0] if cut is None or len(found) == 1 else torch.cat(found, dim=cut)


def overlapping(pieces: Sequence[Tensor], cut: int, start: int, end: int) -> list[Tensor]:
    """Views of these pieces that cover ``start`` to ``end`` of the whole tensor, in order."""
    views, offset = [], 0
    for piece in pieces:
        low, high = max(start - offset, 0), min(end - offset, piece.shape[cut])
        if low < high:
            views.append(piece.narrow(cut, low, high - low))
        offset += piece.shape[cut]
    return views


@dataclass(frozen=True)
class Original:
    """Weights whose layout is known."""

    family: type[Family]
    layout: Layout
    prefix: str  # of all names
    counts: SimpleNamespace  # the number of layers, by the attribute of the configuration that counts them
    entries: list[TensorMapping]  # the layout's table for this number of layers
    weights: Weights
    missing: list[str]  # names that the files lack
    unexpected: list[str]  # names that the layout does not have
    absent: list[str]  # optional names and copies that the files lack

    @property
    def title(self) -> str:
        return f"{self.family.name}, {self.layout.name} layout"

    def pieces(self, name: str) -> list[Tensor]:
        """A tensor of the original by the table's name, one piece per rank, without padding rows."""
        held, rows = [rank[self.prefix + name] for rank in self.weights.ranks], self.weights.state.get(ROWS)
        if rows is None or name not in self._vocabulary:
            return held
        *starts, end = itertools.accumulate((len(piece) for piece in held), initial=0)
        if not isinstance(rows, int) or not 0 < rows <= end:
            raise CheckpointError(f"{self.weights.path}: {ROWS} is {rows!r}, but {name} has {end} rows")
        return [piece[: max(rows - start, 0)] for piece, start in zip(held, starts, strict=True)]

    @functools.cached_property
    def _vocabulary(self) -> set[str]:
        return {name for entry in self.entries if entry.vocabulary for name in (entry.theirs, *entry.copies)}

    def present(self) -> Iterator[tuple[TensorMapping, str]]:
        """The entries in the files, each with the name to read it by: its own, or that of a copy."""
        names = self.weights.ranks[0]
        for entry in self.entries:
            for name in (entry.theirs, *entry.copies):
                if self.prefix + name in names:
                    yield entry, name
                    break

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of our tensors, as the files have them."""
        result: dict[str, tuple[int, ...]] = {}
        for entry, name in self.present():
            pieces = [torch.empty_like(piece, device="meta") for piece in self.pieces(name)]
            result.update(zip(entry.ours, (tuple(part.shape) for part in _merged(entry, name, pieces)), strict=True))
        return result

    @functools.cached_property
    def _sources(self) -> dict[str, tuple[TensorMapping, int, str]]:
        """For each of our tensors: its entry, its place among the entry's tensors, and the name to read."""
        return {ours: (entry, part, name) for entry, name in self.present() for part, ours in enumerate(entry.ours)}

    def tensor(self, ours: str) -> Tensor:
        """One of our tensors, whole, in the files' dtype."""
        entry, part, name = self._sources[ours]
        return merge(self.pieces(name), len(entry.ours), part, entry.cut)

    def views(self, ours: str, cut: int | None, start: int, end: int) -> tuple[list[Tensor], int]:
        """Views of one of our tensors, whole or ``start`` to ``end`` of ``cut``, and the dimension to join them on."""
        entry, part, name = self._sources[ours]
        held = self.pieces(name)[: 1 if entry.cut is None else None]
        pieces = [piece.chunk(len(entry.ours), dim=0)[part] for piece in held]
        if cut is None:
            return pieces, entry.cut or 0
        assert len(pieces) == 1 or cut == entry.cut, "ranks to ranks is within one layout"
        return overlapping(pieces, cut, start, end), cut

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Our tensors by name, one at a time, in the files' dtype."""
        return ((ours, self.tensor(ours)) for ours in self._sources)

    def check_copies(self) -> None:
        """Raises CheckpointError if a tensor stored under several names differs between them."""
        names = self.weights.ranks[0]
        pairs = [(name, copy) for entry, name in self.present() for copy in entry.copies if self.prefix + copy in names]
        for name, copy in pairs:
            for rank, (piece, other) in enumerate(zip(self.pieces(name), self.pieces(copy), strict=True)):
                same_bytes = piece.data_ptr() == other.data_ptr() and piece.shape == other.shape
                if not same_bytes and not torch.equal(piece, other):
                    problem = f"{name} and {copy} must be the same tensor, but differ (rank {rank})"
                    raise CheckpointError(f"{self.weights.path}: {problem}")

    def require_complete(self) -> None:
        """Raise CheckpointError if tensors are missing or unexpected."""
        kinds = (("are missing", self.missing), ("are not part of this layout", self.unexpected))
        if problems := [f"{len(names)} tensors {kind}: {some(names)}" for kind, names in kinds if names]:
            raise CheckpointError(f"{self.weights.path} ({self.title}): {'; '.join(problems)}")


def _merged(entry: TensorMapping, name: str, pieces: list[Tensor]) -> list[Tensor]:
    parts = len(entry.ours)
    for piece in pieces:
        if piece.shape[:0] == piece.shape or piece.shape[0] % parts:
            raise CheckpointError(f"{name}: shape {tuple(piece.shape)} cannot hold {parts} equal parts on dimension 0")
    try:
        return [merge(pieces, parts, part, entry.cut) for part in range(parts)]
    except (RuntimeError, IndexError) as error:
        shapes = ", ".join(str(tuple(piece.shape)) for piece in pieces)
        raise CheckpointError(f"{name}: the ranks' pieces do not fit together: {shapes}") from error


def recognise(weights: Weights) -> Original:
    """The family and layout of these weights, by their names; raises CheckpointError if none or several fit."""
    names, config = set(weights.names), weights.config or {}
    # A safetensors file may hold the content of a bin file.
    container = "bin" if weights.container in ONE_RANK else weights.container
    pairs = [(family, layout) for family in families.ours() for layout in family.original_format.LAYOUTS]
    layouts = [(family, layout) for family, layout in pairs if layout.container == container]

    def fitting(layouts: list[tuple[type[Family], Layout]]) -> list[tuple[bool, Original]]:
        return [
            (all(prefix + name in names for name in layout.signature), _fit(family, layout, prefix, weights))
            for family, layout in layouts
            if config.keys() >= set(layout.needs)
            for prefix in dict.fromkeys([*layout.prefixes, *_wrappers(layout, weights.names)])
        ]

    tried = fitting(layouts)
    fits = [fit for signed, fit in tried if signed]
    if not fits and container == "bin":  # as DeepSpeed's zero_to_fp32.py joins what ranks held
        fits = [fit for signed, fit in fitting(pairs) if signed]
    if not fits:  # names of the signature itself may be missing
        few = len(names) / 4  # other models share many of these names: GPT-2 about half of PanGu's
        fits = [fit for _, fit in tried if len(fit.missing) + len(fit.unexpected) < few]
    if not fits:
        known = ", ".join(f"{family.name} ({layout.name})" for family, layout in layouts)
        strange = f"its {len(weights.names)} tensors ({some(weights.names)}) fit no layout that hanmo knows"
        problem = f"{weights.path}: {strange} as {weights.container}: {known}"
        raise CheckpointError(own_code(weights.folder, config) or problem)
    fits.sort(key=lambda fit: len(fit.missing) + len(fit.unexpected))
    best = [fit for fit in fits if not fit.missing and not fit.unexpected]
    if len(best) > 1:
        raise CheckpointError(f"{weights.path}: fits several layouts: {', '.join(fit.title for fit in best)}")
    return fits[0]


def _wrappers(layout: Layout, names: Sequence[str]) -> list[str]:
    """What all names begin with, where a trainer wrapped the network ("module."), before those of the layout."""
    found = (name.removesuffix(layout.signature[0]) for name in names if name.endswith(f".{layout.signature[0]}"))
    return [wrapper for wrapper in found if all(name.startswith(wrapper) for name in names)]


def _fit(family: type[Family], layout: Layout, prefix: str, weights: Weights) -> Original:
    names = {name.removeprefix(prefix) if name.startswith(prefix) else f" {name}" for name in weights.names}
    counts = SimpleNamespace(**layer_counts(layout.entries, names))
    entries = expand(layout.entries, counts)
    ignored = re.compile("|".join(layout.ignored) or r"(?!)")
    known: set[str] = set()
    missing, absent = [], []
    for entry in entries:
        group = (entry.theirs, *entry.copies)
        known.update(group)
        lacking = [name for name in group if name not in names]
        if len(lacking) == len(group) and not entry.optional:
            missing.append(entry.theirs)
        else:
            absent += lacking
    unexpected = sorted(name.strip() for name in names - known if not ignored.fullmatch(name))
    return Original(family, layout, prefix, counts, entries, weights, missing, unexpected, absent)


def layer_counts(entries: Sequence[TensorMapping], names: set[str]) -> dict[str, int]:
    """The number of layers in these names, by the attribute of the configuration that counts them."""
    counts: dict[str, int] = {}
    for entry in entries:
        if entry.over:
            pattern = re.compile(re.escape(entry.theirs).replace(r"\{i\}", r"(\d{1,4})"))
            if entry.only == "last":  # it has its own name: one more layer than the numbered ones
                found = [int(entry.theirs in names)]
            else:
                more = 2 if entry.only == "others" else 1
                found = [int(match[1]) + more for name in names if (match := pattern.fullmatch(name))]
            counts[entry.over] = max([counts.get(entry.over, 0), *found])
    return counts


def some(names: Sequence[str], limit: int = 8) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def without_optional(entries: Sequence[TensorMapping], absent: Sequence[str]) -> list[TensorMapping]:
    """The entries without the names that an original lacked, so that the way back leaves them out."""
    result = []
    for entry in entries:
        group = [name for name in (entry.theirs, *entry.copies) if name not in absent]
        if group:
            result.append(replace(entry, theirs=group[0], copies=tuple(group[1:])))
    return result
