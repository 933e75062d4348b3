"""What the alignment trainers do around their losses: padding, accumulation, and whose reference a pair is given."""

import json
from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hanmo.checkpoints import open_model, save_model
from hanmo.losses import RunningMoments
from hanmo.nn.row_model import RowOutput
from hanmo.rows import IGNORE, scored_places
from hanmo.training.callbacks import read_metrics
from hanmo.training.rl.policy import Experience
from hanmo.training.stages.dpo import DpoConfig, dpo
from hanmo.training.stages.kto import KtoConfig, kto
from hanmo.training.stages.ppo import PpoConfig, PpoTrainer
from hanmo.training.stages.reward import RewardConfig, train_reward
from tests.unit.alignment_cases import starts, trainer
from tests.unit.tiny import tiny

# Replies of unequal length


def critic(**settings: Any) -> PpoTrainer:
    """A trainer of one process that has no network: what it makes of rewards needs none."""
    made = PpoTrainer.__new__(PpoTrainer)
    made.config = PpoConfig("m", "d", rewards=("a:b",), **settings)
    made.args = SimpleNamespace(world_size=1, device="cpu")  # type: ignore[assignment]
    made.beta, made.moments = made.config.beta, RunningMoments()
    made._figures, made.moved = [], []
    return made


def replies() -> list[Experience]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for length in (5, 1, 3):
        old, reference, values = torch.randn(3, length, generator=generator)
        none: Any = None
        made.append(Experience(none, none, 0.0, old, reference, old, values, old))
    return made


SCORES = torch.tensor([1.0, -2.0, 3.0])


def test_a_reply_gets_its_advantages_whatever_the_length_of_the_others() -> None:
    """Together as alone, and without padding in the figures."""
    settings = {"whiten": False, "beta": 0.1, "gamma": 0.9, "lam": 0.8, "clip_reward": 0.0}
    together = replies()
    figures = critic(**settings).weigh(together, SCORES)
    for one, mine, score in zip(replies(), together, SCORES, strict=True):
        critic(**settings).weigh([one], score[None])
        torch.testing.assert_close(mine.advantages, one.advantages)
        torch.testing.assert_close(mine.returns, one.returns)
        assert mine.advantages.shape == mine.old.shape == mine.returns.shape
    values, returns = (torch.cat([getattr(one, name) for one in together]) for name in ("values", "returns"))
    assert figures["value"] == pytest.approx(values.mean().item())
    assert figures["explained_variance"] == pytest.approx(1 - ((returns - values).var() / returns.var()).item())


def test_the_last_token_of_every_reply_gets_its_score() -> None:
    """With lambda 0 and gamma 1 an advantage is the reward, less what the critic expected: by hand."""
    made = replies()
    critic(whiten=False, beta=0.5, lam=0.0, clip_reward=0.0).weigh(made, SCORES)
    for one, score in zip(made, SCORES.tolist(), strict=True):
        rewards = -0.5 * (one.old - one.reference)
        rewards[-1] += score
        expected = rewards + torch.cat([one.values[1:], torch.zeros(1)]) - one.values
        torch.testing.assert_close(one.advantages, expected)


def test_advantages_are_whitened_over_tokens_without_padding() -> None:
    white, plain = replies(), replies()
    critic(lam=0.8).weigh(white, SCORES)
    critic(lam=0.8, whiten=False).weigh(plain, SCORES)
    found, raw = (torch.cat([one.advantages for one in made]) for made in (white, plain))
    torch.testing.assert_close(found, (raw - raw.mean()) / raw.std())
    for one, other in zip(white, plain, strict=True):
        assert torch.equal(one.returns, other.returns)  # the critic learns them as they are


def test_ppos_token_losses_by_hand() -> None:
    """Each term has its own clip, and the value loss its weight."""
    one = critic(clip=0.2, clip_value=0.5, value_weight=0.1)
    labels = torch.tensor([[IGNORE, 4, 5], [6, IGNORE, IGNORE]])
    values = torch.tensor([[9.0, 1.0, 0.2], [-1.0, 9.0, 9.0]])
    old = torch.full((3,), -1.0)
    tokens = {
        "old": old,
        "advantages": torch.tensor([2.0, -1.0, 1.0]),
        "values": torch.zeros(3),
        "returns": torch.tensor([2.0, 1.0, 0.0]),
    }
    logprob = old + torch.tensor([1.5, 1.5, 0.5]).log()
    found = one.token_losses(RowOutput(value=values), logprob, tokens, scored_places(labels))
    policy = torch.tensor([-2 * 1.2, 1.5, -0.5])
    value = 0.5 * torch.tensor([(0.5 - 2) ** 2, (0.2 - 1) ** 2, 1.0])
    torch.testing.assert_close(found, policy + 0.1 * value)
    (noted,) = one._figures
    assert noted["count"].sum() == 3 and noted["value_clip_fraction"] == 1 and noted["clip_fraction"] == 1
    torch.testing.assert_close(noted["value_loss"], value.sum())
    torch.testing.assert_close(noted["policy_loss"], policy.sum())


# Pairs

ANSWERS = [
    ("你好吗", "我很好", "再见"),
    ("今天天气怎么样", "今天天气真不错啊", "不"),
    ("明天去哪里玩", "明天我们去吃火锅", "谢谢你再见"),
    ("火锅怎么样", "好", "今天天气真不错"),
    ("谢谢", "再见", "三加五等于八"),
    ("三加五等于几", "八", "明天去哪里玩"),
]


def write(path: Path, answers: list[tuple[str, str, str]]) -> str:
    lines = [json.dumps(dict(zip(("prompt", "chosen", "rejected"), one, strict=True))) for one in answers]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def weights(folder: str | None) -> dict[str, Tensor]:
    return open_model(str(folder), device="cpu").network.state_dict()


CASES: list[Any] = [
    (dpo, DpoConfig, {}),
    (dpo, DpoConfig, {"loss": "ipo", "sft_weight": 0.5}),
    (kto, KtoConfig, {"beta": 1.0}),
    (train_reward, RewardConfig, {}),
    (train_reward, RewardConfig, {"loss": "tokenwise"}),
]


@pytest.mark.parametrize(("stage", "config", "settings"), CASES, ids=["dpo", "ipo", "kto", "reward", "tokenwise"])
def test_accumulation_changes_nothing(stage: Any, config: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    """Six pairs in steps of four and two: at once, by twos, one by one."""
    opened = tiny("pangu", tmp_path / "vocabulary")
    for name in [name for name in opened.network.config.to_dict() if name.endswith(("dropout", "pdrop"))]:
        setattr(opened.network.config, name, 0.0)
    start = save_model(opened, tmp_path / "start")
    before, found = weights(str(start)), []
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        out = tmp_path / f"{batch}x{accumulation}"
        given = trainer(
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, num_train_epochs=2,
            optim="sgd", learning_rate=0.001, max_grad_norm=0.0, logging_steps=1, save_strategy="no",
        )  # fmt: skip
        pairs = write(tmp_path / "pairs.jsonl", ANSWERS)
        outcome = stage(config(str(start), pairs, out=str(out), limit=48, trainer=given, **settings))
        logs = [entry for entry in read_metrics(out / "metrics.jsonl") if "loss" in entry]
        assert len(logs) == (6 if stage is kto else 4)  # of pairs each answer is a thumb of its own
        logs[0].pop("accuracy", None)  # DPO's policy is still its reference: rounding decides
        figures = [value for entry in logs for name, value in sorted(entry.items()) if name not in ("time", "epoch")]
        found.append((weights(outcome.model), figures))
    assert max((found[0][0][name] - before[name]).abs().max().item() for name in before) > 1e-3  # it has learned
    for state, figures in found[1:]:
        assert figures == pytest.approx(found[0][1], rel=1e-4, abs=1e-5)
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, found[0][0][name], rtol=0, atol=2e-6)


def test_every_pair_is_measured_against_its_own_reference(tmp_path: Path) -> None:
    """At the start the policy is the reference: the loss is log 2 and rewards are 0, of training and validation."""
    start = starts(tmp_path, "pangu")
    given = trainer(
        per_device_train_batch_size=2, per_device_eval_batch_size=2, num_train_epochs=1, learning_rate=0.0,
        logging_steps=1, eval_strategy="steps", eval_steps=1, save_strategy="no",
    )  # fmt: skip
    pairs, valid = write(tmp_path / "pairs.jsonl", ANSWERS), write(tmp_path / "valid.jsonl", ANSWERS[:2:-1])
    dpo(DpoConfig(str(start), pairs, out=str(tmp_path / "run"), valid=valid, limit=48, beta=1.0, trainer=given))
    entries = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for prefix, times in (("", 3), ("eval_", 4)):
        told = [entry for entry in entries if f"{prefix}loss" in entry]
        assert len(told) == times
        for entry in told:
            assert entry[f"{prefix}loss"] == pytest.approx(log(2), abs=1e-5)
            assert [entry[f"{prefix}{side}_reward"] for side in ("chosen", "rejected")] == pytest.approx(
                [0, 0], abs=1e-4
            )
