"""Every recorded checkpoint: its tensors as ours, and the configuration that the files show."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hanmo.errors import CheckpointError
from hanmo.families.weight_map import expand
from tests.originals import read_original
from tests.parity.transformer_xl_models import CONFIGS, FOLDER
from tests.places import needs_parity

pytestmark = needs_parity("transformer_xl")
CHECKPOINTS = FOLDER / "checkpoints"
EXPECTED = sorted((CHECKPOINTS / "expected_weights").glob("*.safetensors"))
RELATIVE = {name.split()[0]: facts for name, facts in CONFIGS.items() if facts["relative_encoding"]}
ABSOLUTE = [name.split()[0] for name, facts in CONFIGS.items() if not facts["relative_encoding"]]


@pytest.mark.parametrize("path", EXPECTED, ids=lambda path: path.stem)
def test_expected_weights(path: Any) -> None:
    recorded = load_file(path)
    original, config, _ = read_original(CHECKPOINTS / path.stem)
    ours = dict(original.tensors())
    compared = set()
    for entry in expand(original.layout.entries, config):
        assert torch.equal(torch.cat([ours[name] for name in entry.ours]), recorded[entry.theirs]), entry.theirs
        compared.add(entry.theirs)
    assert compared == recorded.keys()


@pytest.mark.parametrize("whole", sorted(name for name in RELATIVE if (CHECKPOINTS / f"{name}_MP2").is_dir()))
def test_shards_are_the_whole(whole: str) -> None:
    one, two = (dict(read_original(CHECKPOINTS / name)[0].tensors()) for name in (whole, f"{whole}_MP2"))
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize("name", RELATIVE)
def test_configuration_of_the_relative_variant(name: str) -> None:
    facts = RELATIVE[name]
    original, config, size = read_original(CHECKPOINTS / name)
    assert size is None
    assert (config.num_layers, config.hidden_size) == (facts["num_layers"], facts["hidden"])
    assert (config.num_heads, config.vocab_size) == (facts["heads"], facts["vocab"])
    assert config.half_positions == (original.weights.dtype == torch.float16)


@pytest.mark.parametrize("name", ABSOLUTE)
def test_the_absolute_variant_does_not_say_its_heads(name: str) -> None:
    with pytest.raises(CheckpointError, match="num_heads"):
        read_original(CHECKPOINTS / name)
