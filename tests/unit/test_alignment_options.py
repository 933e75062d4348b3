"""Every option of the alignment stages does what it says: by hand where it is a formula, else by what a run leaves."""

import json
import re
from dataclasses import replace
from math import exp, log, sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hanmo.checkpoints import open_model, save_model
from hanmo.errors import ConfigError
from hanmo.families.base import OpenedModel
from hanmo.losses import RunningMoments
from hanmo.nn.row_model import RowOutput, attach_value_head
from hanmo.records import PromptResponse
from hanmo.rows import IGNORE, collate
from hanmo.training.callbacks import read_metrics
from hanmo.training.data_files import DataFiles
from hanmo.training.stages import dpo as dpo_module
from hanmo.training.stages import ppo as ppo_module
from hanmo.training.stages.dpo import DpoConfig, DpoTrainer, dpo
from hanmo.training.stages.grpo import GrpoConfig, grpo
from hanmo.training.stages.kto import KtoConfig, kto
from hanmo.training.stages.ppo import PpoConfig, PpoTrainer, ppo
from hanmo.training.stages.reward import RewardConfig, RewardTrainer, calibration, histogram, train_reward
from tests.unit.alignment_cases import PAYS, QUESTIONS, starts, trainer
from tests.unit.test_training_policy import small
from tests.unit.tiny import NAMES, tiny


def softplus(x: float) -> float:
    """-log sigmoid(-x)."""
    return log(1 + exp(x))


def says(**outputs: list[list[float]]) -> Any:
    """A network that says these numbers whatever it is asked."""
    return lambda **inputs: RowOutput(**{name: torch.tensor(rows) for name, rows in outputs.items()})


# Pairs


def pair_batch(ends: list[int], parts_at: list[int], margins: list[float]) -> dict[str, Tensor]:
    return {
        "labels": torch.zeros(len(ends), 4, dtype=torch.int64),
        "ends": torch.tensor(ends),
        "parts_at": torch.tensor(parts_at),
        "margins": torch.tensor(margins),
    }


def pair_losses(config: RewardConfig, values: list[list[float]], batch: dict[str, Tensor]) -> list[float]:
    return RewardTrainer.pair_figures(SimpleNamespace(config=config), says(value=values), batch)["loss"].tolist()  # type: ignore[arg-type]


VALUES = [
    [9.0, 0.0, 2.0, 7.0],
    [9.0, 1.0, 3.0, 5.0],
    [9.0, 0.5, 7.0, 7.0],
    [9.0, 1.0, 2.0, 1.0],
]  # 2 chosen, 2 rejected
ENDS, PARTS_AT, MARGINS = [2, 3, 1, 3], [1, 2], [1.0, 3.0]


def test_a_reward_pair_is_to_be_won_by_its_margin() -> None:
    config, batch = RewardConfig("m", "d"), pair_batch(ENDS, PARTS_AT, MARGINS)
    assert pair_losses(config, VALUES, batch) == pytest.approx([softplus(0.5 - 2), softplus(1 - 5)])
    config = RewardConfig("m", "d", margin=True)
    assert pair_losses(config, VALUES, batch) == pytest.approx([softplus(0.5 - 2 + 1), softplus(1 - 5 + 3)])
    with pytest.raises(ConfigError, match="only loss=end"):
        RewardConfig("m", "d", margin=True, loss="tokenwise")


def test_calibration_by_hand() -> None:
    """sigmoid(0.1) = 0.52498 is in the first of five bins from 0.5 to 1, sigmoid(0.6) = 0.64566 in the second,
    sigmoid(3) = 0.95257 in the last."""
    bins = calibration(torch.tensor([0.1, -0.1, 0.6, 3.0]))
    assert [(pairs, right) for _, pairs, right in bins] == [(2, 0.5), (1, 1.0), (1, 1.0)]
    assert [confidence for confidence, *_ in bins] == pytest.approx([0.52498, 0.64566, 0.95257], abs=1e-5)


def test_a_histogram_by_hand() -> None:
    """Over the range of all scores, whose they may be."""
    scores = torch.tensor([0.0, 0.1, 1.0])
    assert histogram(scores, scores, torch.tensor([2.0]), bins=2) == [(0, 0), (0, 2), (1, 2), (1, 1), (2, 1), (2, 0)]


def test_the_tokenwise_loss_runs_from_the_difference_to_an_end() -> None:
    """Corrected: the shorter answer's; published: the longer one's, over the padding (7.0) of the shorter."""
    batch = pair_batch(ENDS, PARTS_AT, MARGINS)
    second = (softplus(2 - 3) + softplus(1 - 5)) / 2
    found = pair_losses(RewardConfig("m", "d", loss="tokenwise"), VALUES, batch)
    assert found == pytest.approx([softplus(0.5 - 0), second])
    found = pair_losses(RewardConfig("m", "d", loss="tokenwise", published=True), VALUES, batch)
    assert found == pytest.approx([(softplus(0.5 - 0) + softplus(7 - 2)) / 2, second])


def test_dpo_by_hand() -> None:
    """Label smoothing turns a share of the pairs round; sft_weight adds the chosen answer's loss per token."""
    batch = {"labels": torch.tensor([[5, IGNORE], [5, 6]]), "references": torch.tensor([[-2.0, -2.5]])}
    model = says(logprob=[[-1.0, 0.0], [-2.0, -1.0]])  # margin (-1 + 2) - (-3 + 2.5) = 1.5

    def loss(**settings: Any) -> float:
        config = DpoConfig("m", "d", **settings)
        return DpoTrainer.pair_figures(SimpleNamespace(config=config), model, batch)["loss"].item()  # type: ignore[arg-type]

    assert loss(beta=0.4) == pytest.approx(softplus(-0.6))
    assert loss(beta=0.4, label_smoothing=0.1) == pytest.approx(0.9 * softplus(-0.6) + 0.1 * softplus(0.6))
    assert loss(beta=0.4, sft_weight=0.5) == pytest.approx(softplus(-0.6) + 0.5)
    # ipo: means over tokens, -1 and -1.5
    assert loss(beta=0.4, loss="ipo") == pytest.approx(((-1 + 2) - (-1.5 + 2.5) - 1 / 0.8) ** 2)
    assert loss(beta=0.4, loss="hinge") == pytest.approx(1 - 0.6)
    robust = (0.9 * softplus(-0.6) - 0.1 * softplus(0.6)) / 0.8
    assert loss(beta=0.4, loss="robust", label_smoothing=0.1) == pytest.approx(robust)
    assert loss(beta=0.4, length_normalised=True) == pytest.approx(log(2))  # means leave a margin of 0
    assert loss(beta=0.4, length_normalised=True, sft_weight=0.5) == pytest.approx(log(2) + 0.5)
    batch["references"] = torch.zeros(1, 2)
    assert loss(beta=2.0, loss="simpo", margin=0.3) == pytest.approx(softplus(0.3 - 2.0 * (-1 + 1.5)))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing"),
        ({"loss": "hinge", "label_smoothing": 0.1}, "label_smoothing"),
        ({"loss": "simpo", "label_smoothing": 0.1}, "label_smoothing"),
        ({"loss": "robust"}, "label_smoothing"),
        ({"loss": "dpo", "margin": 0.1}, "margin"),
        ({"loss": "simpo", "margin": -0.1}, "margin"),
    ],
)
def test_what_a_preference_loss_would_not_use_is_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        DpoConfig("m", "d", **settings)


def test_simpo_computes_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the policy is ever asked: once for each of the two batches of an epoch."""
    start = starts(tmp_path, "pangu")
    asked = []
    whole = dpo_module.response_logprobs
    monkeypatch.setattr(dpo_module, "response_logprobs", lambda *given: asked.append(1) or whole(*given))
    for loss, expected in (("simpo", 2), ("dpo", 4)):
        settings = trainer(per_device_train_batch_size=4, num_train_epochs=1, learning_rate=1e-3, save_strategy="no")
        dpo(
            DpoConfig(
                str(start), write_pairs(tmp_path), out=str(tmp_path / loss), limit=48, loss=loss, trainer=settings
            )
        )  # type: ignore[arg-type]
        assert len(asked) == expected
        asked.clear()


# Rewards


def scaler(**settings: Any) -> Any:
    config = PpoConfig("m", "d", rewards=("a:b",), **settings)
    return SimpleNamespace(config=config, moments=RunningMoments(), args=SimpleNamespace(world_size=1, device="cpu"))


@pytest.mark.parametrize(("kind", "spread"), [("running", sqrt(20 / 3)), ("first", sqrt(2)), (None, 1.0)])
def test_rewards_are_scaled_and_then_cut_off(kind: Any, spread: float) -> None:
    one = scaler(scale_reward=kind, clip_reward=0)
    first = PpoTrainer._scaled(one, torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(first, torch.tensor([1.0, 3.0]) / (sqrt(2) if kind else 1))
    torch.testing.assert_close(PpoTrainer._scaled(one, torch.tensor([5.0, 7.0])), torch.tensor([5.0, 7.0]) / spread)
    cut = scaler(scale_reward=kind, clip_reward=1.5)
    assert PpoTrainer._scaled(cut, torch.tensor([-5.0, 7.0])).abs().max() <= 1.5
    assert PpoTrainer._scaled(scaler(clip_reward=10.0), torch.tensor([-50.0, 7.0])).tolist() == [-10, 7]


@pytest.mark.parametrize("published", [False, True])
def test_the_kl_coefficient_follows_its_target(published: bool) -> None:
    one = scaler(kl_target=1.0, kl_horizon=100.0, samples=20, beta=0.5, published=published)
    one.beta, one._over_processes = 0.5, lambda sums: sums
    old, reference = torch.tensor([[-1.0, -1.0], [-1.0, 0.0]]), torch.tensor([[-2.0, -1.1], [-1.2, 0.0]])
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    PpoTrainer._adapt(one, old, reference, mask)
    # k1: (1 + 0.1 + 0.2) / 2 replies = 0.65, cut off at -0.2; published: a mean over places, also far below 1
    assert one.beta == pytest.approx(0.5 * (1 - 0.2 * 20 / 100))
    one.config = PpoConfig("m", "d", rewards=("a:b",), kl_target=0.6, kl_horizon=100.0, samples=20, published=published)
    one.beta = 0.5
    PpoTrainer._adapt(one, old, reference, mask)
    kl = sum(exp(x) - 1 - x for x in (1, 0.1, 0.2)) / 4 if published else 0.65
    assert one.beta == pytest.approx(0.5 * (1 + max(-0.2, min(0.2, kl / 0.6 - 1)) * 20 / 100))


def test_a_reply_that_is_cut_off_pays_for_it(tmp_path: Path) -> None:
    starts(tmp_path, "pangu")
    grpo(small(GrpoConfig, tmp_path, rounds=1, unfinished_penalty=5.0, generation={"max_new_tokens": 1}))
    rewards = [one["reward"] for one in shown(tmp_path)]
    assert rewards and all(reward in (-5.0, -4.0) for reward in rewards)  # one token is never the end as well


def shown(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def test_samples_are_kept_every_so_many_rounds(tmp_path: Path) -> None:
    starts(tmp_path, "pangu")
    grpo(small(GrpoConfig, tmp_path, rounds=5, show_rounds=2))
    assert {one["round"] for one in shown(tmp_path)} == {0, 2, 4}
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert all(one["prompt"] in QUESTIONS and one["prompt"] in page and one["reply"] in page for one in shown(tmp_path))
    finished = page[page.index("<h2>Ended by itself</h2>") :].partition("</figure>")[0]
    assert ">1</span>" in finished and ">0</span>" in finished and ">-0" not in finished  # shares, from 0 to 1
    rounds = re.findall(r"<span class='x(?: minor)?' style='[^']*'>([^<]*)<", page)
    assert set(rounds) == {"0", "1", "2", "3", "4"} and "reward/" not in page[: page.index("<h2>Entropy")]


# Rounds


@pytest.mark.parametrize(("max_kl", "early"), [(1e-6, True), (1e6, False)])
def test_a_round_ends_where_the_policy_has_moved_far(
    max_kl: float, early: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many rounds as asked for, each logged; after the step that goes too far the next one is not taken."""
    starts(tmp_path, "pangu")
    settings = trainer(per_device_train_batch_size=8, learning_rate=1e-2)
    outcome = ppo(small(PpoConfig, tmp_path, rounds=3, epochs=4, max_kl=max_kl, trainer=settings))
    entries = [entry for entry in read_metrics(tmp_path / "run" / "metrics.jsonl") if "reward" in entry]
    assert outcome.rounds == 3 and {entry["round"] for entry in entries} == {0, 1, 2}
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line for line in lines if " reward " in line and "kl_reply " in line and line.endswith(" left")]
    # The first step of a round moves from where its replies were drawn, so that it never counts as moved.
    assert outcome.steps == (3 * 2 if early else 3 * 8)


# The pretraining mix


def nll(model: Any, name: str) -> float:
    opened = open_model(model, device="cpu")
    rows = [opened.family.row(opened.family.parts(PromptResponse(*text), 48)[0]) for text in TEXTS]
    with torch.no_grad():
        return opened.network(**collate(rows, opened.family.padding)).loss.item()


TEXTS = [(question, "谢谢再见。") for question in QUESTIONS]


def test_text_is_learned_along_with_the_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = starts(tmp_path, "pangu")
    lines = [json.dumps({"prompt": one, "response": other}, ensure_ascii=False) for one, other in TEXTS]
    (tmp_path / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    taken: list[list[int]] = []
    original = ppo_module.prompt_order
    monkeypatch.setattr(ppo_module, "prompt_order", lambda *args: taken.append(original(*args)) or taken[-1])
    settings = trainer(per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=5e-3)
    common = {"rounds": 3, "samples": 16, "trainer": settings}
    without = ppo(small(PpoConfig, tmp_path, out=str(tmp_path / "without"), **common))
    assert not taken
    mixed = ppo(small(PpoConfig, tmp_path, ptx=str(tmp_path / "text.jsonl"), ptx_weight=5.0, **common))
    before, apart, along = nll(start, "pangu"), nll(without.model, "pangu"), nll(mixed.model, "pangu")
    assert along < 0.5 * before and along < 0.5 * apart
    assert len(taken) == 3 * 4 * 2  # a batch beside each of the rewards'
    for one, other in zip(taken[::2], taken[1::2], strict=True):  # four texts, two at a time: no text twice in a pass
        assert sorted(one + other) == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="ptx"):
        (tmp_path / "none.jsonl").write_text("", encoding="utf-8")
        ppo(small(PpoConfig, tmp_path, out=str(tmp_path / "none"), ptx=str(tmp_path / "none.jsonl"), **common))


# Adapters


def write_pairs(folder: Path) -> str:
    lines = [
        json.dumps({"prompt": one, "chosen": "我很好", "rejected": "再见"}, ensure_ascii=False) for one in QUESTIONS
    ]
    (folder / "pairs.jsonl").write_text("\n".join(lines * 2), encoding="utf-8")
    return str(folder / "pairs.jsonl")


LORA: dict[str, Any] = {"lora": {"rank": 2, "alpha": 8}}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stage", [train_reward, dpo, kto, grpo, ppo], ids=lambda stage: stage.name)
def test_adapters_change_their_targets_by_their_rank_alone(stage: Any, name: str, tmp_path: Path) -> None:
    start = starts(tmp_path, name)
    if stage in (grpo, ppo):
        config = small(GrpoConfig if stage is grpo else PpoConfig, tmp_path, **LORA)
    else:
        settings = trainer(per_device_train_batch_size=4, learning_rate=1e-3, save_strategy="no")
        kind = {dpo: DpoConfig, kto: KtoConfig, train_reward: RewardConfig}[stage]
        config = kind(str(start), write_pairs(tmp_path), out=str(tmp_path / "run"), limit=48, trainer=settings, **LORA)
    outcome = stage(config)
    before, after = (dict(open_model(one, device="cpu").network.named_parameters()) for one in (start, outcome.model))
    assert {name for name in after if "value_head" not in name} == set(before)
    targets = open_model(start, device="cpu").family.lora_targets
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(targets == ("all-linear",) or name.split(".")[-2] in targets for name in changed)
    for name in changed:
        # merging adds the product of two thin matrices in fp32: beyond its rank only rounding is left
        sizes = torch.linalg.svdvals((after[name] - before[name]).double())
        assert sizes[2] < 1e-2 * sizes[0], name
    assert ("value_head.output.weight" in after) == (stage is train_reward)


# Critic and checkpoints


def write_critic(folder: Path, name: str) -> Path:
    opened = tiny(name, folder / "vocabulary")
    attach_value_head(opened.network, "linear")
    save_model(opened, folder / "critic")
    return folder / "critic"


@pytest.mark.parametrize("name", NAMES)
def test_a_critic_of_its_own_learns_the_values(name: str, tmp_path: Path) -> None:
    starts(tmp_path, name)
    critic = write_critic(tmp_path, name)
    settings = trainer(per_device_train_batch_size=16, learning_rate=5e-3)
    common = {"critic": str(critic), "rounds": 6, "samples": 32, "epochs": 2, "trainer": settings, "value_weight": 1.0}
    outcome = ppo(small(PpoConfig, tmp_path, rewards=(PAYS,), beta=0.0, **common))
    entries = [entry for entry in read_metrics(tmp_path / "run" / "metrics.jsonl") if "value_loss" in entry]
    assert abs(entries[-1]["value"] - 1) < 0.5 * abs(entries[0]["value"] - 1)  # every reply is worth 1
    model: OpenedModel = open_model(outcome.model, device="cpu")
    assert model.network.value_head is None and not any("critic" in one for one, _ in model.network.named_parameters())


def test_the_model_that_critic_names_learns_the_values(tmp_path: Path) -> None:
    start = starts(tmp_path, "pangu")
    critic, config = write_critic(tmp_path, "pangu"), small(PpoConfig, tmp_path, rewards=(PAYS,))
    files = DataFiles(tmp_path / "prompts.jsonl", None, bars=False)
    alone = ppo_module.build(open_model(start, device="cpu"), config, files).network
    beside = ppo_module.build(open_model(start, device="cpu"), replace(config, critic=str(critic)), files).network
    assert alone.value_head is not None and alone.critic is None and beside.value_head is None
    expected = open_model(critic, device="cpu").network.state_dict()
    assert beside.critic.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in beside.critic.state_dict().items())


def test_values_are_the_critics(tmp_path: Path) -> None:
    starts(tmp_path, "glm")
    critic = open_model(write_critic(tmp_path, "glm"), dtype="fp32", device="cpu")
    policy = open_model(tmp_path / "start", dtype="fp32", device="cpu")
    rows = [policy.family.row(policy.family.parts(PromptResponse(*text), 48)[0]) for text in TEXTS]
    batch = collate(rows, policy.family.padding)
    before = policy.network(**batch)
    policy.network.critic = critic.network
    with_critic = policy.network(**batch)
    assert before.value is None and torch.equal(before.logprob, with_critic.logprob)
    assert torch.equal(with_critic.value, critic.network(**batch).value)


def test_a_critic_must_read_as_the_policy_does(tmp_path: Path) -> None:
    starts(tmp_path, "pangu")
    critic = write_critic(tmp_path / "other", "glm")
    with pytest.raises(ConfigError, match="vocabulary"):
        ppo(small(PpoConfig, tmp_path, critic=str(critic)))


KINDS: dict[str, dict[str, Any]] = {
    "adapters": LORA,
    "critic": {"critic": "critic"},
    "critic and adapters": {**LORA, "critic": "critic"},
    "early stop, copy, mix": {"max_kl": 1e-6, "epochs": 2, "reference": "copy", "ptx": "prompts.jsonl"},
}


@pytest.mark.parametrize("name", ["pangu", "huggingface"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_to_the_same_weights(kind: str, name: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Policy, critic, adapters, optimizer, KL controller, reward scale, random state, prompts and mixed-in text."""
    starts(tmp_path, name)
    write_critic(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"prompt": one, "response": other}, ensure_ascii=False) for one, other in TEXTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    common = {"rounds": 3, "save_rounds": 1, "kl_target": 1.0, "scale_reward": "running", **KINDS[kind]}
    ppo(small(PpoConfig, tmp_path, out="whole", **common))
    first = min(
        (tmp_path / "whole" / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2])
    )
    (tmp_path / "again" / "checkpoints").mkdir(parents=True)
    first.rename(tmp_path / "again" / "checkpoints" / first.name)
    ppo(small(PpoConfig, tmp_path, out="again", **common), resume=True)
    one, other = (open_model(tmp_path / run / "model", device="cpu").network for run in ("whole", "again"))
    for (name, ours), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    ends = [read_metrics(tmp_path / run / "metrics.jsonl")[-2:] for run in ("whole", "again")]
    figures = [
        {k: v for e in end for k, v in e.items() if k in ("loss", "value_loss", "beta", "reward", "value")}
        for end in ends
    ]
    assert figures[0] == figures[1] and "value_loss" in figures[0]
