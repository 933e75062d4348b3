"""The source of a conversion: our tensors by name, in whatever form they are stored, as a stream of blocks."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from hanmo.checkpoints.files.tensor_files import LazyTensor, in_blocks
from hanmo.checkpoints.locate import Located
from hanmo.checkpoints.open import dtype_name, keeps_precision
from hanmo.checkpoints.originals.config_inference import absent_tensors, expected_shapes, infer_config
from hanmo.errors import CheckpointError
from hanmo.families.weight_map import TensorMapping, rows_of_a_rank


@dataclass(frozen=True)
class Source:
    located: Located
    config: PretrainedConfig | None  # None: an original that can only be split again, as nothing determines it
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    absent: list[str]  # the tensors that the files lack; they are zero
    title: str  # for reports

    @property
    def counts(self) -> Any:
        """The object that holds the number of layers: the configuration, or the counts from the names found."""
        return self.config if self.config is not None or self.located.original is None else self.located.original.counts

    def tensor(
        self, name: str, dtype: torch.dtype | None, cut: int | None = None, rank: int = 0, ranks: int = 1, fill: int = 0
    ) -> LazyTensor:
        """One of our tensors, or a rank's piece of it, in the dtype to write; ``fill``: ``TensorMapping.vocabulary``."""
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
            for block in in_blocks(*self._views(name, cut, start, end)):
                yield _converted(name, block, wanted)
            if fill and end - start < shape[0]:
                yield torch.zeros(shape[0] - (end - start), *shape[1:], dtype=wanted)

        return LazyTensor(tuple(shape), wanted, blocks)

    def scaled(self, name: str, dtype: torch.dtype, by: float) -> LazyTensor:
        """One of our tensors, multiplied in fp32; only the result is rounded."""
        whole = self.tensor(name, torch.float32)
        return LazyTensor(whole.shape, dtype, lambda: (_converted(name, block * by, dtype) for block in whole.blocks()))

    def piece(self, entry: TensorMapping, rank: int, ranks: int, dtype: torch.dtype | None) -> LazyTensor:
        """One rank's piece of a tensor of the original: the pieces of ours that it fuses, one after the other."""
        parts = [self.tensor(name, dtype, entry.cut, rank, ranks, entry.vocabulary) for name in entry.ours]
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        return LazyTensor(shape, parts[0].dtype, lambda: chain(*(part.blocks() for part in parts)))

    def dtype_of(self, name: str, dtype: torch.dtype | None) -> torch.dtype:
        """``dtype``, except for integers and for tensors that are never rounded; None keeps the stored one."""
        stored = self.dtypes[name]
        if dtype is None or not stored.is_floating_point:
            return stored
        return torch.promote_types(stored, dtype) if keeps_precision(self.located.family, name) else dtype

    def _views(self, name: str, cut: int | None, start: int, end: int) -> tuple[list[Tensor], int]:
        if self.located.original is not None:
            return self.located.original.views(name, cut, start, end)
        tensor = self.located.weights.ranks[0][name]
        return [tensor if cut is None else tensor.narrow(cut, start, end - start)], 0


def _converted(name: str, stored: Tensor, dtype: torch.dtype) -> Tensor:
    written = stored.to(dtype)
    if written.dtype != stored.dtype and not torch.equal(written.isfinite(), stored.isfinite()):
        largest = f"{stored.abs().max():.3g}"
        raise CheckpointError(f"{name}: holds {largest}, which does not fit {dtype_name(dtype)}; use bf16")
    return written


def source_of(located: Located, size: str | None, config: str | Path | None, needs_config: bool) -> Source:
    """A located model; ``size`` and ``config`` as for ``open_model``.

    CheckpointError if tensors are missing, of other shapes or contradictory, or nothing decides the configuration.
    """
    located.weights.check_dtypes()
    if located.original is None:
        return _folder_source(located)
    located.original.require_complete()
    located.original.check_copies()
    try:
        inferred, size_name = infer_config(located.original, size, config)
    except CheckpointError:
        if needs_config or size or config:  # splitting needs none, but one that is given must fit
            raise
        return original_source(located, None, None)
    return original_source(located, inferred, size_name)


def original_source(located: Located, config: PretrainedConfig | None, size_name: str | None) -> Source:
    """An original checkpoint as a source; without a configuration it can only be split again."""
    original = located.original
    assert original is not None
    shapes = dict(original.shapes)
    dtypes = {ours: original.pieces(name)[0].dtype for entry, name in original.present() for ours in entry.ours}
    absent: list[str] = []
    if config is not None:
        absent = absent_tensors(original, config)
        expected = expected_shapes(original.family, config)
        shapes.update({name: expected[name] for name in absent})
        dtypes.update(dict.fromkeys(absent, original.weights.dtype))
    ranks = f", {len(original.weights.ranks)} ranks" if len(original.weights.ranks) > 1 else ""
    title = f"{located.path}: {size_name or original.family.name} in {original.layout.name} layout{ranks}"
    return Source(located, config, shapes, dtypes, absent, title)


def _folder_source(located: Located) -> Source:
    """A folder of ours, whose configuration lists the required tensors, or a transformers folder, taken as it is."""
    config, tensors = located.config(), located.weights.ranks[0]
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    shapes = expected_shapes(located.family, config) if located.is_ours else found
    for name, shape in shapes.items():
        if found.get(name) != shape:
            raise CheckpointError(f"{located.path}: {name} is {found.get(name) or 'missing'}, expected {shape}")
    form = f"{located.family.name} in hanmo's form" if located.is_ours else f"{config.model_type} of transformers"
    dtypes = {name: tensors[name].dtype for name in shapes}
    return Source(located, config, shapes, dtypes, [], f"{located.path}: {form}")
