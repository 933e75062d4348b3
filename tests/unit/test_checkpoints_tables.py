"""Every family's table as a property: whatever the shapes and the numbers of ranks, nothing is lost or mixed up."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hanmo import families
from hanmo.checkpoints.files import tensor_files
from hanmo.checkpoints.locate import Located
from hanmo.checkpoints.originals.config_inference import expected_shapes
from hanmo.checkpoints.originals.recognise import recognise
from hanmo.checkpoints.originals.weights import ROWS, Weights
from hanmo.checkpoints.originals.writer import padded_rows
from hanmo.checkpoints.source import Source, original_source
from hanmo.families.base import Family
from hanmo.families.weight_map import Layout, expand

LAYOUTS = [(family, layout) for family in families.ours() for layout in family.original_format.LAYOUTS]
# Configuration keys by what is drawn; a family's own names.
KEYS = {
    "eva": {"width": ["d_model"], "heads": ["num_heads"], "depth": ["num_layers"], "other": ["num_decoder_layers"]},
    "transformer_xl": {"width": ["hidden_size"], "heads": ["num_heads"], "depth": ["num_layers"]},
    "pangu": {"width": ["hidden_size"], "heads": ["num_heads"], "depth": ["num_layers"]},
    "glm": {"width": ["hidden_size"], "heads": ["num_attention_heads"], "depth": ["num_layers"]},
}
FIXED = {
    "eva": {"d_kv": 2, "d_ff": 48},
    "pangu": {"max_position_embeddings": 5},
    "glm": {"max_sequence_length": 5},
    "transformer-xl-absolute-megatron": {"relative": False, "max_position_embeddings": 5, "memory_length": 0},
}


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Any:
    """Tensors of these tests, too, are read in several blocks."""
    patch = pytest.MonkeyPatch()
    patch.setattr(tensor_files, "BLOCK", 64)
    yield
    patch.undo()


def ours(family: type[Family], config: Any, tensors: dict[str, Tensor]) -> Source:
    located = Located(Path("drawn"), Weights(Path("drawn"), "safetensors", [], [tensors]), family)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    return Source(located, config, shapes, dtypes, [], "drawn")


def written(source: Source, layout: Layout, ranks: int) -> list[dict[str, Tensor]]:
    """The tensors of every rank's file, joined from the blocks that would be written."""
    result = []
    for rank in range(ranks):
        tensors = {}
        for entry in expand(layout.entries, source.counts):
            stored = source.piece(entry, rank, ranks, None)
            whole = torch.cat([block.reshape(-1) for block in stored.blocks()]).reshape(stored.shape)
            tensors.update(dict.fromkeys((entry.theirs, *entry.copies), whole))
        result.append({layout.prefixes[-1] + name: tensor for name, tensor in tensors.items()})
    return result


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.shape == other[name].shape and torch.equal(tensor, other[name]), name


@pytest.mark.parametrize(("family", "layout"), LAYOUTS, ids=lambda item: item.name)
@given(data=st.data())
@settings(max_examples=12)
def test_merging_undoes_splitting_and_n_to_m_is_the_split_of_the_whole(
    family: type[Family], layout: Layout, data: st.DataObject
) -> None:
    first, second = (data.draw(st.integers(1, 4)) if layout.splits else 1 for _ in range(2))
    heads = first * second * data.draw(st.integers(1, 2))
    drawn = {
        "heads": heads,
        "width": 2 * heads * data.draw(st.integers(1, 2)),
        "depth": data.draw(st.integers(1, 3)),
        "other": data.draw(st.integers(1, 3)),
    }
    chosen = {key: drawn[what] for what, keys in KEYS[family.name].items() for key in keys}
    fixed = FIXED.get(family.name, {}) | FIXED.get(layout.name, {})
    if "d_ff" in fixed:
        fixed = {**fixed, "d_ff": fixed["d_ff"] * first * second}
    rows = data.draw(st.integers(1, 600))  # of the vocabulary: filled up where they do not divide
    config = family.config_class(vocab_size=rows, **{**chosen, **fixed, **layout.implies})
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    shapes = expected_shapes(family, config)
    whole = {name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()}

    source = ours(family, config, whole)
    ranks, source_entries = written(source, layout, first), expand(layout.entries, config)
    for entry in source_entries:
        if entry.vocabulary:
            name = layout.prefixes[-1] + entry.theirs
            lengths = {len(rank[name]) for rank in ranks}
            assert lengths == {
                rows // first if rows % first == 0 else -(-rows // (first * entry.vocabulary)) * entry.vocabulary
            }
            assert not torch.cat([rank[name] for rank in ranks])[rows:].any(), "what fills up is zeros"
    said = dict.fromkeys(layout.needs, True) or None
    filled = padded_rows(source_entries, shapes, first)
    assert (filled is None) == (not layout.splits or rows % first == 0)
    state = {} if filled is None else {ROWS: filled}
    split = recognise(Weights(Path("drawn"), layout.container, [Path("file")] * first, ranks, state, config=said))
    split.require_complete()
    split.check_copies()
    assert split.layout == layout
    assert_same(dict(split.tensors()), whole)
    assert_same({name: split.tensor(name) for name in whole}, whole)
    for direct, through in zip(
        written(source, layout, second),
        written(original_source(Located(Path("drawn"), split.weights, family, split), None, None), layout, second),
        strict=True,
    ):
        assert_same(direct, through)
