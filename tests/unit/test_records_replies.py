"""Records without a reply, and scores that are no numbers: bad where something is learned or compared, each with its reason."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hanmo.checkpoints import open_model, save_model
from hanmo.cli import app
from hanmo.data.prepare.sources.reader import SourceReader
from hanmo.data.rows.dataset import make_rows
from hanmo.data.rows.pairs import preferences
from hanmo.errors import ConfigError, RecordError
from hanmo.generation.prompts import read_prompts
from hanmo.records import Dialogue, PromptResponse, Rejects, ScoredAnswers, iter_records
from hanmo.records.reading import Reply
from hanmo.training.data_files import DataFiles
from hanmo.training.rl.rewards import with_answers
from hanmo.training.rl.rollout import question
from hanmo.training.stages import load_stage
from tests.unit.tiny import NAMES, tiny

GOOD = {"turns": ["你好", "嗨", "再见", "明天见"]}
UNANSWERED: list[tuple[Any, str]] = [
    ({"turns": ["你好"]}, "a dialogue of one turn"),
    (["你好"], "a dialogue of one turn"),
    ({"messages": [{"role": "assistant", "content": "你好"}]}, "the assistant speaks alone"),
    ({"messages": [{"role": "system", "content": "s"}, {"role": "assistant", "content": "你好"}]}, "speaks alone"),
    ({"messages": [{"role": "user", "content": "你好"}]}, "the last turn is the user's"),
    ({"turns": ["你好", ""]}, "the last turn is empty"),
    ({"turns": ["你好", " \n"]}, "the last turn is empty"),
    ({"prompt": "你好", "response": ""}, "the response is empty"),
    ({"instruction": "你好", "output": " "}, "the response is empty"),
    ({"instruction": "你好"}, "'output' must be text, found nothing"),
    ({"prompt": "你好", "answers": [{"answer": "", "score": 2}, {"answer": "嗨", "score": 1}]}, "best answer is empty"),
]
SCORES = ["NaN", "Infinity", "-Infinity", "1e999", "true", '"1"', "null", "1" + "0" * 400]


def written(folder: Path, *lines: Any) -> Path:
    path = folder / "data.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


@pytest.mark.parametrize("score", SCORES)
def test_a_score_that_is_no_number_is_a_bad_record(score: str, tmp_path: Path) -> None:
    line = '{"prompt": "p", "answers": [{"answer": "好", "score": 1}, {"answer": "坏", "score": SCORE}]}'
    line = line.replace("SCORE", score)
    path = written(tmp_path, GOOD, line)
    with pytest.raises(RecordError, match=r"data\.jsonl:2: answer 2"):
        list(iter_records(path))
    rejects = Rejects()
    assert len(list(iter_records(path, rejects))) == len(rejects) == 1


@pytest.mark.parametrize("name", NAMES)
def test_no_family_learns_the_users_only_turn(name: str, tmp_path: Path) -> None:
    """EVA alone makes a row of it, with two unknown words as its target, as published."""
    family = tiny(name, tmp_path).family
    rows = make_rows([Dialogue(("你好",))], family, 64, 64, Rejects())
    if name == "eva":
        unknown = family.tokenizer.unk_token_id
        assert rows.parts(0)[-1].ids == (unknown, unknown)
    else:
        assert len(rows) == 0
    assert family.context(Dialogue(("你好",)), 64).ids  # asked, it is answered


COMMANDS = [
    ("train", "sft", "trainer.max_steps=1"),
    ("eval", "dialogue"),
    ("eval", "perplexity"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words[:2]))
@pytest.mark.parametrize("value", [{"turns": ["你好"]}, {"turns": ["你好", ""]}], ids=["one", "empty"])
def test_a_command_names_file_and_line(command: tuple[str, ...], value: Any, tmp_path: Path) -> None:
    data = written(tmp_path, GOOD, value)
    model = str(tmp_path / "model")
    save_model(tiny("pangu", tmp_path), model)
    out = [str(tmp_path / "out")] if command[0] == "train" else []
    result = CliRunner().invoke(app, [*command[:2], model, str(data), *out, *command[2:]])
    assert isinstance(result.exception, RecordError) and str(result.exception).startswith(f"{data}:2: ")


PROMPTS: list[tuple[Any, tuple[str, ...]]] = [
    ({"messages": [{"role": "user", "content": "你好"}]}, ("你好",)),
    (
        {"messages": [{"role": r, "content": c} for r, c in (("user", "甲"), ("assistant", "乙"), ("user", "丙"))]},
        ("甲", "乙", "丙"),
    ),
    ({"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "嗨"}]}, ("你好",)),
    ({"turns": ["你好"]}, ("你好",)),
    ({"turns": ["你好", "嗨"]}, ("你好",)),
    ({"prompt": "你好"}, ("你好",)),
    ({"instruction": "你好"}, ("你好",)),
    ({"prompt": "你好", "response": ""}, ("你好",)),
]


@pytest.mark.parametrize(("value", "turns"), PROMPTS)
def test_prompts_of_a_policy_may_wait_for_their_reply(value: Any, turns: tuple[str, ...], tmp_path: Path) -> None:
    (record,) = iter_records(written(tmp_path, value), reply="waiting")
    opened = tiny("pangu", tmp_path)
    asked = question(record, opened, 64)
    assert asked.prompt == "\n".join(turns)
    assert asked.context.ids == opened.family.context(Dialogue(turns), 64).ids


def test_generate_reads_messages_that_end_with_the_user(tmp_path: Path) -> None:
    said = [{"role": "system", "content": "客服"}, {"role": "user", "content": "你好"}]
    path = written(tmp_path, {"messages": said}, {"turns": ["你好"]}, {"prompt": "你好"})
    records = [record for _, record in read_prompts(path)]
    assert records == [Dialogue(("你好",), "客服"), Dialogue(("你好",)), PromptResponse("你好", "")]
    said.append({"role": "assistant", "content": "嗨"})
    for bad in ({"messages": said}, {"messages": [said[0], said[2]]}, {"messages": [{"role": "user"}]}):
        with pytest.raises(RecordError, match=r"data\.jsonl:1: "):
            list(read_prompts(written(tmp_path, bad)))


def test_one_turn_has_no_reply_to_score() -> None:
    with pytest.raises(ConfigError, match="x:3: a dialogue of one turn"):
        with_answers(Dialogue(("你好",), where="x:3"))


UNASKED = [
    ({"text": "你好"}, "running text is no prompt"),
    ({"prompt": ""}, "the prompt is empty"),
    ({"prompt": " \n", "response": "嗨"}, "the prompt is empty"),
    ({"turns": [""]}, "the prompt is empty"),
    ({"turns": ["你好", "嗨", " ", ""]}, "the prompt is empty"),
    ({"messages": [{"role": "user", "content": ""}]}, "the prompt is empty"),
    ({"prompt": "", "answers": [{"answer": "嗨", "score": 1}]}, "the prompt is empty"),
]


NEEDED: list[tuple[Reply, Any, str]] = [
    *(("needed", value, f".*{problem}") for value, problem in UNANSWERED),
    *(("waiting", value, problem) for value, problem in UNASKED),
]


@pytest.mark.parametrize(("reply", "value", "problem"), NEEDED)
def test_a_record_without_a_reply_or_a_prompt_is_a_bad_record(
    reply: Reply, value: Any, problem: str, tmp_path: Path
) -> None:
    path = written(tmp_path, GOOD, value, GOOD)
    with pytest.raises(RecordError, match=rf"data\.jsonl:2: {problem}"):
        list(iter_records(path, reply=reply))
    rejects = Rejects()
    assert len(list(iter_records(path, rejects, reply=reply))) == 2
    assert [error.line for error in rejects.errors] == [2]


def built(stage: str, model: Path, data: Path, skip_bad: bool = False) -> tuple[int, list[tuple[int, str]]]:
    """The rows that a stage would learn from, and line and problem of each record that it would not."""
    more = {"rewards": (f"{__name__}:any_score",)} if stage in ("grpo", "ppo") else {}
    config = load_stage(stage).config(str(model), str(data), limit=48, skip_bad=skip_bad, **more)
    ready = load_stage(stage).build(open_model(model, device="cpu"), config, DataFiles(data, None, skip_bad, False))
    return len(ready.train), [(error.line, error.problem) for error in ready.rejects.errors]


def any_score(prompts: list[str], replies: list[str]) -> list[float]:
    return [float(len(reply)) for reply in replies]


@pytest.mark.parametrize("name", ["eva", "huggingface"])
def test_a_prompt_that_does_not_fit_is_left_out_and_listed(name: str, tmp_path: Path) -> None:
    """As longer records of every stage: EVA learned from replies to nothing, and transformers' models stopped."""
    save_model(tiny(name, tmp_path / "tiny"), tmp_path / "model")
    path = written(tmp_path, {"prompt": "你好"}, {"prompt": "再见很" * 60}, {"prompt": "谢谢"})
    rows, [(line, problem)] = built("ppo", tmp_path / "model", path)
    assert (rows, line) == (2, 2) and ("limit=48" in problem or "48 tokens" in problem)


REFUSING = (
    "{% for m in messages %}{% if '坏' in m.content %}{{ raise_exception('not this word') }}{% endif %}"
    "<|im_start|>{{ m.role }}{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
STAGES = {
    "sft": ({"prompt": "你好", "response": "再见"}, {"prompt": "坏", "response": "再见"}),
    "pretrain": ({"prompt": "你好", "response": "再见"}, {"prompt": "坏", "response": "再见"}),
    "dpo": tuple({"prompt": asked, "chosen": "再见", "rejected": "谢谢"} for asked in ("你好", "坏")),
    "kto": tuple({"prompt": asked, "response": "再见", "label": True} for asked in ("你好", "坏")),
    "reward": tuple({"prompt": asked, "chosen": "再见", "rejected": "谢谢"} for asked in ("你好", "坏")),
    "grpo": ({"prompt": "你好"}, {"prompt": "坏"}),
    "ppo": ({"prompt": "你好"}, {"prompt": "坏"}),
}


def test_what_a_chat_template_refuses_is_a_bad_record_of_every_stage(tmp_path: Path) -> None:
    opened = tiny("huggingface", tmp_path / "tiny")
    opened.tokenizer.chat_template = REFUSING
    model = save_model(opened, tmp_path / "model")
    for stage, (good, bad) in STAGES.items():
        path = written(tmp_path, good, bad, good)
        with pytest.raises(RecordError, match=r"data\.jsonl:2: the chat template .* not this word"):
            built(stage, model, path)
        rows, [(line, problem)] = built(stage, model, path, skip_bad=True)
        assert (line, rows) == (2, 1 if stage == "pretrain" else 2) and "not this word" in problem, stage


CONVERSATION = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "嗨"}]
NOT_PAIRS = [
    ({"prompt": "你好", "chosen": "嗨", "rejected": {"role": "user", "content": "哼"}}, "the last turn is the user's"),
    ({"chosen": [CONVERSATION[0]] * 2, "rejected": [CONVERSATION[0]] * 2}, "they must alternate"),
    (
        {"chosen": CONVERSATION, "rejected": [{"role": "user", "content": "再见"}, CONVERSATION[1]]},
        "'chosen' and 'rejected' do not answer the same turns",
    ),
    ({"chosen": CONVERSATION, "rejected": "哼"}, "without what they answer"),
    ({"prompt": [CONVERSATION[1]], "chosen": "嗨", "rejected": "哼"}, "they must alternate"),
]


@pytest.mark.parametrize(("value", "problem"), NOT_PAIRS)
def test_answers_by_another_or_to_something_else_are_no_pair(value: Any, problem: str, tmp_path: Path) -> None:
    """They were taken as if the assistant had said them, and to the chosen answer's turns."""
    with pytest.raises(RecordError, match=rf"data\.jsonl:2: .*{problem}"):
        list(iter_records(written(tmp_path, GOOD, value)))


@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
def test_a_blank_answer_makes_no_pair(blank: str) -> None:
    assert not preferences(ScoredAnswers("你好", (("嗨", 1.0), (blank, 0.0))))
    assert not preferences(ScoredAnswers(blank, (("嗨", 1.0), ("哼", 0.0))))


NO_TEXT = {
    '"\\ud83d"': r"not JSON: \\ud83d alone is half of a character",
    '"\\\\ \\ude00好"': r"not JSON: \\ude00 alone is half of a character",
    "1" * 5000: "not JSON: Exceeds the limit",
    "[" * 200_000: "not JSON: nested too deeply",
}


@pytest.mark.parametrize("value", NO_TEXT, ids=["high half", "low half", "digits", "depth"])
def test_json_that_holds_no_text_is_a_bad_record_everywhere(value: str, tmp_path: Path) -> None:
    """Half of a character (which no tokenizer and no file takes), and numbers and depths that Python refuses."""
    line, good = f'{{"prompt": {value}, "response": "好"}}', '{"prompt": "\\ud83d\\ude00\\\\ud83d", "response": "好"}'
    path = written(tmp_path, good, "", line, good)
    with pytest.raises(RecordError, match=rf"data\.jsonl:3: {NO_TEXT[value]}"):
        list(iter_records(path))
    with pytest.raises(RecordError, match=rf"data\.jsonl:3: {NO_TEXT[value]}"):
        list(read_prompts(path))
    rejects = Rejects()
    assert [record.prompt for record in iter_records(path, rejects)] == ["😀\\ud83d"] * 2  # type: ignore[union-attr]
    assert [error.line for error in rejects.errors] == [3]
    with pytest.raises(RecordError, match=rf"data\.jsonl:3: {NO_TEXT[value]}"):
        list(SourceReader().json_objects(path))
    (tmp_path / "array.json").write_text(f"[\n{good},\n{line}\n]")
    for read in (lambda path: list(iter_records(path)), lambda path: list(SourceReader().json_values(path))):
        with pytest.raises(RecordError, match=rf"array\.json:3: {NO_TEXT[value]}"):
            read(tmp_path / "array.json")  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("stage", ["reward", "dpo", "kto"])
@pytest.mark.parametrize(("value", "problem"), [UNANSWERED[0], UNANSWERED[7], UNANSWERED[10]])
def test_a_missing_answer_is_a_bad_record_for_pairs_too(stage: str, value: Any, problem: str, tmp_path: Path) -> None:
    save_model(tiny("pangu", tmp_path), tmp_path / "model")
    path = written(tmp_path, {"prompt": "你好", "chosen": "嗨", "rejected": "哼"}, value)
    result = CliRunner().invoke(app, ["train", stage, str(tmp_path / "model"), str(path), str(tmp_path / "out")])
    assert (
        isinstance(result.exception, RecordError) and result.exception.line == 2 and problem in result.exception.problem
    )
    assert not (tmp_path / "out").exists()
