"""Before it has learned anything a policy is its reference, and its replies are its own: figures are 0 and 1, not nearly so."""

import json
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch

from hanmo.checkpoints import save_model
from hanmo.training.callbacks import read_metrics
from hanmo.training.stages.dpo import DpoConfig, dpo
from hanmo.training.stages.grpo import GrpoConfig, grpo
from hanmo.training.stages.kto import KtoConfig, kto
from hanmo.training.stages.ppo import PpoConfig, ppo
from tests.unit.alignment_cases import REWARD, starts, trainer
from tests.unit.tiny import NAMES, tiny

PRECISIONS = [
    pytest.param(name, bf16, id=f"{name} {'bf16' if bf16 else 'fp32'}") for name in NAMES for bf16 in (True, False)
]
PAIRS = [("你好吗", "我很好", "谢谢"), ("明天去哪里玩", "我们去吃火锅", "再见"), ("谢谢", "不客气", "今天天气真不错明天去哪里玩"),
         ("再见", "再见啊", "你好"), ("火锅怎么样", "真不错", "啊"), ("今天天气怎么样", "天气真不错", "好")]  # fmt: skip


def first(folder: Path, name: str) -> dict[str, Any]:
    """The first logged figures that have this name."""
    return next(entry for entry in read_metrics(folder / "metrics.jsonl") if name in entry)


def compared(folder: Path, name: str, bf16: bool, accumulated: int) -> dict[str, Any]:
    """The settings of a step on pairs, with an evaluation before it; batches of training and validation are others."""
    start, file = starts(folder, name), folder / "pairs.jsonl"
    lines = [json.dumps({"prompt": prompt, "chosen": good, "rejected": bad}) for prompt, good, bad in PAIRS]
    file.write_text("\n".join(lines), encoding="utf-8")
    settings = trainer(
        bf16=bf16, per_device_train_batch_size=3, gradient_accumulation_steps=accumulated, per_device_eval_batch_size=4,
        max_steps=1, logging_steps=1, eval_strategy="steps", eval_steps=1, save_strategy="no",
    )  # fmt: skip
    places = {"model": str(start), "data": str(file), "valid": str(file), "out": str(folder / "run")}
    return {**places, "limit": 64, "trainer": settings}


@pytest.mark.parametrize(("name", "bf16"), PRECISIONS)
def test_dpos_rewards_are_zero_before_learning(name: str, bf16: bool, tmp_path: Path) -> None:
    dpo(DpoConfig(**compared(tmp_path, name, bf16, accumulated=1)))
    for prefix in ("", "eval_"):
        told = first(tmp_path / "run", f"{prefix}chosen_reward")
        assert (told[f"{prefix}chosen_reward"], told[f"{prefix}rejected_reward"]) == (0, 0)
        assert told[f"{prefix}loss"] == pytest.approx(log(2), abs=1e-6)


@pytest.mark.parametrize(("name", "bf16"), PRECISIONS)
def test_ktos_rewards_and_its_reference_point_are_zero_before_learning(name: str, bf16: bool, tmp_path: Path) -> None:
    """Each thumb costs a half."""
    kto(KtoConfig(**compared(tmp_path, name, bf16, accumulated=2)))
    for prefix in ("", "eval_"):
        told = first(tmp_path / "run", f"{prefix}kl")
        assert (told[f"{prefix}kl"], told[f"{prefix}loss"]) == (0, 0.5)
        assert {told[f"{prefix}{side}_reward"] for side in ("up", "down") if f"{prefix}{side}_reward" in told} == {0}


def learn(tmp_path: Path, name: str, bf16: bool, ways: dict[str, Any]) -> dict[str, Any]:
    """The figures of the first step of a policy."""
    start, config = starts(tmp_path, name), PpoConfig if "critic" in ways else GrpoConfig
    settings = trainer(bf16=bf16, per_device_train_batch_size=3, gradient_accumulation_steps=2, logging_steps=1)
    chosen: Any = config(
        str(start), str(tmp_path / "prompts.jsonl"), out=str(tmp_path / "run"), rewards=(REWARD,), rounds=1, samples=12,
        limit=48, beta=0.1, rollout_batch=5, generation={"max_new_tokens": 9}, trainer=settings, **ways,
    )  # fmt: skip
    (ppo if config is PpoConfig else grpo)(chosen)
    return first(tmp_path / "run", "ratio")


@pytest.mark.parametrize(("name", "bf16"), PRECISIONS)
def test_a_policys_ratio_is_one_and_its_kl_zero_before_learning(name: str, bf16: bool, tmp_path: Path) -> None:
    told = learn(tmp_path, name, bf16, {"group": 4})
    assert [told[figure] for figure in ("ratio", "approx_kl", "kl_k1", "kl_k3", "kl_reply")] == [1, 0, 0, 0, 0]
    assert told["entropy"] > 0


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        ("eva", {"critic": None, "reference": "copy"}),
        ("pangu", {"critic": "critic"}),
        ("glm", {"critic": None, "reference": "copy"}),
        ("huggingface", {"critic": None, "lora": {"rank": 2}, "reference": "copy"}),
        ("transformer_xl", {"critic": "critic", "selective_checkpointing": True}),
    ],
)
def test_the_same_with_a_critic_adapters_and_a_copy(name: str, ways: dict[str, Any], tmp_path: Path) -> None:
    if ways["critic"]:
        torch.manual_seed(1)
        save_model(tiny(name, tmp_path / "judge"), tmp_path / "critic")
        ways = {**ways, "critic": str(tmp_path / "critic")}
    told = learn(tmp_path, name, True, ways)
    assert [told[figure] for figure in ("ratio", "approx_kl", "kl_k1", "value_clip_fraction")] == [1, 0, 0, 0]
