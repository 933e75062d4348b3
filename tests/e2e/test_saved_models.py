"""The model that a stage saves is the one that it evaluated: its folder, opened anew, gives the loss of the step that was kept."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from hanmo.checkpoints import open_model, save_model
from hanmo.checkpoints.convert import convert
from hanmo.checkpoints.inspect import inspect_model
from hanmo.errors import UnsupportedError
from hanmo.families.base import OpenedModel
from hanmo.nn.row_model import attach_value_head
from hanmo.records import PromptResponse, Record, iter_records
from hanmo.rows import IGNORE, collate
from hanmo.training.callbacks import read_metrics
from hanmo.training.stages.dpo import DpoConfig, dpo
from hanmo.training.stages.grpo import GrpoConfig, grpo
from hanmo.training.stages.ppo import PpoConfig, ppo
from hanmo.training.stages.pretrain import PretrainConfig, pretrain
from hanmo.training.stages.reward import RewardConfig, train_reward
from hanmo.training.stages.sft import SftConfig, sft
from hanmo.training.trainable import LoraSettings, add_lora
from tests.unit.tiny import NAMES, tiny
from tests.unit.transformers_models import Plain, write_model

PAIRS = [("你好吗", "我很好"), ("今天天气怎么样", "天气真不错"), ("明天去哪里玩", "去吃火锅"), ("谢谢", "再见啊")]
TIED = ("transformer_xl", "pangu", "glm", "huggingface")
EMBEDDING = {"eva": "word_embeds"}
LORA = {"rank": 4, "alpha": 32}
HOWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lora": {"lora": LORA},
    "head": {"lora": {**LORA, "targets": ["q_proj", "lm_head"]}},
    "embedding": {"lora": {**LORA, "targets": ["q_proj", "embed_tokens"]}},
    "frozen": {"freeze": 0.5},
    "valued": {},
}
SLOW = partial(pytest.param, marks=pytest.mark.slow)


def steps(rate: float = 0.05) -> dict[str, Any]:
    """Six steps, evaluated at every second one, so fast that the best step need not be the last."""
    return {
        "use_cpu": True, "seed": 1, "max_steps": 6, "learning_rate": rate, "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "eval_strategy": "steps", "eval_steps": 2,
        "logging_steps": 1,
    }  # fmt: skip


def start(name: str, folder: Path, value_head: bool = False) -> Path:
    """A model folder of a family (of huggingface one whose head is tied), with data for every stage beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "huggingface":
        write_model("qwen3", folder / "start", tie_word_embeddings=True)
    else:
        save_model(tiny(name, folder / "vocabulary"), folder / "start")
    if value_head:
        opened = open_model(folder / "start", dtype="fp32", device="cpu")
        attach_value_head(opened.network, "mlp")
        save_model(opened, folder / "start")
    lines = {
        "pairs": [{"prompt": prompt, "response": response} for prompt, response in PAIRS],
        "texts": [{"text": "".join(pair)} for pair in PAIRS],
        "better": [{"prompt": p, "chosen": r, "rejected": PAIRS[place - 1][1]} for place, (p, r) in enumerate(PAIRS)],
        "prompts": [{"prompt": prompt, "response": ""} for prompt, _ in PAIRS],
    }
    for file, values in lines.items():
        text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        (folder / f"{file}.jsonl").write_text(text, encoding="utf-8")
    return folder


def settings(folder: Path, data: str, **more: Any) -> dict[str, Any]:
    file = str(folder / f"{data}.jsonl")
    given = {"model": str(folder / "start"), "data": file, "valid": file, "out": str(folder / "run"), "limit": 48}
    return {**given, "trainer": steps(), **more}


def opened_anew(folder: Path) -> OpenedModel:
    return open_model(folder, dtype="fp32", device="cpu")


@torch.no_grad()
def scores(opened: OpenedModel, records: Sequence[Record], feed_stop: bool = False) -> list[tuple[Tensor, Tensor, Any]]:
    """Of each record's row, alone: log-probabilities of what is scored, their weights, the value at the row's end."""
    found = []
    for record in records:
        for parts in opened.family.parts(record, 48):
            row = opened.family.row(parts, feed_stop=feed_stop)
            output = opened.network(**collate([row], opened.family.padding))
            scored = row.labels != IGNORE
            value = None if output.value is None else output.value[0, row.end].item()
            found.append((output.logprob[0][scored], row.weights[scored], value))
    return found


def loss(opened: OpenedModel, file: Path) -> float:
    found = scores(opened, list(iter_records(file)))
    return -float(sum((x * w).sum() for x, w, _ in found) / sum(w.sum() for _, w, _ in found))


def kept(run: Path) -> tuple[float, float]:
    """The evaluated losses of the start and of the best step, which is kept."""
    losses = [entry["eval_loss"] for entry in read_metrics(run / "metrics.jsonl") if "eval_loss" in entry]
    assert len(losses) >= 4 and len(set(losses)) == 4
    return losses[0], min(losses[1:])


def adapters(name: str, how: str) -> dict[str, Any]:
    given = json.loads(json.dumps(HOWS[how]))
    if how == "embedding":
        given["lora"]["targets"][1] = EMBEDDING.get(name, "embed_tokens")
    return dict(given)


CASES = [
    (pytest.param if how == "head" else SLOW)(name, how, id=f"{name}-{how}") for name in NAMES for how in HOWS
]  # fmt: skip


@pytest.mark.parametrize(("name", "how"), CASES)
def test_sft_saves_what_it_evaluated(name: str, how: str, tmp_path: Path) -> None:
    place = start(name, tmp_path, value_head=how == "valued")
    before = opened_anew(place / "start")
    outcome = sft(SftConfig(**settings(place, "pairs", **adapters(name, how))))
    first, best = kept(place / "run")
    saved = opened_anew(place / "run" / "model")
    assert loss(before, place / "pairs.jsonl") == pytest.approx(first, rel=1e-4)
    assert loss(saved, place / "pairs.jsonl") == pytest.approx(best, rel=1e-4)
    assert outcome.eval_loss == best and outcome.kept_step
    if name in TIED:
        apart = how in ("head", "embedding")
        assert saved.network.config.tie_word_embeddings is not apart
        head, embedding = saved.network.get_output_embeddings(), saved.network.get_input_embeddings()
        assert torch.equal((head or saved.network.lm_head).weight, embedding.weight) is not apart
    if how == "valued":
        for one, other in zip(
            before.network.value_head.parameters(), saved.network.value_head.parameters(), strict=True
        ):
            assert one.shape == other.shape
    assert inspect_model(place / "run" / "model").healthy
    if name == "huggingface":
        plain = Plain(place / "run" / "model")
        rows = [(plain.asked(prompt), [*plain.ids(response), plain.stop]) for prompt, response in PAIRS]
        assert plain.nll(rows) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("how", ["last", "best saved"])
def test_the_reported_loss_is_that_of_the_saved_step(how: str, tmp_path: Path) -> None:
    """Whatever step was better: without the best one the last is kept, and only what was saved can be gone back to."""
    place = start("pangu", tmp_path)
    more = {"load_best_model_at_end": False} if how == "last" else {"save_steps": 4, "max_steps": 8}
    given = settings(place, "pairs", lora=LORA)
    given["trainer"] |= more
    outcome = sft(SftConfig(**given))
    assert outcome.eval_loss == pytest.approx(
        loss(opened_anew(place / "run" / "model"), place / "pairs.jsonl"), rel=1e-4
    )
    evaluated = [entry["eval_loss"] for entry in read_metrics(place / "run" / "metrics.jsonl") if "eval_loss" in entry]
    assert outcome.eval_loss > min(evaluated[1:]) or how == "best saved"


@pytest.mark.parametrize("name", ["huggingface", *(SLOW(name) for name in NAMES if name != "huggingface")])
def test_pretraining_saves_what_it_evaluated(name: str, tmp_path: Path) -> None:
    place = start(name, tmp_path)
    data = "pairs" if name == "eva" else "texts"
    # Where what is learned is drawn, or documents stand end to end, the start of another run says what the model scores.
    alone = name in ("pangu", "huggingface")
    more: dict[str, Any] = {"packing": False} if alone else {"limit": {"transformer_xl": 2}.get(name, 48)}
    pretrain(PretrainConfig(**settings(place, data, **more)))
    best = kept(place / "run")[1]
    if alone:
        assert loss(opened_anew(place / "run" / "model"), place / "texts.jsonl") == pytest.approx(best, rel=1e-4)
    else:
        again = {"model": str(place / "run" / "model"), "out": str(place / "again"), **more}
        pretrain(PretrainConfig(**settings(place, data, **again)))
        assert kept(place / "again")[0] == pytest.approx(best, rel=1e-4)


def halves(opened: OpenedModel, place: Path, feed_stop: bool = False) -> tuple[list[Any], list[Any]]:
    """Of every pair of answers what is said of the better and of the worse one."""
    pairs = [(p, r, PAIRS[number - 1][1]) for number, (p, r) in enumerate(PAIRS)]
    better = [PromptResponse(prompt, chosen) for prompt, chosen, _ in pairs]
    worse = [PromptResponse(prompt, rejected) for prompt, _, rejected in pairs]
    return scores(opened, better, feed_stop), scores(opened, worse, feed_stop)


STAGES = [("huggingface", "head"), *((name, how) for name in ("huggingface", "pangu") for how in ("plain", "lora"))]
STAGE_CASES = [(pytest.param if how == "head" else SLOW)(name, how, id=f"{name}-{how}") for name, how in STAGES]


@pytest.mark.parametrize(("name", "how"), STAGE_CASES)
def test_preferences_save_what_they_evaluated(name: str, how: str, tmp_path: Path) -> None:
    """DPO by its formula, of log-probabilities of the saved model and the start; the reward model by its saved values."""
    place = start(name, tmp_path)
    dpo(DpoConfig(**settings(place, "better", beta=0.5, **adapters(name, how))))
    sums = [
        [torch.stack([logprobs.sum() for logprobs, *_ in side]) for side in halves(opened_anew(folder), place)]
        for folder in (place / "start", place / "run" / "model")
    ]
    moved = (sums[1][0] - sums[0][0]) - (sums[1][1] - sums[0][1])
    expected = -torch.nn.functional.logsigmoid(0.5 * moved).mean().item()
    assert expected == pytest.approx(kept(place / "run")[1], rel=1e-3)

    out = {"out": str(place / "reward")}
    train_reward(RewardConfig(**settings(place, "better", **out, **adapters(name, how))))
    better, worse = halves(opened_anew(place / "reward" / "model"), place, feed_stop=True)
    margins = torch.tensor([one[2] - other[2] for one, other in zip(better, worse, strict=True)])
    found = -torch.nn.functional.logsigmoid(margins).mean().item()
    assert found == pytest.approx(kept(place / "reward")[1], rel=1e-3, abs=1e-6)


def any_number(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    """A reward by which replies differ."""
    return [float(sum(map(ord, reply)) % 7) for reply in replies]


class Last(TrainerCallback):
    """The loss of the network as the last step leaves it."""

    def __init__(self, opened: OpenedModel, file: Path):
        self.opened, self.file, self.loss = opened, file, 0.0

    def on_train_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
        model.eval()
        self.loss = loss(OpenedModel(model, self.opened.family, ""), self.file)


@pytest.mark.parametrize(("name", "how"), STAGE_CASES)
@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_policies_save_their_last_step(stage: str, name: str, how: str, tmp_path: Path) -> None:
    place = start(name, tmp_path)
    last = Last(opened_anew(place / "start"), place / "pairs.jsonl")
    before = loss(last.opened, last.file)
    given: dict[str, Any] = {
        "model": str(place / "start"), "data": str(place / "prompts.jsonl"), "out": str(place / "run"), "limit": 48,
        "rewards": ("tests.e2e.test_saved_models:any_number",), "rounds": 1, "samples": 8, "generation": {"max_new_tokens": 4},
        "trainer": {"use_cpu": True, "seed": 1, "per_device_train_batch_size": 8, "learning_rate": 0.05},
    }  # fmt: skip
    config: Any = GrpoConfig if stage == "grpo" else PpoConfig
    more = {"group": 4} if stage == "grpo" else {}
    (grpo if stage == "grpo" else ppo)(config(**given, **more, **adapters(name, how)), show=last)
    assert last.loss != pytest.approx(before, rel=1e-3)
    assert loss(opened_anew(place / "run" / "model"), last.file) == pytest.approx(last.loss, rel=1e-4)


@pytest.mark.parametrize("name", ["transformer_xl", "pangu", "glm"])
def test_an_untied_head_has_no_place_in_an_original_layout(name: str, tmp_path: Path) -> None:
    place = start(name, tmp_path)
    opened = opened_anew(place / "start")
    convert(place / "start", tmp_path / "original", to="original")
    network = add_lora(opened.network, LoraSettings(2, targets=("lm_head",)), ())
    save_model(OpenedModel(network.merge_and_unload(), opened.family, ""), tmp_path / "apart")
    with pytest.raises(UnsupportedError, match=r"lm_head\.weight has no place in the original layout"):
        convert(tmp_path / "apart", tmp_path / "refused", to="original")
    assert not (tmp_path / "refused").exists()
    convert(tmp_path / "apart", tmp_path / "again")
    again, apart = opened_anew(tmp_path / "again").network, opened_anew(tmp_path / "apart").network
    for one, other in zip(again.state_dict().items(), apart.state_dict().items(), strict=True):
        assert one[0] == other[0] and torch.equal(one[1], other[1])


def test_a_configuration_that_cannot_say_untied_is_refused(tmp_path: Path) -> None:
    """mT5's says tied whatever it is told, so that a head of its own would be read back as the embedding."""
    opened = opened_anew(write_model("mt5", tmp_path / "tied", tie_word_embeddings=True))
    assert opened.network.lm_head.weight is opened.network.shared.weight
    with pytest.raises(UnsupportedError, match="output head of mt5 shares its weight with the embedding"):
        add_lora(opened.network, LoraSettings(2, targets=("q", "lm_head")), ())
    add_lora(opened.network, LoraSettings(2, targets=("q",)), ())  # anything else can be adapted
