"""Adapters and frozen layers on the smallest network."""

from __future__ import annotations

import pytest
from torch import nn

from hanmo.errors import ConfigError
from hanmo.training.adapt import add_lora, freeze_layers
from tests.toy import ToyFamily, toy_model


def test_only_adapters_are_trained() -> None:
    network = add_lora(toy_model(), ToyFamily.lora_targets, 2, 4, 0.0)
    trained = {name: parameter.shape for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert len(trained) == 4  # A and B of two layers
    assert all("lora" in name and 2 in shape for name, shape in trained.items())


def test_unknown_targets_are_answered_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"lora_targets: .*q_proj.*linear modules here: 0, 1, lm_head"):
        add_lora(toy_model(), ["q_proj"], 2, 4, 0.0)
    with pytest.raises(ConfigError, match="this family names none"):
        add_lora(toy_model(), [], 2, 4, 0.0)


def test_the_first_layers_of_every_stack_are_frozen() -> None:
    network = nn.ModuleDict(
        {
            "encoder": nn.ModuleDict({"blocks": nn.ModuleList(nn.ModuleList([nn.Linear(1, 1)] * 2) for _ in range(4))}),
            "decoder": nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(1, 1) for _ in range(5))}),
        }
    )
    assert freeze_layers(network, 0.5) == [
        "encoder.blocks.0", "encoder.blocks.1", "decoder.blocks.0", "decoder.blocks.1",
    ]  # fmt: skip
    assert not network["encoder"]["blocks"][1][0].weight.requires_grad
    assert network["encoder"]["blocks"][2][0].weight.requires_grad
    assert network["decoder"]["blocks"][2].weight.requires_grad


def test_nothing_is_frozen_below_one_layer() -> None:
    assert freeze_layers(toy_model(), 0.4) == []
    assert freeze_layers(toy_model(), 0.5) == ["layers.0"]
