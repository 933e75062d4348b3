"""TRL as oracle: the same pairs, or the same replies, give the same losses and the same weights after training.

Both start from one small Qwen3 and take the same SGD steps. What our cDPO label smoothing is, TRL computes under the
name aot_unpaired on batches of one pair.
"""

import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from hanmo.checkpoints import open_model
from hanmo.generation.decode import Generation
from hanmo.generation.settings import Settings
from hanmo.losses import preference_loss
from hanmo.training.callbacks import read_metrics
from hanmo.training.rl import rollout
from hanmo.training.stages import presets
from hanmo.training.stages.dpo import DpoConfig, dpo
from hanmo.training.stages.grpo import GrpoConfig, grpo
from hanmo.training.stages.kto import KtoConfig, kto
from tests.unit.transformers_models import write_model

pytest.importorskip("trl", reason="trl is not installed (it is part of the dev extra); it is the oracle of these tests")

PAIRS = [
    ("你好吗", "我很好", "再见"),
    ("今天天气怎么样", "今天天气真不错", "不"),
    ("明天去哪里玩", "去吃火锅", "我很好呀我很好"),
    ("火锅怎么样", "火锅真不错", "是的"),
]
STEPS, RATE = 4, 0.05
# TRL's configurations switch it on under the old name; from transformers 5.23 on the new one counts.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in {field.name for field in fields(TrainingArguments)}
)
SGD = {"optim": "sgd", "learning_rate": RATE, "lr_scheduler_type": "constant", "use_cpu": True, "seed": 1}
LOGGED = {"logging_steps": 1, "report_to": "none", "save_strategy": "no"}
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def start(tmp_path: Path) -> Path:
    return write_model("qwen3", tmp_path / "start")


def words(start: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(start)
    tokenizer.eos_token = "<|im_end|>"  # the template's end of a reply, which TRL does not look for
    return tokenizer


def same_weights(model: str, peer: Any) -> None:
    ours = dict(open_model(model, device="cpu").network.named_parameters())
    started = dict(AutoModelForCausalLM.from_pretrained(Path(model).parents[1] / "start").named_parameters())
    moved = 0.0
    for name, theirs in peer.named_parameters():
        torch.testing.assert_close(ours[name], theirs, **TOLERANCE)
        moved = max(moved, (theirs - started[name]).abs().max().item())
    assert moved > 100 * TOLERANCE["atol"]  # there was something to differ in


def losses(run: Path) -> list[float]:
    return [entry["loss"] for entry in read_metrics(run / "metrics.jsonl") if "loss" in entry]


@pytest.mark.parametrize(
    ("ours", "theirs", "batch"),
    [
        ({"loss": "dpo"}, {"loss_type": ["sigmoid"]}, 4),
        ({"loss": "ipo"}, {"loss_type": ["ipo"]}, 4),
        ({"loss": "dpo", "label_smoothing": 0.2}, {"loss_type": ["aot_unpaired"], "label_smoothing": 0.2}, 1),
        ({"loss": "hinge"}, {"loss_type": ["hinge"]}, 4),
        ({"loss": "robust", "label_smoothing": 0.2}, {"loss_type": ["robust"], "label_smoothing": 0.2}, 4),
        ({"length_normalised": True}, {"loss_type": ["sigmoid_norm"]}, 4),
    ],
)
def test_dpo_is_trls(ours: Any, theirs: Any, batch: int, start: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    pairs = PAIRS if batch > 1 else PAIRS[:1]  # in one batch: the order does not matter
    lines = [json.dumps(dict(zip(("prompt", "chosen", "rejected"), pair, strict=True))) for pair in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    settings = {**SGD, **LOGGED, "per_device_train_batch_size": batch, "max_steps": STEPS}
    data, run = str(tmp_path / "pairs.jsonl"), tmp_path / "run"
    outcome = dpo(DpoConfig(str(start), data, str(run), beta=0.3, trainer=settings, **ours))

    said = [[{"role": "assistant", "content": text}] for pair in pairs for text in pair[1:]]
    rows = [
        {"prompt": [{"role": "user", "content": pair[0]}], "chosen": said[2 * place], "rejected": said[2 * place + 1]}
        for place, pair in enumerate(pairs)
    ]
    common = {CHECKPOINTING: False, "bf16": False, "disable_dropout": True, "disable_tqdm": True}
    args = DPOConfig(output_dir=str(tmp_path / "trl"), beta=0.3, **settings, **common, **theirs)
    peer = DPOTrainer(str(start), args=args, train_dataset=Dataset.from_list(rows), processing_class=words(start))
    trim_after_the_stop(peer)
    peer.train()
    expected = [entry["loss"] for entry in peer.state.log_history if "loss" in entry]
    assert losses(run) == pytest.approx(expected, rel=1e-4) and len(expected) == STEPS
    assert expected[0] != pytest.approx(expected[-1], rel=1e-2)
    assert outcome.model is not None
    same_weights(outcome.model, peer.model)


def trim_after_the_stop(peer: Any) -> None:
    """The template writes a newline behind the stop token, which TRL learns too; a reply ends with the stop token."""
    stop = peer.processing_class.eos_token_id

    def trim(example: dict[str, Any]) -> dict[str, Any]:
        return {side: example[side][: example[side].index(stop) + 1] for side in ("chosen_ids", "rejected_ids")}

    peer.train_dataset = peer.train_dataset.map(trim)


class Replays:
    """An engine that says again what TRL's policy said, round by round."""

    def __init__(self, rounds: list[dict[tuple[int, ...], list[Generation]]]):
        self.rounds = rounds

    def __call__(self, contexts: Any, settings: Any, places: Any) -> list[Generation]:
        left = {context: list(replies) for context, replies in self.rounds.pop(0).items()}
        return [left[tuple(context.ids)].pop(0) for context in contexts]


def said(found: Any, stop: int) -> dict[tuple[int, ...], list[Generation]]:
    """The replies of a round of TRL's, by their prompt."""
    replies: dict[tuple[int, ...], list[Generation]] = {}
    for row in range(len(found["prompt_ids"])):
        asked = tuple(found["prompt_ids"][row][found["prompt_mask"][row].bool()].tolist())
        mask = found["completion_mask"][row].bool()  # all zeros: left out, as it has the greatest length
        ids = found["completion_ids"][row][mask if mask.any() else ~mask].tolist()
        finished = ids[-1] == stop
        replies.setdefault(asked, []).append(Generation(tuple(ids[: len(ids) - finished]), (), 0.0, finished))
    return replies


def scores(replies: list[str]) -> list[float]:
    """Of Chinese characters alone: special tokens that a random policy says are read differently."""
    return [
        0.1 * sum(one >= "\u4e00" for one in reply) + reply.count("好") - 0.5 * reply.count("天") for reply in replies
    ]


def reward(prompts: list[str], replies: list[str]) -> list[float]:
    return scores(replies)


PLAIN = {"scale_rewards": "none"}  # without the standard deviation
# settings of ours -> of TRL
KIN: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"loss": "token"}, {"loss_type": "dapo"}),
    ({"loss": "token", "scale": False}, {"loss_type": "dapo", **PLAIN}),
    ({"loss": "reply"}, {"loss_type": "grpo"}),
    ({"loss": "reply", "scale": False}, {"loss_type": "grpo", **PLAIN}),
    ({"loss": "constant", "scale": False}, {"loss_type": "dr_grpo", **PLAIN}),
    ({"clip": 0.05, "clip_high": 0.3}, {"loss_type": "dapo", "epsilon": 0.05, "epsilon_high": 0.3}),
    ({"mask_truncated": True, "loss": "reply"}, {"loss_type": "grpo", "mask_truncated_completions": True}),
    (
        {"ratio": "reply", "loss": "reply", "clip": 0.02},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02},
    ),
]


def recording(trainer: Any, stop: int) -> tuple[Any, list[dict[tuple[int, ...], list[Generation]]]]:
    """A trainer of TRL's that notes the replies of its rounds, and the notes."""
    rounds: list[dict[tuple[int, ...], list[Generation]]] = []

    class Recording(trainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            found = super()._generate_and_score_completions(inputs)
            rounds.append(said(found, stop))
            return found

    return Recording, rounds


def trl_reward(completions: Any, **kwargs: Any) -> list[float]:
    return scores([one[0]["content"] for one in completions])


@pytest.mark.parametrize(("ours", "theirs"), KIN, ids=[" ".join(map(str, ours.values())) for ours, _ in KIN])
def test_grpo_is_trls(
    ours: dict[str, Any], theirs: dict[str, Any], start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds of two passes each, with the KL penalty: the second pass is clipped, the second round penalised."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    peer_class, rounds = recording(GRPOTrainer, words(start).eos_token_id)
    questions = [pair[0] for pair in PAIRS[:2]]
    settings = {**SGD, **LOGGED, "per_device_train_batch_size": 8}
    args = GRPOConfig(
        output_dir=str(tmp_path / "trl"), **settings, max_steps=4, num_generations=4, num_iterations=2, beta=0.2, use_bias_correction_kl=False,
        max_completion_length=6, bf16=False, disable_dropout=True, disable_tqdm=True, **{CHECKPOINTING: False}, **theirs,
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in questions])
    peer = peer_class(str(start), trl_reward, args=args, train_dataset=rows, processing_class=words(start))
    peer.train()
    assert len(rounds) == 2 and all(len(said) == 2 for said in rounds)

    lines = [json.dumps({"prompt": text, "response": ""}) for text in questions]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = GrpoConfig(
        str(start), str(tmp_path / "prompts.jsonl"), str(tmp_path / "run"), rewards=(f"{__name__}:reward",), rounds=2,
        samples=8, epochs=2, group=4, beta=0.2, trainer=settings, **ours,
    )  # fmt: skip
    # TRL scores over the whole vocabulary; ours leaves the second stop token out, which rollouts never say.
    monkeypatch.setattr(rollout, "rollout_settings", lambda *given: Settings(max_new_tokens=6))
    outcome = grpo(config, engine=Replays(rounds))
    expected = [entry["loss"] for entry in peer.state.log_history if "loss" in entry]
    assert losses(tmp_path / "run") == pytest.approx(expected, rel=1e-3, abs=1e-5) and len(expected) == 4
    assert outcome.model is not None
    same_weights(outcome.model, peer.model)


def test_rloo_is_trls(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of one pass; TRL sums over a reply's tokens where ours divides by the greatest length, 6, too."""
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    peer_class, rounds = recording(RLOOTrainer, words(start).eos_token_id)
    questions = [pair[0] for pair in PAIRS[:2]]
    settings = {**SGD, **LOGGED, "per_device_train_batch_size": 8, "max_grad_norm": 0}
    args = RLOOConfig(
        output_dir=str(tmp_path / "trl"), **settings, max_steps=3, num_generations=4, beta=0.0,
        max_completion_length=6, bf16=False, disable_dropout=True, disable_tqdm=True, **{CHECKPOINTING: False},
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in questions])
    peer = peer_class(str(start), trl_reward, args=args, train_dataset=rows, processing_class=words(start))
    peer.train()
    lines = [json.dumps({"prompt": text, "response": ""}) for text in questions]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    ours = {
        **presets("grpo")["rloo"],
        "beta": 0.0,
        "trainer": {**settings, "learning_rate": 6 * RATE, "max_grad_norm": 0},
    }
    monkeypatch.setattr(rollout, "rollout_settings", lambda *given: Settings(max_new_tokens=6))
    config = GrpoConfig(
        str(start), str(tmp_path / "prompts.jsonl"), str(tmp_path / "run"), rewards=(f"{__name__}:reward",), rounds=3,
        samples=8, group=4, **ours,
    )  # fmt: skip
    outcome = grpo(config, engine=Replays(rounds))
    assert outcome.model is not None
    same_weights(outcome.model, peer.model)


def test_simpo_is_trls() -> None:
    """Its loss function, which asks its trainer for these settings alone."""
    from trl.experimental.cpo import CPOTrainer

    asked = SimpleNamespace(
        alpha=0.0,
        loss_type="simpo",
        simpo_gamma=0.7,
        beta=2.5,
        label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )
    chosen, rejected = -torch.rand(2, 6, generator=torch.Generator().manual_seed(0)) * 3
    losses, *rewards = CPOTrainer.cpo_loss(asked, chosen, rejected)
    nothing = torch.zeros(6)
    ours = preference_loss(chosen, rejected, nothing, nothing, beta=2.5, kind="simpo", target=0.7)
    for found, expected in zip(ours, (losses, *rewards), strict=True):
        torch.testing.assert_close(found, expected)


def test_kto_is_trls(start: Path, tmp_path: Path) -> None:
    """Uneven weights and thumbs; TRL rotates the responses of a batch, here to where ours has them."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    ups = (True, False, True, True)
    lines = [{"prompt": asked, "response": said, "label": up} for (asked, said, _), up in zip(PAIRS, ups, strict=True)]
    (tmp_path / "thumbs.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    settings = {**SGD, **LOGGED, "per_device_train_batch_size": 4, "max_steps": STEPS}
    data, run = str(tmp_path / "thumbs.jsonl"), tmp_path / "run"
    weights = {"desirable_weight": 0.8, "undesirable_weight": 1.5}
    outcome = kto(KtoConfig(str(start), data, str(run), beta=0.3, trainer=settings, **weights))

    rows = [
        {
            "prompt": [{"role": "user", "content": line["prompt"]}],
            "completion": [{"role": "assistant", "content": line["response"]}],
            "label": line["label"],
        }
        for line in lines
    ]
    common = {CHECKPOINTING: False, "bf16": False, "disable_dropout": True, "disable_tqdm": True}
    args = KTOConfig(output_dir=str(tmp_path / "trl"), beta=0.3, **weights, **settings, **common)
    peer = KTOTrainer(str(start), args=args, train_dataset=Dataset.from_list(rows), processing_class=words(start))
    stop = peer.processing_class.eos_token_id
    completions = [ids[: ids.index(stop) + 1] for ids in peer.train_dataset["completion_ids"]]

    def own_pairs(example: dict[str, Any], place: int) -> dict[str, Any]:
        return {"completion_ids": completions[place], "KL_completion_ids": completions[(place + 1) % 4]}

    peer.train_dataset = peer.train_dataset.map(own_pairs, with_indices=True)
    peer.train()
    expected = [entry["loss"] for entry in peer.state.log_history if "loss" in entry]
    assert losses(run) == pytest.approx(expected, rel=1e-4) and len(expected) == STEPS
    points = [entry["kl"] for entry in peer.state.log_history if "kl" in entry]
    told = [entry["kl"] for entry in read_metrics(run / "metrics.jsonl") if "kl" in entry]
    assert told == pytest.approx(points, rel=1e-3, abs=1e-4) and max(points) > 0.01
    assert outcome.model is not None
    same_weights(outcome.model, peer.model)
