"""PanGu-α's and GLM's recorded folders: every tensor as ours and back under the very same names."""

import json
from pathlib import Path

import pytest
import torch

from hanmo.checkpoints.convert import convert
from hanmo.checkpoints.originals.weights import find_weights
from tests.originals import read_original
from tests.parity.test_split_checkpoints import assert_same_tensors
from tests.places import PARITY, VOCAB

VOCABULARIES = {"pangu": VOCAB / "pangu" / "vocab.model", "glm": VOCAB / "cog-pretrain.model"}
FOLDERS = [folder for name in VOCABULARIES for folder in sorted((PARITY / name / "checkpoints").glob("*"))]
folders = pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parts[-3]}-{path.name}")


@folders
def test_recognised_by_its_files(folder: Path) -> None:
    original, config, _ = read_original(folder)
    recorded = json.loads((folder / "config.json").read_text())
    assert original.family.name == folder.parts[-3]
    assert (config.vocab_size, config.num_layers) == (recorded["vocab_size"], recorded["num_layers"])
    assert config.num_attention_heads == recorded.get("num_heads", recorded.get("num_attention_heads"))


@folders
def test_written_again_it_is_the_same(tmp_path: Path, folder: Path) -> None:
    convert(folder, tmp_path / "again", to="original")
    assert_same_tensors(find_weights(folder), find_weights(tmp_path / "again"))
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == find_weights(folder).config


@pytest.mark.parametrize("name", [name for name in VOCABULARIES if (PARITY / name / "checkpoints" / "text").is_dir()])
def test_by_way_of_our_folder_it_is_the_same(tmp_path: Path, name: str) -> None:
    folder = PARITY / name / "checkpoints" / "text"
    convert(folder, tmp_path / "ours", vocab=VOCABULARIES[name])
    convert(tmp_path / "ours", tmp_path / "back", to="original")
    assert_same_tensors(find_weights(folder), find_weights(tmp_path / "back"))
    for weights in find_weights(tmp_path / "ours").ranks:
        assert all(tensor.isfinite().all() for tensor in weights.values() if tensor.dtype != torch.uint8)
