"""KTO: which responses are compared with which, and the steps that plain transformers and torch take."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from hanmo.checkpoints import open_model
from hanmo.data.rows.pairs import preferences
from hanmo.data.rows.thumbs import make_thumbs, thumbs
from hanmo.errors import ConfigError
from hanmo.records import Dialogue, PromptResponse, Record, Rejects, ScoredAnswers, Text, iter_records, write_records
from hanmo.training.callbacks import read_metrics
from hanmo.training.stages.kto import KtoConfig, kto, ranked_rightly
from tests.unit.alignment_cases import starts, trainer
from tests.unit.tiny import NAMES, tiny

THUMBS = [
    ("你好吗", "我很好", True),
    ("今天天气怎么样", "不", False),
    ("今天天气怎么样", "今天天气真不错", True),
    ("明天去哪里玩", "去玩火锅", True),
]


def write(folder: Path, records: list[tuple[str, str, bool]]) -> str:
    made = [PromptResponse(prompt, response, label=up) for prompt, response, up in records]
    write_records(folder / "thumbs.jsonl", made)
    return str(folder / "thumbs.jsonl")


# Data


def said(family: Any, row: Any) -> str:
    """What is scored of a row."""
    ids = [id_ for id_ in row.labels.tolist() if id_ >= 0 and id_ not in family.stop_ids]
    return str(family.decode(ids)).replace(" ", "")


@pytest.mark.parametrize("name", NAMES)
def test_each_prompt_is_given_the_next_response_to_another(name: str, tmp_path: Path) -> None:
    """Not the other response to the same prompt; the last prompt is given the first response."""
    opened = tiny(name, tmp_path)
    records: list[Record] = [
        *iter_records(write(tmp_path, THUMBS[:3])),
        ScoredAnswers("明天去哪里玩", (("去玩火锅", 1.0), ("不", 0.0))),
    ]
    rejects = Rejects()
    made = make_thumbs(records, opened.family, 48, None, rejects)
    items = [made[place][1] for place in range(len(made))]
    assert [item.up for item in items] == [True, False, True, True, False] and not rejects
    own = ["我很好", "不", "今天天气真不错", "去玩火锅", "不"]
    assert [said(opened.family, item.row) for item in items] == own
    others = ["不", "去玩火锅", "去玩火锅", "我很好", "我很好"]
    assert [said(opened.family, item.other) for item in items] == others
    prompts = ("你好吗", *["今天天气怎么样"] * 2, *["明天去哪里玩"] * 2)
    for item, prompt, answer in zip(items, prompts, others, strict=True):
        mixed = opened.family.parts(PromptResponse(prompt, answer), 48)
        expected = opened.family.row(mixed[0])
        assert all(torch.equal(item.other.inputs[key], tensor) for key, tensor in expected.inputs.items())
    dummy = made[-1][1]
    assert (dummy.weight, dummy.compared) == (0, 0)


def test_where_all_prompts_are_alike_nothing_is_compared(tmp_path: Path) -> None:
    opened = tiny("pangu", tmp_path)
    records = [Dialogue(("你好", "再见"), label=True), Dialogue(("你好", "谢谢"), label=False)]
    made = make_thumbs(records, opened.family, 48, None, Rejects())
    assert [made[place][1].compared for place in range(2)] == [0, 0]


def test_thumbs_of_records() -> None:
    answers = ScoredAnswers("问", (("差", 0.0), ("好", 2.0), ("", 1.0), ("坏", 0.5)))
    assert [(one.response, up) for one, up in thumbs(answers)] == [("好", True), ("差", False), ("坏", False)]  # type: ignore[union-attr]
    assert len(preferences(answers)) == 2
    assert thumbs(Text("字")) == thumbs(PromptResponse("问", "答")) == thumbs(Dialogue(("一", "二"))) == []


def test_a_record_without_a_thumb_is_listed(tmp_path: Path) -> None:
    start = starts(tmp_path, "pangu")
    lines = [{"prompt": "你好", "response": "再见", "label": 1}, {"prompt": "你好", "response": "再见", "label": True}]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    settings = trainer(max_steps=1, save_strategy="no")
    config = KtoConfig(str(start), str(tmp_path / "data.jsonl"), str(tmp_path / "run"), limit=48, trainer=settings)
    assert kto(config).rows == 1
    listed = json.loads((tmp_path / "run" / "rejects.jsonl").read_text(encoding="utf-8"))
    assert listed["line"] == 1 and 'neither a "label"' in listed["problem"]
    (tmp_path / "data.jsonl").write_text(json.dumps(lines[0]), encoding="utf-8")
    with pytest.raises(ConfigError, match="no thumb to learn from"):
        kto(config)


def test_labels_survive_writing(tmp_path: Path) -> None:
    records: list[Record] = [
        PromptResponse("问", "答", label=False),
        Dialogue(("一", "二"), label=True),
        PromptResponse("问", "答"),
    ]
    write_records(tmp_path / "data.jsonl", records)
    assert list(iter_records(tmp_path / "data.jsonl")) == records
    assert "label" not in (tmp_path / "data.jsonl").read_text(encoding="utf-8").splitlines()[2]


# Steps

RATE = 0.3


def taken(start: Path, beta: float, up_weight: float, down_weight: float) -> tuple[Any, list[float]]:
    """Plain transformers after three steps of SGD on all thumbs, and the reference points."""
    family = open_model(start, device="cpu").family
    model = AutoModelForCausalLM.from_pretrained(start)
    prompts = [family.context(PromptResponse(prompt, ""), 48).ids for prompt, _, _ in THUMBS]
    replies = [[*family.parts(PromptResponse(*one[:2]), 48)[0][-1].ids, family.stop_id] for one in THUMBS]

    def logprob(prompt: int, reply: int) -> Tensor:
        target = torch.tensor(replies[reply])
        logits = model(input_ids=torch.tensor([[*prompts[prompt], *replies[reply]]])).logits[
            0, len(prompts[prompt]) - 1 : -1
        ]
        return logits.log_softmax(-1).gather(1, target[:, None]).sum()

    pairs = [(0, 1), (1, 3), (2, 3), (3, 0)]
    with torch.no_grad():
        before = [logprob(place, place) for place in range(4)]
        mismatched = [logprob(*pair) for pair in pairs]
    zeros = []
    for _ in range(3):
        with torch.no_grad():
            moved = [logprob(*pair) - other for pair, other in zip(pairs, mismatched, strict=True)]
            zero = torch.stack(moved).mean().clamp(min=0)
        zeros.append(zero.item())
        losses = []
        for place, (_, _, up) in enumerate(THUMBS):
            ratio = logprob(place, place) - before[place]
            value = torch.sigmoid(beta * (ratio - zero) if up else beta * (zero - ratio))
            losses.append((up_weight if up else down_weight) * (1 - value))
        model.zero_grad()
        torch.stack(losses).mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= RATE * parameter.grad
    return model, zeros


CASES = {
    "default": (0.3, 1.0, 1.0),
    "beta": (0.6, 1.0, 1.0),
    "desirable": (0.3, 2.0, 1.0),
    "undesirable": (0.3, 1.0, 0.5),
}


@pytest.mark.parametrize("case", CASES)
def test_an_option_takes_the_steps_computed_by_hand(case: str, tmp_path: Path) -> None:
    """The reference point is 0 at the first step and above it later."""
    start = starts(tmp_path, "huggingface")
    beta, up, down = CASES[case]
    settings = trainer(
        per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=RATE, optim="sgd", max_grad_norm=0.0,
        max_steps=3, logging_steps=1, save_strategy="no", bf16=False,
    )  # fmt: skip
    config = KtoConfig(
        str(start), write(tmp_path, THUMBS), str(tmp_path / "run"), limit=48, beta=beta, desirable_weight=up,
        undesirable_weight=down, trainer=settings,
    )  # fmt: skip
    outcome = kto(config)
    expected, zeros = taken(start, beta, up, down)
    told = [entry["kl"] for entry in read_metrics(tmp_path / "run" / "metrics.jsonl") if "kl" in entry]
    assert told == pytest.approx(zeros, rel=1e-3, abs=1e-5) and told[0] == 0 and max(told) > 0.01
    plain = dict(taken(start, *CASES["default"])[0].named_parameters())
    found = dict(open_model(str(outcome.model), dtype="fp32", device="cpu").network.named_parameters())
    differs = 0.0
    for name, tensor in expected.named_parameters():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-5, msg=name)
        differs = max(differs, (plain[name] - tensor).abs().max().item())
    assert case == "default" or differs > 1e-3


def test_couples_ranked_rightly_by_hand() -> None:
    """Of 2 against (1, 2, 3) one and a half, of 4 all three."""
    assert ranked_rightly(torch.tensor([2.0, 4.0]), torch.tensor([3.0, 1.0, 2.0])) == 4.5 / 6


def test_the_validation_loss_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    start, data, told = starts(tmp_path, "glm"), write(tmp_path, THUMBS), []
    for size in (1, 3):
        settings = trainer(
            per_device_train_batch_size=4, per_device_eval_batch_size=size, learning_rate=1e-2, max_steps=2, logging_steps=1,
            eval_strategy="steps", eval_steps=1, save_strategy="no",
        )  # fmt: skip
        run = tmp_path / str(size)
        kto(KtoConfig(str(start), data, str(run), valid=data, limit=48, trainer=settings))
        names = ("eval_loss", "eval_kl", "eval_accuracy", "eval_up_reward", "eval_down_reward")
        told.append([entry[name] for entry in read_metrics(run / "metrics.jsonl") for name in names if name in entry])
        assert "Learning from thumbs" in (run / "report.html").read_text(encoding="utf-8")
    assert told[0] == pytest.approx(told[1], rel=1e-4, abs=1e-5) and len(told[0]) == 15


@pytest.mark.parametrize("name", ["eva", "pangu"])
def test_a_killed_run_goes_on_to_the_same_weights(name: str, tmp_path: Path) -> None:
    start, data = starts(tmp_path, name), write(tmp_path, THUMBS)
    settings = trainer(per_device_train_batch_size=2, learning_rate=1e-2, max_steps=5, logging_steps=1)
    settings |= {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 5}
    runs = tmp_path / "whole", tmp_path / "again"
    for run in runs:
        if run.name == "again":
            (run / "checkpoints").mkdir(parents=True)
            (runs[0] / "checkpoints" / "checkpoint-2").rename(run / "checkpoints" / "checkpoint-2")
        kto(KtoConfig(str(start), data, str(run), limit=48, trainer=settings), resume=run.name == "again")
    one, other = (open_model(run / "model", device="cpu").network for run in runs)
    for (tensor, ours), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), tensor
    ends = [
        [(one["loss"], one["kl"]) for one in read_metrics(run / "metrics.jsonl") if "kl" in one][-3:] for run in runs
    ]
    assert ends[0] == ends[1] and ends[0][-1][1] > 0
