"""Arguments of chat templates: every rendering gets them, results name them, and a mistake in one is a message."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hanmo.checkpoints import open_model
from hanmo.cli import app
from hanmo.cli.common import template_arguments
from hanmo.errors import CheckpointError, ConfigError, UnsupportedError
from hanmo.evaluation.suites.exam.suite import all_exams, exam_suite
from hanmo.evaluation.suites.runner import evaluate
from hanmo.evaluation.suites.suite import Options
from hanmo.families.huggingface.templates import is_plain, render_template
from hanmo.records import Dialogue
from hanmo.training.config import RunConfig
from hanmo.training.lifecycle import dry_run
from hanmo.training.opening import open_for_training
from hanmo.training.stages.pretrain import PretrainConfig, pretrain
from tests.unit.chat_templates import CHATML, LLAMA, QWEN3, chatting
from tests.unit.exam_files import exam_folder, one_token_a_character
from tests.unit.tiny import tiny

TALK = [{"role": "user", "content": "你好"}]
TURN = Dialogue(("你好",))
TONE = CHATML + "{{ tone }}"
OPEN = CHATML.replace("assistant\\n", "assistant\\n<think>\\n")  # the model closes the block that the template opens
WRITES = CHATML.replace(  # an empty block in front of every reply, which is not asked for
    "m.content", "('<think>\\n\\n</think>\\n\\n' if m.role == 'assistant' else '') + m.content"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("qwen3")
    made = chatting(QWEN3)
    made.network.save_pretrained(place)
    made.tokenizer.save_pretrained(place)
    return place


@pytest.mark.parametrize(("template", "given"), [(TONE, {"tone": "短"}), (QWEN3, {"enable_thinking": False})])
def test_both_processes_render_with_arguments_what_transformers_renders(template: str, given: dict[str, Any]) -> None:
    words = chatting(template).tokenizer
    rendered = render_template(words, TALK, True, given)
    expected = words.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True, **given)
    assert rendered == expected != render_template(words, TALK, True)
    assert is_plain(TONE) and not is_plain(QWEN3)


def test_a_long_argument_is_not_repeated_without_limits() -> None:
    """A million letters, two hundred times in each of ten turns, by a template whose own form bounds its output."""
    family = chatting("{% for m in messages %}" + "{{ name }}" * 200 + "{% endfor %}").family
    with pytest.raises(CheckpointError, match="takes too much memory"):
        family.with_template({"name": "a" * 10**6}).context(Dialogue(("你好",) * 11), 512)


def test_looking_for_the_arguments_of_a_template_has_limits() -> None:
    """jinja computes constants when it reads a template."""
    family = chatting("{{ 10 ** (10**9) }}{{ name }}").family
    with pytest.raises(CheckpointError, match="takes too much time"):
        family.with_template({"name": "x"})


@pytest.mark.parametrize(
    ("template", "given", "message"),
    [
        (QWEN3, {"enable_thinkin": False}, r"uses no argument 'enable_thinkin'; those it uses: enable_thinking$"),
        (CHATML, {"enable_thinking": False}, r"uses no argument 'enable_thinking'; it uses none$"),
        (LLAMA, {"bos_token": "x"}, "'bos_token': hanmo gives the template this itself"),
        (LLAMA, {"messages": "x"}, "'messages': hanmo gives the template this itself"),
        (LLAMA, {"add_generation_prompt": False}, "'add_generation_prompt': hanmo gives"),
        ("{{ tools }}{{ documents }}{{ index }}", {"index": "%9d"}, "'index': hanmo gives"),
        (PHI := "{{ sep_token }}{{ a }}", {"sep_token": "x"}, "'sep_token': hanmo gives"),
        (PHI, {"a": ["x"]}, "template argument a: found list; expected text"),
        (PHI, {"a": None}, "template argument a: found NoneType; expected text"),
        (PHI, {"a": float("inf")}, "template argument a: found inf; expected text"),
        ("{{ strftime_now('%d') }}{{ range(3) }}", {"range": 3}, r"uses no argument 'range'; it uses none$"),
    ],
)
def test_what_the_template_does_not_take_is_refused_by_name(template: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chatting(template).family.with_template(given)


@pytest.mark.parametrize("name", ["eva", "pangu"])
def test_a_model_without_a_template_refuses_arguments(name: str, tmp_path: Path) -> None:
    for family in (tiny(name, tmp_path).family, chatting(None).family):
        assert family.with_template({}) is family and family.template_mode == ""
        with pytest.raises(
            UnsupportedError, match=r"template argument 'enable_thinking': this .* has no chat template"
        ):
            family.with_template({"enable_thinking": False})


def test_arguments_change_a_copy_and_add_up() -> None:
    family = chatting(LLAMA + "{{ tone }}").family
    changed = family.with_template({"today": "1 May"}).with_template({"tone": 3})
    assert (family.template_arguments, changed.template_arguments) == ({}, {"today": "1 May", "tone": 3})
    assert changed.template_mode == f'{family.template_mode}, today="1 May", tone=3'


def test_the_token_that_ends_a_turn_is_found_with_the_arguments() -> None:
    template = "{{ m }}{% for m in messages %}{{ m.content }}{{ '<|end|>' if short else '<|eot|>' }}{% endfor %}"
    family = chatting(template).family
    ends = [
        family.tokenizer.convert_ids_to_tokens(one.stop_id) for one in (family, family.with_template({"short": True}))
    ]
    assert ends == ["<|eot|>", "<|end|>"]


def test_words_of_the_command_line_are_yaml_numbers_and_truth_values_else_text() -> None:
    given = ["a=false", "b=True", "c=3", "d=0.5", "e=2024-07-26", "f=", "g=[1]", "h=x=y", "i=null", "j={"]
    expected = {"a": False, "b": True, "c": 3, "d": 0.5, "e": "2024-07-26", "f": "", "g": "[1]", "h": "x=y", "i": "null", "j": "{"}  # fmt: skip
    assert template_arguments(given) == expected
    for wrong, message in ((["thinking"], "expected KEY=VALUE"), (["a=1", "a=2"], "a is given twice")):
        with pytest.raises(ConfigError, match=message):
            template_arguments(wrong)


def test_commands_take_arguments_and_results_and_answers_depend_on_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = tmp_path / "test.txt"
    data.write_text("你好\t我很好\n", encoding="utf-8")

    def run(*options: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["eval", "perplexity", str(folder), str(data), "--json", *options])
        assert done.exit_code == 0, done.output
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    bare, off = run(), run("--template", "enable_thinking=false")
    assert off["about"]["template"] == bare["about"]["template"] + ", enable_thinking=false"
    assert off["perplexity"] != bare["perplexity"] and run() == bare
    wrong = CliRunner().invoke(app, ["chat", str(folder), "--template", "thinking=false"])
    assert isinstance(wrong.exception, ConfigError) and "those it uses: enable_thinking" in str(wrong.exception)
    text = CliRunner().invoke(app, ["generate", str(folder), "你好", "--template", "enable_thinking=false"])
    assert isinstance(text.exception, ConfigError) and "everything here is running text" in str(text.exception)


def test_training_takes_arguments_as_a_setting(folder: Path) -> None:
    opened = open_for_training(RunConfig(str(folder), "", template={"enable_thinking": False}))
    expected = open_model(folder, template={"enable_thinking": False}).family.context(TURN, 512).ids
    assert opened.family.context(TURN, 512).ids == expected
    assert opened.tokenizer.decode(expected).endswith("assistant\n<think>\n\n</think>\n\n")
    with pytest.raises(ConfigError, match="template cannot be given for a new model"):
        open_for_training(RunConfig("init:gpt", "", template={"enable_thinking": False}))


def test_pretraining_on_running_text_refuses_arguments_and_on_dialogues_takes_them(
    folder: Path, tmp_path: Path
) -> None:
    given = {"template": {"enable_thinking": False}, "trainer": {"max_steps": 1}}
    lines = {"talk.txt": ("dialogue", "你好\t我很好\n"), "text.txt": ("text", "你好我很好\n")}
    for name, (_, line) in lines.items():
        (tmp_path / name).write_text(line * 3, encoding="utf-8")
    talk, text = (
        PretrainConfig(str(folder), str(tmp_path / name), str(tmp_path / "run"), plain=plain, packing=False, **given)
        for name, (plain, _) in lines.items()
    )
    found = dry_run(pretrain, talk)
    assert found["rows"] == 3 and "enable_thinking: false" in found["config"]
    with pytest.raises(ConfigError, match=r"template: .*text\.txt is running text"):
        dry_run(pretrain, text)


@pytest.mark.parametrize(
    ("template", "given", "mode"),
    [
        (QWEN3, {}, ", enable_thinking=false"),
        (QWEN3, {"enable_thinking": True}, ", enable_thinking=true, think block closed"),
        (WRITES, {}, ", think block closed"),
        (OPEN, {}, ", think block closed"),
        (CHATML, {}, ""),
    ],
    ids=["switched off", "kept on", "the template writes it", "the template opens it", "none"],
)
def test_an_answer_at_once_follows_the_closed_block_of_the_reasoning(
    template: str, given: dict[str, Any], mode: str
) -> None:
    family = chatting(template).family.with_template(given)
    family, bare = family.answering_at_once(), family
    end = "<think>\n\n</think>\n\n" if mode else ""
    prompt = f"<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n{end}"
    assert family.tokenizer.decode(family.context(TURN, 512).ids) == prompt
    assert family.template_mode.partition(",")[0] == bare.template_mode.partition(",")[0]
    assert family.template_mode.removeprefix(bare.template_mode.partition(",")[0]) == mode


def test_an_examination_in_chat_scores_letters_behind_the_closed_block(tmp_path: Path) -> None:
    subject = next(iter(all_exams()["mmlu"].subjects.values()))
    texts = [subject.instruction, subject.template.text]
    data = exam_folder(all_exams()["mmlu"], tmp_path / "mmlu", "", [subject.name])

    def sit(template: str, given: dict[str, Any]) -> tuple[list[list[float]], dict[str, Any]]:
        opened = one_token_a_character(texts, chat=True)
        opened.tokenizer.chat_template = template
        opened = replace(opened, family=opened.family.with_template(given))
        suite = exam_suite("mmlu", data, [subject.name])
        result = evaluate(opened, suite, Options(chat=True, shots=1), tmp_path / "cache", lambda _: lambda *_: None)
        return [item.scores["sum"] for item in result.tasks[0].items], result.about

    scores, about = sit(QWEN3, {})
    assert about["template"].endswith(", enable_thinking=false")
    assert sit(QWEN3, {"enable_thinking": False}) == (scores, about)
    closed, other = sit(WRITES, {})
    assert other["template"].endswith(", think block closed")
    bare, plain = sit(CHATML, {})
    assert len(plain["template"]) == 16
    assert closed != bare and scores != bare
