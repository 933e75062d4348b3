"""Which blocks a share of frozen layers means, by the recorded rule."""

from typing import Any

import pytest
import torch
from torch import nn

from hanmo.families.pangu.modeling import PanguConfig, PanguModel
from hanmo.training.trainable import freeze_layers, keep_top_layers
from tests.places import PARITY, load, needs_parity

pytestmark = needs_parity("pangu")
KEY, END = "freeze_ratio_", "_frozen"
CASES = [
    (case["num_layers"], float(key.removeprefix(KEY).removesuffix(END)), blocks)
    for case in load(PARITY / "pangu" / "reward_freezing.json", {}).get("cases", [])
    for key, blocks in case.items()
    if key.startswith(KEY) and key.endswith(END)
]


@pytest.mark.parametrize("layers, share, blocks", CASES)
def test_frozen_blocks(layers: int, share: float, blocks: list[int]) -> Any:
    network = nn.Sequential()
    network.h = nn.ModuleList(nn.Linear(1, 1) for _ in range(layers))
    network.ln_f = nn.LayerNorm(1)
    assert freeze_layers(network, share) == [f"h.{block}" for block in blocks]
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"h.{block}.{kind}" for block in blocks for kind in ("weight", "bias")}


PUBLISHED = [
    (case["num_layers"], case["first_70_percent_frozen"])
    for case in load(PARITY / "pangu" / "reward_freezing.json", {}).get("cases", [])
]


@pytest.mark.parametrize("layers, blocks", PUBLISHED)
def test_published_rule(layers: int, blocks: list[int]) -> None:
    """The rule behind the published reward models: 0.3 of the blocks, rounded down, are trained; of few blocks all."""
    network = nn.Sequential()
    network.h = nn.ModuleList(nn.Linear(1, 1) for _ in range(layers))
    assert keep_top_layers(network, 0.3) == [f"h.{block}" for block in blocks]


TRAINABLE = load(PARITY / "pangu" / "reward_freezing.json", {}).get("trainable_parameters", [])


@pytest.mark.parametrize("case", TRAINABLE, ids=lambda case: case["model"])
def test_published_counts_of_trained_parameters(case: dict[str, Any]) -> None:
    sizes = {"hidden_size": case["hidden"], "num_layers": case["layers"], "vocab_size": case["vocab"]}
    with torch.device("meta"):
        network = PanguModel(PanguConfig(**sizes, num_heads=16, value_head="linear"))
    assert len(keep_top_layers(network, 0.3)) == case["frozen_blocks"]
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == case["trainable_with_v_head"]
