"""What surrounds the losses of PPO, GRPO and pairs, by hand: which rewards, seeds, prompts, weights and ids reach them."""

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from math import sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer

from hanmo.checkpoints import open_model
from hanmo.errors import ConfigError
from hanmo.generation.draws import Place
from hanmo.generation.settings import Settings
from hanmo.nn.row_model import RowOutput
from hanmo.records import PromptResponse
from hanmo.rows import IGNORE, scored_places
from hanmo.training.callbacks import read_metrics
from hanmo.training.data_files import DataFiles
from hanmo.training.pairs import PairTrainer, read_pairs
from hanmo.training.rl.policy import BetweenRounds, PolicyTrainer
from hanmo.training.rl.rewards import Rewards, score_records
from hanmo.training.stages.dpo import DpoConfig, DpoTrainer
from hanmo.training.stages.grpo import GrpoConfig, grpo
from hanmo.training.stages.ppo import PpoConfig, PpoTrainer
from hanmo.training.stages.reward import RewardConfig, train_reward
from hanmo.training.trainable import adapted
from tests.unit.alignment_cases import starts, trainer
from tests.unit.test_training_policy import small
from tests.unit.test_training_wiring import SCORES, critic, replies
from tests.unit.tiny import tiny

# Rounds


def test_all_rewards_and_the_penalty_reach_the_advantages() -> None:
    """Two rewards added up; the second of three replies did not end by itself."""
    seen: dict[str, Any] = {}
    samples = [SimpleNamespace(generation=SimpleNamespace(finished=ended)) for ended in (True, False, True)]
    one: Any = SimpleNamespace(
        args=SimpleNamespace(world_size=1, process_index=0), round=0, redrawn=0, group=1,
        config=SimpleNamespace(unfinished_penalty=4.0, samples=3),
        rewards=Rewards(
            {"first": lambda given: [1.0, 2.0, 3.0], "second": lambda given: (0.5, 0.25, -1.0)},
            {"first": 1.0, "second": 1.0},
        ),
        seconds={"rollout": 0.0, "round": 0.0},
        _replies=lambda *asked: samples,
        decided=lambda numbers, judged: judged,
        _experience=lambda given, scores: seen.update(samples=given, kept=scores) or ["batch"],
        weigh=lambda batch, scores: seen.update(weighed=scores) or {},
        _describe=lambda batch, judged, figures: seen.update(raw=[one.reward for one in judged]),
    )  # fmt: skip
    one.judged = partial(PolicyTrainer.judged, one)
    assert PolicyTrainer.collect(one) == ["batch"]
    assert seen["samples"] == samples
    assert seen["weighed"].tolist() == seen["kept"].tolist() == [1.5, -1.75, 2.0]
    assert seen["raw"] == [1.5, 2.25, 2.0]  # what is told as the reward


def test_every_round_asks_the_next_prompts_with_a_seed_of_its_own() -> None:
    """Five prompts, two a round, two replies to each: in five rounds every prompt is asked twice, in the run's precision."""
    asked: list[str] = []
    seeds: list[int] = []

    def engine(contexts: Any, settings: Settings, places: Any) -> list[Any]:
        assert places == [Place(0, 0), Place(0, 1), Place(1, 0), Place(1, 1)]
        assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert contexts[0] == contexts[1] != contexts[2] == contexts[3]
        asked.extend(contexts[::2])
        seeds.append(settings.seed)
        return [SimpleNamespace(ids=(ord(context),)) for context in contexts]

    questions = [SimpleNamespace(record=None, context=name, prompt=name) for name in "abcde"]
    one: Any = SimpleNamespace(
        args=SimpleNamespace(seed=3), group=2, questions=questions, settings=Settings(), engine=engine,
        seconds={"rollout": 0.0},
        accelerator=SimpleNamespace(autocast=partial(torch.autocast, "cpu", torch.bfloat16)),
        opened=SimpleNamespace(family=SimpleNamespace(decode=lambda ids: "".join(map(chr, ids)))),
    )  # fmt: skip
    for one.round in range(5):
        samples = PolicyTrainer._replies(one, range(2), 2 * one.round, 2, 0)
        assert [sample.prompt for sample in samples] == [sample.reply for sample in samples]
    assert Counter(asked) == dict.fromkeys("abcde", 2)
    assert len(set(seeds)) == 5


def test_how_far_the_policy_moved_is_a_mean_over_the_tokens_of_a_step() -> None:
    moved = [(torch.tensor(0.5), 10), (torch.tensor(0.3), 30)]  # 0.02 nats a token
    one: Any = SimpleNamespace(args=SimpleNamespace(world_size=1), moved=moved)
    for limit, expected in ((0.025, False), (0.015, True), (None, False)):
        one.config = SimpleNamespace(max_kl=limit)
        assert PolicyTrainer.moved_too_far(one) is expected
    BetweenRounds(one).on_step_begin()
    assert one.moved == []  # each step is judged by its own batches


def test_a_policy_starts_every_round_where_its_replies_were_drawn(tmp_path: Path) -> None:
    """One step a round: its ratios are 1 though ids are banned; the reference stays where the run started."""
    starts(tmp_path, "pangu")
    settings = trainer(per_device_train_batch_size=16, learning_rate=1e-2, logging_steps=1)
    generation = {"max_new_tokens": 4, "suppressed_ids": tuple(range(20, 60))}
    grpo(small(GrpoConfig, tmp_path, out=str(tmp_path / "run"), rounds=2, generation=generation, trainer=settings))
    entries = [entry for entry in read_metrics(tmp_path / "run" / "metrics.jsonl") if "ratio" in entry]
    assert [(entry["ratio"], entry["approx_kl"]) for entry in entries] == [(1, 0)] * 2
    assert [abs(entry["kl_k1"]) > 1e-3 for entry in entries] == [False, True]


def test_the_step_leaves_out_what_cannot_be_said_and_weighs_tokens() -> None:
    """The loss of a step: token losses by their weights, over the weights of the whole step."""
    given: dict[str, Any] = {}

    def model(**inputs: Any) -> RowOutput:
        given.update(inputs)
        return RowOutput(logprob=torch.tensor([[0.0, -1.0, -2.0], [-3.0, 0.0, 0.0]]))

    one: Any = SimpleNamespace(
        args=SimpleNamespace(world_size=1), suppressed_ids=torch.tensor([7]),
        token_losses=lambda output, logprob_N, tokens, scored: -logprob_N,
    )  # fmt: skip
    labels = torch.tensor([[IGNORE, 4, 5], [6, IGNORE, IGNORE]])
    batch = {"labels": labels, "scored": scored_places(labels), "tokens": {"weights": torch.tensor([0.5, 0.5, 1.0])}}
    loss = PolicyTrainer.compute_loss(one, model, batch, num_items_in_batch=torch.tensor(8.0))  # type: ignore[arg-type]
    assert loss.item() == pytest.approx((0.5 * 1 + 0.5 * 2 + 1 * 3) / 8)
    assert given["suppressed_ids"].tolist() == [7] and "tokens" not in given
    none = PolicyTrainer.compute_loss(
        one, model, {**batch, "tokens": {"weights": torch.zeros(3)}}, num_items_in_batch=torch.tensor(0.0)
    )  # type: ignore[arg-type]
    assert none.item() == 0


# PPO


def test_the_rewards_of_a_round_have_the_kl_coefficient_it_began_with() -> None:
    settings = {"whiten": False, "beta": 0.5, "clip_reward": 0.0}
    fixed, held = replies(), replies()
    critic(**settings).weigh(fixed, SCORES)
    one = critic(**settings, kl_target=1e-6, kl_horizon=10.0, samples=5)
    one.weigh(held, SCORES)
    assert one.beta != 0.5
    for plain, other in zip(fixed, held, strict=True):
        assert torch.equal(plain.advantages, other.advantages)


def test_scores_are_cut_off_after_they_are_scaled() -> None:
    """The spread of 10 and 30 is 14.14."""
    one = critic(scale_reward="first", clip_reward=1.5)
    assert one._scaled(torch.tensor([10.0, 30.0])).tolist() == pytest.approx([1 / sqrt(2), 1.5])


@pytest.mark.parametrize("accumulated", [1, 4])
def test_the_mix_has_its_weight_whatever_the_accumulation(accumulated: int) -> None:
    told: list[Tensor] = []
    rows: Any = type(
        "Texts",
        (),
        {"family": SimpleNamespace(padding={}), "__len__": lambda self: 3, "__getitem__": lambda self, place: place},
    )()
    one: Any = SimpleNamespace(
        args=SimpleNamespace(
            per_device_train_batch_size=2, world_size=1, gradient_accumulation_steps=accumulated, seed=1, process_index=0
        ),
        state=SimpleNamespace(global_step=0), _mixed=(-1, 0), config=SimpleNamespace(ptx_weight=3.0),
        compute_loss_context_manager=torch.no_grad, _prepare_inputs=lambda batch: batch,
        accelerator=SimpleNamespace(backward=told.append),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hanmo.training.stages.ppo.Collator", lambda padding: lambda items: {"row_ids": items})
        found = PpoTrainer._learn_text(one, lambda **batch: SimpleNamespace(loss=torch.tensor(2.0)), rows)  # type: ignore[arg-type]
    assert found.item() == told[0].item() == pytest.approx(3.0 * 2.0 / accumulated)


def test_a_value_head_beside_adapters_is_trained_whole(tmp_path: Path) -> None:
    for config in (RewardConfig("m", "d", lora={"rank": 2}), PpoConfig("m", "d", rewards=("a:b",), lora={"rank": 2})):
        network = adapted(tiny("pangu", tmp_path), config.lora, None, "linear")
        trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
        assert any("value_head" in name and "lora" not in name for name in trained)
        assert all("value_head" in name or "lora" in name for name in trained)


# Pairs


def test_the_chosen_answers_likelihood_is_per_token() -> None:
    """sft_weight with a chosen answer of two tokens, of log-probability -3 in all: 1.5 a token, for both losses."""
    batch = {"labels": torch.tensor([[5, 6], [5, IGNORE]]), "references": torch.tensor([[-2.0, -1.0]])}

    def model(**inputs: Any) -> RowOutput:
        return RowOutput(logprob=torch.tensor([[-1.0, -2.0], [-2.0, 0.0]]))

    for kind in ("dpo", "ipo"):
        losses = []
        for weight in (0.0, 0.4):
            config = DpoConfig("m", "d", loss=kind, sft_weight=weight)  # type: ignore[arg-type]
            stage: Any = SimpleNamespace(config=config)
            losses.append(DpoTrainer.pair_figures(stage, model, batch)["loss"].item())  # type: ignore[arg-type]
        assert losses[1] - losses[0] == pytest.approx(0.4 * 1.5)


def test_pairs_that_fill_up_a_batch_count_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the loss nor in the figures, which are means over pairs."""
    one = PairTrainer.__new__(PairTrainer)
    one.args, one._figures = SimpleNamespace(world_size=1), []  # type: ignore[assignment]
    one.get_tp_size = lambda: 1  # type: ignore[method-assign]
    losses = torch.tensor([1.0, 2.0, 100.0])
    one.pair_figures = lambda model, batch: {"loss": losses, "accuracy": torch.tensor([1.0, 0.0, 1.0])}  # type: ignore[method-assign]
    batch = {"pair_weights": torch.tensor([1.0, 1.0, 0.0])}
    nothing: Any = None
    assert one.compute_loss(nothing, batch).item() == pytest.approx(1.5)
    assert one.compute_loss(nothing, batch, num_items_in_batch=torch.tensor(6.0)).item() == pytest.approx(0.5)
    logged: dict[str, float] = {}
    monkeypatch.setattr(Trainer, "log", lambda self, logs, *args, **kwargs: logged.update(logs))
    one.log({"loss": 0.75})
    assert logged == {"loss": 0.75, "accuracy": 0.5}


def write_pairs(folder: Path) -> str:
    texts = [("你好吗", "我很好", "再见"), ("今天天气怎么样", "今天天气真不错", "谢谢")]
    lines = [json.dumps(dict(zip(("prompt", "chosen", "rejected"), one, strict=True))) for one in texts]
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return str(folder / "pairs.jsonl")


def test_a_reward_is_learned_where_it_is_read(tmp_path: Path) -> None:
    """What a run at rate 0 says about its validation pairs is what the scorer says: at the stop token."""
    start = starts(tmp_path, "pangu")
    settings = trainer(per_device_train_batch_size=2, max_steps=1, learning_rate=0.0, save_strategy="no")
    pairs = write_pairs(tmp_path)
    outcome = train_reward(
        RewardConfig(str(start), pairs, out=str(tmp_path / "run"), limit=48, trainer=settings, valid=pairs)
    )
    entry = next(entry for entry in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval_chosen_score" in entry)
    opened = open_model(str(outcome.model), dtype="fp32", device="cpu")
    for side, answers in (("chosen", ("我很好", "今天天气真不错")), ("rejected", ("再见", "谢谢"))):
        prompts = ("你好吗", "今天天气怎么样")
        records = [PromptResponse(*one) for one in zip(prompts, answers, strict=True)]
        scores = [score for score in score_records(opened, records, 48) if score is not None]
        assert entry[f"eval_{side}_score"] == pytest.approx(sum(scores) / 2, abs=1e-4)


def test_pairs_keep_to_the_limit_of_responses(tmp_path: Path) -> None:
    start, pairs = starts(tmp_path, "eva"), write_pairs(tmp_path)
    opened, files = open_model(start, device="cpu"), DataFiles(Path(pairs), None)
    config = RewardConfig(str(start), pairs, limit=48, response_limit=40)
    assert len(read_pairs(files, opened, config, feed_stop=True, published=False)[0]) == 2
    with pytest.raises(ConfigError, match="no pair of answers"):
        read_pairs(files, opened, replace(config, response_limit=2), feed_stop=True, published=False)
