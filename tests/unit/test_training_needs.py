"""What a dry run says a step needs: within a tenth of what a real one takes, without reading or computing a weight."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from hanmo.checkpoints import open as opening
from hanmo.checkpoints import open_model, save_model
from hanmo.nn.row_model import attach_value_head
from hanmo.nn.shapes import Shapes
from hanmo.records import PromptResponse
from hanmo.rows import collate
from hanmo.training.lifecycle import dry_run
from hanmo.training.stages.sft import SftConfig, sft
from hanmo.training.trainable import LoraSettings, add_lora, checkpoint_layers
from tests.devices.stages import STAGES, prepare
from tests.unit.tiny import NAMES, tiny

TEXTS = [("你好吗" * 5, "我很好" * 5), ("明天去哪里玩", "我们去吃火锅。今天天气真不错" * 3)] * 16
KEPT = {"everything": None, "products": True, "inputs": False}  # how much layers keep for the backward pass


def step(network: Any, batch: dict[str, torch.Tensor], lowered: Callable[[], Any]) -> None:
    with lowered():
        loss = network(**batch).loss
    loss.backward()


def taken(network: nn.Module, batch: dict[str, torch.Tensor], lowered: Callable[[], Any]) -> int:
    """The most bytes that the allocator held at once in a step, beside what was there before."""
    step(network, batch, lowered)  # gradients, and tables that are made at first use
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step(network, batch, lowered)
    events = [one for one in seen.profiler.kineto_results.events() if one.name() == "[memory]"]
    live = peak = 0
    for one in sorted(events, key=lambda one: one.start_ns()):
        live += one.nbytes()
        peak = max(peak, live)
    network.zero_grad()
    return peak


@pytest.mark.parametrize("adapted", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["weights", "adapters"])
@pytest.mark.parametrize("bf16", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["bf16", "fp32"])
@pytest.mark.parametrize(
    "kept", [one if one == "products" else pytest.param(one, marks=pytest.mark.slow) for one in KEPT]
)
@pytest.mark.parametrize("name", NAMES)
def test_shapes_say_what_a_step_takes(name: str, kept: str, bf16: bool, adapted: bool, tmp_path: Path) -> None:
    opened = tiny(name, tmp_path)
    network: Any = opened.network.train()
    if adapted:
        network = add_lora(network, LoraSettings(2), opened.family.lora_targets)
    if KEPT[kept] is not None:
        checkpoint_layers(network, selective=bool(KEPT[kept]))
    rows = [opened.family.row(opened.family.parts(PromptResponse(*text), 128)[0]) for text in TEXTS]
    batch = collate(rows, opened.family.padding)

    def lowered() -> Any:
        return torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()

    expected = taken(network, batch, lowered)
    shapes = Shapes()
    shapes.shaped(network, torch.device("cpu"))
    with shapes:
        step(network, batch, lowered)
        before = shapes.peak = shapes.live
        step(network, batch, lowered)
    assert shapes.live == before  # nothing is kept from step to step
    assert shapes.peak - before == pytest.approx(expected, rel=0.1)


def reads(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a dry run opened the weights")


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_reads_no_weight(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, name)
    real = open_model(tmp_path / "model", device="cpu").network

    monkeypatch.setattr(opening, "safe_network", reads)
    settings = {"per_device_train_batch_size": 2, "use_cpu": True, "max_steps": 3}
    config = SftConfig(
        str(tmp_path / "model"), str(tmp_path / "prompts"), str(tmp_path / "run"), limit=64, trainer=settings
    )
    found = dry_run(sft, config)
    assert found["parameters"] == sum(one.numel() for one in real.parameters())
    memory = found["memory"]
    assert memory["weights"] == memory["gradients"] == memory["optimizer"] / 2 == 4 * found["parameters"]
    assert memory["weights"] + memory["optimizer"] + memory["gradients"] < memory["total"] < sum(memory.values())
    for other, expected in (("sgd", 0), ("adamw_bnb_8bit", 2 * found["parameters"])):
        changed = SftConfig(**{**vars(config), "trainer": {**settings, "optim": other}})
        assert dry_run(sft, changed)["memory"]["optimizer"] == expected


def test_the_operations_of_a_step_are_counted() -> None:
    """Two of a product of (3, 4) and (4, 5) for each of its 60 pairs, and twice that for both gradients."""
    shapes, layer = Shapes(), nn.Linear(4, 5, bias=False)
    shapes.shaped(layer, torch.device("cpu"))
    with shapes:
        layer(torch.ones(3, 4).requires_grad_()).sum().backward()
    assert shapes.operations == 3 * 2 * 60


def test_places_of_a_mask_and_tied_weights_stay() -> None:
    """As many numbers come out of a mask as it has ones; a weight that two layers share stays one."""
    shapes, pair = Shapes(), nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    pair[1].weight = pair[0].weight
    shapes.shaped(pair, torch.device("cpu"))
    assert pair[1].weight is pair[0].weight
    mask = torch.tensor([True, False, True])
    with shapes:
        hidden = pair[0](torch.ones(3, 4))
        chosen = hidden[mask]
        assert chosen.shape == (2, 4) and hidden.masked_select(mask[:, None].expand(3, 4)).shape == (8,)
        assert (mask.sum() == 2).item()  # whole numbers have values
        chosen.sum().backward()
    assert pair[0].weight.grad is not None and pair[0].weight.grad.shape == (4, 4)


@pytest.mark.parametrize("stage", [name for name in STAGES if name not in ("pretrain", "sft, streams")])
def test_every_stage_says_what_it_needs(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a critic and a reference too."""
    prepare(tmp_path, "pangu")
    kind, train, given = STAGES[stage]
    name = stage.partition(",")[0]
    data = {"reward": "pairs", "dpo": "pairs", "kto": "pairs"}.get(name, "prompts")
    more: dict[str, Any] = {}
    if name in ("grpo", "ppo"):
        more = {"rewards": ("tests.devices.stages:different_characters",), "rounds": 2, "samples": 8}
    if stage == "ppo":
        judge = tiny("pangu", tmp_path / "judge")
        attach_value_head(judge.network, "linear")
        save_model(judge, tmp_path / "judge" / "model")
        more |= {"critic": str(tmp_path / "model"), "rewards": (str(tmp_path / "judge" / "model"),)}
        monkeypatch.setattr(opening, "safe_network", reads)  # nor of the critic and the reward model
    settings = {"per_device_train_batch_size": 2, "use_cpu": True}
    config = kind(str(tmp_path / "model"), str(tmp_path / data), limit=64, trainer=settings, **{**given, **more})
    found = dry_run(train, config)
    memory = found["memory"]
    assert memory["total"] > memory["weights"] > memory["sharded"] / 8 > 0
    assert found["operations"] > 2 * 3 * found["trained_parameters"] and found["seconds_per_step"] > 0
    if name in ("grpo", "ppo") and given.get("beta") != 0:
        monkeypatch.undo()
        weights = sum(one.nbytes for one in open_model(tmp_path / "model", device="cpu").network.parameters())
        assert memory["reference"] == weights
        assert memory["weights"] >= (2 if stage == "ppo" else 1) * weights
