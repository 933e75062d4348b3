"""What a conversion reads: our tensors by name, whatever form they are in, as a stream of blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from hanmo.checkpoints.files.tensor_files import LazyTensor, in_blocks
from hanmo.checkpoints.open import dtype_name, family_of_folder, family_of_ours, keeps_precision
from hanmo.checkpoints.originals.config_inference import absent_tensors, expected_shapes, infer_config
from hanmo.checkpoints.originals.locate import Weights, find_weights
from hanmo.checkpoints.originals.recognise import Original, recognise
from hanmo.errors import CheckpointError
from hanmo.families.base import Family
from hanmo.families.safe_loading import check_adapter, safe_config
from hanmo.families.weight_map import TensorMapping, rows_of_a_rank


@dataclass(frozen=True)
class Source:
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
    views: Callable[[str, int | None, int, int], tuple[list[Tensor], int]]
    absent: list[str]
    original: Original | None
    files: list[Path]
    what: str

    def stored(
        self, name: str, dtype: torch.dtype | None, cut: int | None = None, rank: int = 0, ranks: int = 1, fill: int = 0
    ) -> LazyTensor:
        """One of our tensors, or one rank's piece of it, in the dtype to write.

        Args:
            fill: see ``TensorMapping.vocabulary``.
        """
        shape, wanted = list(self.shapes[name]), self.dtype_of(name, dtype)
        start = end = 0
        if cut is not None:
            whole = shape[cut]
            shape[cut] = rows_of_a_rank(whole, ranks, fill)
            start, end = (min(number * shape[cut], whole) for number in (rank, rank + 1))

        def blocks() -> Iterator[Tensor]:
            if name in self.absent:
                yield torch.zeros(shape, dtype=wanted)
                return
            for block in in_blocks(*self.views(name, cut, start, end)):
                yield _converted(name, block, wanted)
            if fill and end - start < shape[0]:
                yield torch.zeros(shape[0] - (end - start), *shape[1:], dtype=wanted)

        return LazyTensor(tuple(shape), wanted, blocks)

    def scaled(self, name: str, dtype: torch.dtype, by: float) -> LazyTensor:
        """One of our tensors, multiplied in fp32; only the result is rounded."""
        whole = self.stored(name, torch.float32)
        return LazyTensor(whole.shape, dtype, lambda: (_converted(name, block * by, dtype) for block in whole.blocks()))

    def piece(self, entry: TensorMapping, rank: int, ranks: int, dtype: torch.dtype | None) -> LazyTensor:
        """One rank's piece of a tensor of the original: the pieces of ours that it fuses, one after the other."""
        parts = [self.stored(name, dtype, entry.cut, rank, ranks, entry.vocabulary) for name in entry.ours]
        rows = sum(part.shape[0] for part in parts)
        return LazyTensor(
            (rows, *parts[0].shape[1:]), parts[0].dtype, lambda: chain(*(part.blocks() for part in parts))
        )

    def dtype_of(self, name: str, dtype: torch.dtype | None) -> torch.dtype:
        """As wanted; as stored for whole numbers and where nothing is wanted. Some tensors are never rounded."""
        stored = self.dtypes[name]
        if dtype is None or not stored.is_floating_point:
            return stored
        return torch.promote_types(stored, dtype) if keeps_precision(self.family, name) else dtype


def _converted(name: str, stored: Tensor, dtype: torch.dtype) -> Tensor:
    written = stored.to(dtype)
    if written.dtype != stored.dtype and not torch.equal(written.isfinite(), stored.isfinite()):
        raise CheckpointError(
            f"{name}: holds {stored.abs().max():.3g}, which does not fit {dtype_name(dtype)}; use bf16"
        )
    return written


def find_source(path: Path, size: str | None, config: str | Path | None, needs_config: bool) -> Source:
    """What lies at a path, complete and consistent; ``size`` and ``config`` as for ``open_model``."""
    if family := family_of_ours(path):
        return _our_source(path, family)
    if family := family_of_folder(path):
        return _transformers_source(path, family)
    original = recognise(find_weights(path))
    original.require_complete()
    original.check_copies()
    return original_source(original, *_settled(original, size, config, needs_config))


def original_source(original: Original, settled: PretrainedConfig | None, size_name: str | None) -> Source:
    """An original checkpoint as a source; without a configuration it can only be split anew."""
    shapes, dtypes = dict(original.shapes), original.dtypes()
    absent: list[str] = []
    if settled is not None:
        absent = absent_tensors(original, settled)
        expected = expected_shapes(original.family, settled)
        shapes.update({name: expected[name] for name in absent})
        dtypes.update(dict.fromkeys(absent, original.dtype))
    ranks = f", {len(original.weights.ranks)} ranks" if len(original.weights.ranks) > 1 else ""
    what = f"{original.weights.path}: {size_name or original.family.name} in {original.layout.name} layout{ranks}"
    counts = original.counts if settled is None else settled
    files = original.weights.files
    return Source(original.family, settled, counts, shapes, dtypes, original.views, absent, original, files, what)


def _our_source(path: Path, family: type[Family]) -> Source:
    weights = find_weights(path)  # before the configuration, which it checks
    config = safe_config(path, family.config_class)
    tensors = weights.ranks[0]
    shapes = expected_shapes(family, config)
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shape:
            raise CheckpointError(f"{path}: {name} is {found or 'missing'}, expected {shape}")
    return _folder_source(family, config, weights, shapes, f"{path}: {family.name} in hanmo's form")


def _transformers_source(path: Path, family: type[Family]) -> Source:
    """A model of transformers: tensors by the names they have, as transformers itself knows which there must be."""
    check_adapter(path)
    weights = find_weights(path)
    config = safe_config(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.ranks[0].items()}
    return _folder_source(family, config, weights, shapes, f"{path}: {config.model_type} of transformers")


def _folder_source(
    family: type[Family], config: PretrainedConfig, weights: Weights, shapes: dict[str, tuple[int, ...]], what: str
) -> Source:
    tensors = weights.ranks[0]
    dtypes = {name: tensors[name].dtype for name in shapes}

    def views(name: str, cut: int | None, start: int, end: int) -> tuple[list[Tensor], int]:
        return [tensors[name] if cut is None else tensors[name].narrow(cut, start, end - start)], 0

    return Source(family, config, config, shapes, dtypes, views, [], None, weights.files, what)


def _settled(
    original: Original, size: str | None, config: str | Path | None, needed: bool
) -> tuple[PretrainedConfig | None, str | None]:
    """The configuration and the size's name; re-splitting does without, but what is given must fit."""
    try:
        return infer_config(original, size, config)
    except CheckpointError:
        if needed or size or config:
            raise
        return None, None
