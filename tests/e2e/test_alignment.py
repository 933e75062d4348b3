"""Every family learns from rewards and preferences: a reward that anyone can check rises from chance to 0.9.

The table of stages and families is ``STAGES`` x ``NAMES``: each cell is a test here. Reward models and DPO learn to
tell, and to prefer, answers that contain a wanted character; GRPO and PPO to say them.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hanmo.checkpoints import open_model
from hanmo.generation.decode import generate
from hanmo.generation.settings import Settings
from hanmo.records import PromptResponse
from hanmo.training.callbacks import read_metrics
from hanmo.training.rl.rewards import score_records
from hanmo.training.stages.dpo import DpoConfig, dpo
from hanmo.training.stages.grpo import GrpoConfig, grpo
from hanmo.training.stages.kto import KtoConfig, kto
from hanmo.training.stages.ppo import PpoConfig, ppo
from hanmo.training.stages.reward import RewardConfig, train_reward
from tests.unit.alignment_cases import QUESTIONS, REWARD, contains, starts, trainer
from tests.unit.tiny import NAMES

GOOD = ("我很好", "今天天气真好", "好的好的", "我们去吃火锅")
BAD = ("我不去", "谢谢再见", "怎么样", "你在哪里", "是不是")
# (rounds, learning rate): found by trying; a family's tiny model starts from random weights
ROUNDS = {
    "eva": (16, 1e-2),
    "pangu": (20, 1e-3),
    "glm": (8, 1e-2),
    "transformer_xl": (8, 1e-2),
    "huggingface": (12, 1e-2),
}
# PanGu-α's top has no norm over it, so that a step moves the values of its own top far: plain returns, a plain head, and a rate
# that falls to 0 (held, a question whose reply had turned out wrong stayed wrong in 1 seed of 6).
PPO = {"pangu": {"rate": 2e-3, "rounds": 36, "lam": 1.0, "value_head": "linear", "schedule": "linear"}}
KL_BOUND = 40.0  # nats a reply: less than 6 tokens drawn freely could ever be from a uniform start


def policy_config(kind: Any, folder: Path, name: str, seed: int) -> Any:
    rounds, rate = ROUNDS[name]
    further = dict(PPO.get(name, {})) if kind is PpoConfig else {}
    rate, rounds = further.pop("rate", rate), further.pop("rounds", rounds)
    schedule = further.pop("schedule", "constant")
    start = str(starts(folder, name))
    return kind(
        **further,
        model=start,
        data=str(folder / "prompts.jsonl"),
        out=str(folder / "run"),
        rewards=(REWARD,),
        rounds=rounds,
        samples=64,
        epochs=2,
        limit=32,
        beta=0.01,
        generation={"max_new_tokens": 6},
        trainer=trainer(
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            learning_rate=rate,
            lr_scheduler_type=schedule,
            seed=seed,
        ),
    )


def check_learned(folder: Path, outcome: Any) -> None:
    entries = [entry for entry in read_metrics(folder / "run" / "metrics.jsonl") if "reward" in entry]
    rewards = [entry["reward"] for entry in entries]
    assert rewards[0] < 0.8, "chance is lower"
    assert max(rewards) >= 0.9
    assert rewards[-1] >= 0.8
    assert 0 < entries[-1]["kl_reply"] < KL_BOUND  # below 0: mass drifts to ids that cannot be said
    print(
        f"{rewards[0]:.2f} to {rewards[-1]:.2f} in {outcome.steps} steps, KL {entries[-1]['kl_reply']:.1f} nats a reply"
    )
    trained = open_model(outcome.model, device="cpu")
    assert trained.network.value_head is None
    contexts = [trained.family.context(PromptResponse(text, ""), 32) for text in QUESTIONS] * 8
    replies = generate(trained, contexts, Settings(max_new_tokens=6, seed=11))
    said = [trained.family.decode(reply.ids) for reply in replies]
    assert sum(contains([], said)) / len(said) >= 0.75  # and the saved model says so
    assert (folder / "run" / "report.html").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_grpo_learns(name: str, tmp_path: Path) -> None:
    check_learned(tmp_path, grpo(policy_config(GrpoConfig, tmp_path, name, 1)))


@pytest.mark.parametrize("name", NAMES)
def test_ppo_learns(name: str, tmp_path: Path) -> None:
    check_learned(tmp_path, ppo(policy_config(PpoConfig, tmp_path, name, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "train"), [(GrpoConfig, grpo), (PpoConfig, ppo)])
def test_policies_learn_from_further_seeds(kind: Any, train: Any, name: str, seed: int, tmp_path: Path) -> None:
    check_learned(tmp_path, train(policy_config(kind, tmp_path, name, seed)))


def write_pairs(folder: Path) -> Path:
    lines = [
        json.dumps({"prompt": text, "chosen": good, "rejected": bad}, ensure_ascii=False)
        for text in QUESTIONS
        for good in GOOD
        for bad in BAD
    ]
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def pair_config(kind: Any, folder: Path, name: str, **settings: Any) -> Any:
    start = starts(folder, name)
    file = write_pairs(folder)
    return kind(
        model=str(start),
        data=str(file),
        valid=str(file),
        out=str(folder / "run"),
        limit=48,
        trainer=trainer(
            per_device_train_batch_size=16,
            per_device_eval_batch_size=40,
            num_train_epochs=6,
            save_strategy="no",
            learning_rate=5e-3,
            logging_steps=5,
        ),
        **settings,
    )


@pytest.mark.parametrize("name", NAMES)
def test_reward_model_learns(name: str, tmp_path: Path) -> None:
    outcome = train_reward(pair_config(RewardConfig, tmp_path, name))
    assert outcome.accuracy is not None and outcome.accuracy_before is not None
    assert outcome.accuracy >= 0.9 > outcome.accuracy_before
    opened = open_model(outcome.model, device="cpu")  # type: ignore[arg-type]
    records = [PromptResponse(QUESTIONS[0], answer) for answer in (*GOOD, *BAD)]
    scores = score_records(opened, records, 48)
    assert min(scores[: len(GOOD)]) > max(scores[len(GOOD) :])  # type: ignore[type-var]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Calibration" in page
    axis = dict(re.findall(r"<span class=y style='top:(4.55|95.45)%'>([01])<", page))
    assert axis == {"95.45": "0", "4.55": "1"}  # the accuracy's: a share


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
@pytest.mark.parametrize("name", NAMES)
def test_dpo_learns(name: str, loss: Any, tmp_path: Path) -> None:
    outcome = dpo(pair_config(DpoConfig, tmp_path, name, loss=loss, beta=0.1))
    assert outcome.accuracy is not None
    assert outcome.accuracy >= 0.9
    entries = [e for e in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval_accuracy" in e]
    assert entries[0]["step"] == 0 and entries[0]["eval_accuracy"] == 0  # the policy is its reference
    assert entries[-1]["eval_chosen_reward"] > entries[-1]["eval_rejected_reward"]


SLOWER = ("eva", "transformer_xl")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOWER else ()) for n in NAMES])
def test_kto_learns(name: str, tmp_path: Path) -> None:
    """What has a thumb up gains more than what has a thumb down."""
    outcome = kto(pair_config(KtoConfig, tmp_path, name, beta=0.1))
    assert outcome.accuracy is not None
    assert outcome.accuracy >= 0.9
    entries = [e for e in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval_accuracy" in e]
    assert entries[0]["step"] == 0 and entries[0]["eval_accuracy"] == 0.5  # the policy is its reference
    assert entries[-1]["eval_up_reward"] > entries[-1]["eval_down_reward"]
