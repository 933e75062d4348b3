"""Every stage of training on a tiny model of every family: what the tests of devices and the check on a GPU both run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hanmo.checkpoints import save_model
from hanmo.files import read_json
from hanmo.training.callbacks import read_metrics
from hanmo.training.stages.dpo import DpoConfig, dpo
from hanmo.training.stages.grpo import GrpoConfig, grpo
from hanmo.training.stages.kto import KtoConfig, kto
from hanmo.training.stages.ppo import PpoConfig, ppo
from hanmo.training.stages.pretrain import PretrainConfig, pretrain
from hanmo.training.stages.reward import RewardConfig, train_reward
from hanmo.training.stages.sft import SftConfig, sft
from tests.unit.tiny import NAMES, tiny

TALKS = (
    ("你好", "谢谢你"),
    ("今天天气怎么样？", "今天天气真不错。"),
    ("明天去哪里玩？", "我们去吃火锅"),
    ("三加五等于几？", "八"),
)
LORA = {"lora": {"rank": 2}}
# stage -> settings class, what runs it, settings of the stage
STAGES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "pretrain": (PretrainConfig, pretrain, {"limit": 8}),
    "sft": (SftConfig, sft, {}),
    "sft, packing": (SftConfig, sft, {"packing": True}),
    "sft, LoRA": (SftConfig, sft, LORA),
    "sft, streams": (SftConfig, sft, {"streams": True, "limit": 8}),
    "reward": (RewardConfig, train_reward, {}),
    "reward, tokenwise": (RewardConfig, train_reward, {"loss": "tokenwise"}),
    "dpo": (DpoConfig, dpo, {"sft_weight": 0.5}),
    "dpo, LoRA": (DpoConfig, dpo, LORA),
    "kto": (KtoConfig, kto, {"desirable_weight": 1.5}),
    "grpo": (GrpoConfig, grpo, {"group": 2, "beta": 0.1}),
    "grpo, GSPO": (GrpoConfig, grpo, {"group": 2, "beta": 0.0, "ratio": "reply", "loss": "reply", "resample": 1}),
    "ppo": (PpoConfig, ppo, {"kl_target": 1.0, "scale_reward": "running", "max_kl": 1.0}),
}
LEARNS_FROM_REWARDS = ("grpo", "ppo")
SKIPPED = {  # what a family has no such thing of
    "sft, packing": {"eva"},
    "sft, streams": {"eva", "pangu", "glm", "huggingface"},
}
PAIRS = [(stage, family) for stage in STAGES for family in NAMES if family not in SKIPPED.get(stage, ())]


def different_characters(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    """A reward: how many different characters a reply has."""
    return [len(set(reply)) / 8 for reply in replies]


def prepare(folder: Path, family: str) -> None:
    """A tiny model without dropout, whose draws differ by device, a reward model of it, and data of every kind."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(tiny(family, folder / "vocabulary"), folder / "model")
    file = folder / "model" / "config.json"
    config = {name: 0.0 if "drop" in name else value for name, value in read_json(file).items()}
    file.write_text(json.dumps(config), encoding="utf-8")
    prompts = [{"prompt": said, "response": reply} for said, reply in TALKS * 2]
    pairs = [{"prompt": said, "chosen": reply, "rejected": "再见"} for said, reply in TALKS * 2]
    # EVA learns from replies alone.
    texts = prompts if family == "eva" else [{"text": said + reply} for said, reply in TALKS * 2]
    for name, rows in (("prompts", prompts), ("pairs", pairs), ("texts", texts)):
        (folder / name).mkdir()
        for half, kept in (("train", rows), ("valid", rows[:2])):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
            (folder / name / f"{half}.jsonl").write_text(lines, encoding="utf-8")


def run_stage(stage: str, folder: Path, out: Path, **trainer: Any) -> list[dict[str, float]]:
    """Two steps, or two rounds of one, on what ``prepare`` made; what was logged. The trained model is ``out``/model."""
    kind, train, given = STAGES[stage]
    data = {"pretrain": "texts", "reward": "pairs", "dpo": "pairs", "kto": "pairs"}.get(
        stage.partition(",")[0], "prompts"
    )
    settings: dict[str, Any] = {
        "model": str(folder / "model"),
        "data": str(folder / data),
        "out": str(out),
        "limit": 64,
    }
    steps = {"per_device_train_batch_size": 2, "logging_steps": 1, "seed": 1, "learning_rate": 1e-3, **trainer}
    if stage.startswith(LEARNS_FROM_REWARDS):
        settings |= {"rewards": (f"{__name__}:different_characters",), "rounds": 2, "samples": 2}
        settings |= {"generation": {"max_new_tokens": 4}}
    else:
        steps |= {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no"}
    train(kind(**{**settings, **given, "trainer": steps}))
    return read_metrics(out / "metrics.jsonl")
