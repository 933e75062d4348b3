"""No option of ``hanmo eval`` is accepted and ignored: what has no effect is refused by its name, in every mode of every command."""

import json
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import hanmo.checkpoints
from hanmo.cli import app
from hanmo.families.base import OpenedModel
from tests.unit.clue_files import clue_folder
from tests.unit.exam_files import one_token_a_character
from tests.unit.tiny import tiny_eva

OPENING = {
    "--size",
    "--config",
    "--vocab",
    "--adapter",
    "--template",
    "--dtype",
    "--device",
}  # open_model refuses what a model does not take
ALWAYS = {"--json", "--output", "--nproc", "--first", "--limit"}
RECORDS = {"--batch-size", "--skip-bad", "--first", "--limit", "--response-limit"}
# command -> its options; those that some mode refuses have a line in REFUSED, the others have an effect in all of them
OPTIONS = {
    "dialogue": {*OPENING, *RECORDS, "--preset", "--published", "--rules", "--output", "--json", "--nproc"},
    "perplexity": {*OPENING, *RECORDS, "--text", "--output", "--json", "--nproc"},
    "rouge": {"--words", "--json"},
    "clue": {*OPENING, *ALWAYS, "--data", "--tasks", "--shots", "--published", "--candidates", "--choices", "--seed", "--budget"},
    "exam": {*OPENING, *ALWAYS, "--kind", "--data", "--subjects", "--split", "--shots", "--chat", "--published", "--cot", "--budget"},
    "task": {*OPENING, *ALWAYS, "--shots", "--chat", "--choices", "--seed", "--budget"},
    "compare": {"--json"},
    "table": {"--output"},
    "human-prepare": {"--output", "--raters", "--seed"},
    "human-score": {"--key", "--json"},
}  # fmt: skip
# the command in its mode, the option that has no effect there, and what is said
REFUSED = [
    ("clue eva --data clue --published", "--seed 1", "--seed is for the corrected protocol"),
    ("clue eva --data clue --published", "--seed 0", "--seed is for the corrected protocol"),
    ("clue eva --data clue --published --shots 2", "--seed 1", "the published one always draws with 42"),
    ("clue eva --data clue --published", "--budget 9", "--budget is for the corrected protocol"),
    ("clue eva --data clue --published", "--choices 4", "--choices is for the corrected protocol"),
    ("clue gpt --data clue --published --tasks c3,csl", "--candidates c.json", "--candidates names wrong labels of IFLYTEK"),
    ("clue eva --data clue", "--candidates c.json", "--candidates names the original's draws"),
    ("clue eva --data clue", "--seed 1", "--seed 1: nothing is drawn without --shots or --choices"),
    ("clue eva --data clue --tasks cmrc2018", "--choices 4", "--choices has no effect on CMRC2018"),
    ("clue eva --data clue --tasks cmrc2018", "--budget 9", "--budget has no effect on CMRC2018"),
    ("task eva own.yaml", "--seed 1", "--seed 1: nothing is drawn without --shots or --choices"),
    ("exam eva --kind ceval --data exam", "--cot", "--cot is a form of the published prompts"),
    ("exam eva --kind ceval --data exam --published", "--chat", "leave --chat out"),
    ("clue eva --data clue", "--template a=1", "--template a=1: questions are running text"),
    ("exam gpt --kind ceval --data exam", "--template a=1", "leave it out, or give --chat"),
    ("task gpt own.yaml", "--template a=1", "leave it out, or give --chat"),
    ("perplexity gpt talk.txt --text", "--template a=1", "--template a=1: everything here is running text"),
    ("dialogue gpt talk.txt", "--response-limit 9", "--response-limit 9: in characters prompt and response share a row"),
    ("perplexity gpt talk.txt", "--response-limit 9", "--response-limit 9: in characters prompt and response share a row"),
]  # fmt: skip
# the same options where they have an effect are taken
TAKEN = [
    ("clue eva --data clue --tasks afqmc --shots 1", "--seed 1"),
    ("clue eva --data clue --tasks tnews --choices 3", "--seed 1"),
    ("clue eva --data clue --tasks cmrc2018,afqmc", "--budget 2000"),
    ("task eva own.yaml --shots 1", "--seed 1"),
    ("perplexity eva talk.txt", "--response-limit 9"),
]


@pytest.fixture(scope="module")
def models() -> dict[str, OpenedModel]:
    return {"eva": tiny_eva(), "gpt": one_token_a_character("你好吗很")}


@pytest.fixture(autouse=True)
def _here(models: dict[str, OpenedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hanmo.checkpoints, "open_model", lambda name, **_: models[name])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    clue_folder(Path("clue"))
    Path("talk.txt").write_text("你好\t很好\n", encoding="utf-8")
    Path("c.json").write_text("{}")
    records = [{"text": "你好", "label": 0}, {"text": "很好", "label": 1}]
    Path("x.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    said = 'data: x.jsonl\ntrain: x.jsonl\nanswer: label\nlabels: {1: 好, 0: 吗}\ntemplate: "{text}{option}"\n'
    Path("own.yaml").write_text(said, encoding="utf-8")


def test_every_option_is_known_here() -> None:
    """A new option needs a thought: in which mode has it no effect?"""
    commands = get_command(app).commands["eval"].commands  # type: ignore[attr-defined]
    found = {
        name: {one for parameter in command.params for one in parameter.opts if one.startswith("--")} - {"--help"}
        for name, command in commands.items()
    }
    assert found == OPTIONS


@pytest.mark.parametrize(("command", "option", "message"), REFUSED)
def test_what_has_no_effect_is_refused_by_name(command: str, option: str, message: str) -> None:
    ran = CliRunner().invoke(app, ["eval", *command.split(), *option.split()])
    assert ran.exception is not None and message in str(ran.exception), ran.output


@pytest.mark.parametrize(("command", "option"), TAKEN)
def test_what_has_an_effect_is_taken(command: str, option: str) -> None:
    ran = CliRunner().invoke(app, ["eval", *command.split(), *option.split()])
    assert ran.exit_code == 0, ran.output
