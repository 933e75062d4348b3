"""Which blocks a share of frozen layers means, by the recorded rule."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from hanmo.training.adapt import freeze_layers
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
