"""Splits that the originals' own scripts made: reproduced bit for bit in both directions, for every family."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hanmo.checkpoints.convert import convert
from hanmo.checkpoints.originals.weights import Weights, find_weights
from tests.places import PARITY, load

MODELS = load(PARITY / "eva" / "models.json", {})
HASHES = load(PARITY / "eva" / "mp_split_hashes.json", {"splits": {}})["splits"]
TWO_RANKS = load(PARITY / "eva" / "mp.json", {})


def split_pairs() -> list[tuple[Path, Path]]:
    """The recorded whole checkpoints and what became of them."""
    pairs = [
        (PARITY / "eva" / facts["checkpoint"], PARITY / "eva" / split)
        for facts in MODELS.values()
        for split in facts["mp_checkpoints"].values()
    ]
    for folder in (PARITY / "transformer_xl" / "checkpoints", PARITY / "glm" / "megatron"):
        for split in sorted(folder.glob("*_MP*")):
            if split.is_dir():
                pairs.append((split.with_name(re.sub(r"_MP\d+$", "", split.name)), split))
    return pairs


pairs = pytest.mark.parametrize(
    ("whole", "split"), split_pairs(), ids=lambda path: str(path.relative_to(PARITY)).replace("/", "-")
)


def assert_same_tensors(one: Weights, other: Weights) -> None:
    assert len(one.ranks) == len(other.ranks)
    for tensors, others in zip(one.ranks, other.ranks, strict=True):
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():
            assert tensor.dtype == others[name].dtype and torch.equal(tensor, others[name]), name


@pairs
def test_splitting_gives_the_recorded_shards(tmp_path: Path, whole: Path, split: Path) -> None:
    recorded = find_weights(split)
    convert(whole, tmp_path / "split", to="original", ranks=len(recorded.ranks))
    ours = find_weights(tmp_path / "split")
    assert_same_tensors(ours, recorded)
    known = {key: value for key, value in recorded.state.items() if value is not None or key in ours.state}
    assert known.items() <= ours.state.items()


@pairs
def test_merging_gives_the_recorded_whole(tmp_path: Path, whole: Path, split: Path) -> None:
    convert(split, tmp_path / "whole", to="original", ranks=1)
    assert_same_tensors(find_weights(tmp_path / "whole"), find_weights(whole))


@pytest.mark.parametrize("name", HASHES)
def test_splits_of_which_only_hashes_are_recorded(tmp_path: Path, name: str) -> None:
    """Also from a recorded split of another number of ranks: N to M is the split of the whole."""
    shards = HASHES[name]
    facts = MODELS[name.rsplit("_mp", 1)[0]]
    for source in (facts["checkpoint"], *facts["mp_checkpoints"].values()):
        target = tmp_path / Path(source).name
        convert(PARITY / "eva" / source, target, to="original", ranks=len(shards))
        weights = find_weights(target)
        assert [file.name for file in weights.files] == list(shards)
        for tensors, recorded in zip(weights.ranks, shards.values(), strict=True):
            assert {name: _hashed(tensor) for name, tensor in tensors.items()} == recorded


def _hashed(tensor: torch.Tensor) -> list[Any]:
    return [list(tensor.shape), hashlib.sha256(tensor.contiguous().numpy().astype("<f2").tobytes()).hexdigest()]


@pytest.mark.parametrize("name", TWO_RANKS)
def test_shapes_of_the_originals_own_ranks(name: str) -> None:
    facts = TWO_RANKS[name]
    weights = find_weights(PARITY / "eva" / MODELS[facts["model"]]["mp_checkpoints"][str(facts["mp"])])
    for tensors in weights.ranks:
        for parameter, shape in facts["rank_param_shapes"].items():
            assert list(tensors[parameter].shape) == shape, parameter
