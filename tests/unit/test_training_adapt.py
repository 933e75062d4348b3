"""Adapters and frozen layers on the smallest network."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from hanmo.errors import ConfigError
from hanmo.records import PromptResponse
from hanmo.rows import collate
from hanmo.training.trainable import (
    LoraSettings,
    add_lora,
    checkpoint_layers,
    compile_layers,
    freeze_layers,
    switch_dropout_off,
)
from tests.toy import ToyFamily, toy_model
from tests.unit.test_packing import examples
from tests.unit.tiny import NAMES, tiny


def test_only_adapters_are_trained() -> None:
    network = add_lora(toy_model(), LoraSettings(2, 4), ToyFamily.lora_targets)
    trained = {name: parameter.shape for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert len(trained) == 4  # A and B of two layers
    assert all("lora" in name and 2 in shape for name, shape in trained.items())


def test_unknown_targets_are_answered_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"lora\.targets: .*q_proj.*linear modules here: 0, 1, lm_head"):
        add_lora(toy_model(), LoraSettings(2, targets=("q_proj",)), ToyFamily.lora_targets)
    with pytest.raises(ConfigError, match="this family names none"):
        add_lora(toy_model(), LoraSettings(2), [])


def test_the_first_layers_of_every_stack_are_frozen() -> None:
    network = nn.ModuleDict(
        {
            "encoder": nn.ModuleDict({"blocks": nn.ModuleList(nn.ModuleList([nn.Linear(1, 1)] * 2) for _ in range(4))}),
            "decoder": nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(1, 1) for _ in range(5))}),
        }
    )
    assert freeze_layers(network, 0.5) == [
        "encoder.blocks.0",
        "encoder.blocks.1",
        "decoder.blocks.0",
        "decoder.blocks.1",
    ]
    assert not network["encoder"]["blocks"][1][0].weight.requires_grad
    assert network["encoder"]["blocks"][2][0].weight.requires_grad
    assert network["decoder"]["blocks"][2].weight.requires_grad


def test_nothing_is_frozen_below_one_layer() -> None:
    assert freeze_layers(toy_model(), 0.4) == []
    assert freeze_layers(toy_model(), 0.5) == ["layers.0"]


class Counted(TorchDispatchMode):
    """How often each operation runs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function.name().partition(".")[0]] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_computed_again_and_gradients_stay(name: str, tmp_path: Path) -> None:
    """Full: matrix products run again too; selective: only what is cheap."""
    opened = tiny(name, tmp_path)
    rows = [examples(opened).row(place) for place in range(2)]
    batch = collate(rows, opened.family.padding)
    products, others, gradients = {}, {}, {}
    for kind in ("none", "selective", "full"):
        network = copy.deepcopy(opened.network).train()
        if kind != "none":
            checkpoint_layers(network, selective=kind == "selective")
        torch.manual_seed(5)  # dropout draws the same again
        with Counted() as counted:
            network(**batch).loss.backward()
        products[kind] = sum(counted.counts[f"aten::{operation}"] for operation in ("mm", "addmm", "bmm"))
        others[kind] = sum(counted.counts.values()) - products[kind]
        gradients[kind] = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert products["none"] == products["selective"] < products["full"]
    assert others["none"] < others["selective"]
    for kind in ("selective", "full"):
        assert len(gradients[kind]) == len(gradients["none"]) > 0
        for ours, theirs in zip(gradients[kind], gradients["none"], strict=True):
            assert isinstance(ours, Tensor) and isinstance(theirs, Tensor)
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_layers_are_compiled_without_breaks_and_the_head_is_not(name: str, bf16: bool, tmp_path: Path) -> None:
    torch._dynamo.reset()
    opened, counter = tiny(name, tmp_path), CompileCounter()
    network = opened.network.train()
    switch_dropout_off(network)
    texts = [("你好吗", "我很好"), ("明天去哪里玩", "我们去吃火锅。今天天气真不错")]
    rows = [opened.family.row(opened.family.parts(PromptResponse(*text), 48)[0]) for text in texts]
    batch = collate(rows, opened.family.padding)
    losses = []
    for compiled in (False, True):
        if compiled:
            compile_layers(network, counter, None)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses.append(network(**batch).loss)
    losses[1].backward()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=2e-3 if bf16 else 1e-5)
    kinds = {"eva": 2, "pangu": 2}.get(name, 1)  # encoder and decoder; layers and the query layer
    assert counter.frame_count == kinds
    assert network.get_output_embeddings()._compiled_call_impl is None
