"""``hanmo eval``: what it prints and writes, and how it answers mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hanmo.checkpoints import save_model
from hanmo.cli import app
from hanmo.errors import ConfigError, RecordError
from tests.unit.tiny import tiny_eva


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder and a file of dialogues."""
    folder = tmp_path_factory.mktemp("eval")
    save_model(tiny_eva(), folder / "model")
    (folder / "test.txt").write_text("你好吗\t我很好\n今天天气真不错\t明天去哪里玩\n谢谢\t再见\n", encoding="utf-8")
    (folder / "bad.jsonl").write_text('{"prompt": "谢谢", "response": "再见"}\n{"prompt": 1}\n', encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Answers that no other run has given."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hanmo"


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def test_dialogue_prints_both_readings(folder: Path) -> None:
    shown = run("dialogue", folder / "model", folder / "test.txt", "--batch-size", 2, "max_new_tokens=5")
    assert shown.exit_code == 0, shown.output
    lines = [line.split(" | ") for line in shown.stdout.splitlines() if " | " in line]
    assert [cell.strip() for cell in lines[0]] == ["", "loss", "BLEU-4", "Dist-4", "F1"]
    assert [line[0].strip() for line in lines[1:4]] == ["published", "corrected", ""]
    assert "3 of 3 records" in shown.stdout


@pytest.mark.parametrize("command", ["dialogue", "perplexity"])
def test_what_is_printed_says_where_it_comes_from(folder: Path, command: str) -> None:
    few = ("max_new_tokens=5",) if command == "dialogue" else ()
    arguments = (command, folder / "model", folder / "test.txt", *few)
    about = json.loads(run(*arguments, "--json").stdout)["about"]
    shown = run(*arguments).stdout
    for name in ("weights", "data", "hanmo"):
        assert about[name] in shown
    assert "corrected protocol, 0 shots, at most 512 tokens" in shown


def test_texts_say_what_was_compared(folder: Path) -> None:
    (folder / "said.txt").write_text("你好\n再见\n", encoding="utf-8")
    result = json.loads(run("rouge", folder / "said.txt", folder / "said.txt", "--json").stdout)
    assert (
        result["f1"] == 1.0 and result["about"]["data"] in run("rouge", folder / "said.txt", folder / "said.txt").stdout
    )
    (folder / "other.txt").write_text("你好\n不\n", encoding="utf-8")
    other = json.loads(run("rouge", folder / "said.txt", folder / "other.txt", "--json").stdout)
    assert other["about"]["data"] != result["about"]["data"]


@pytest.mark.parametrize("command", ["dialogue", "perplexity"])
def test_what_was_found_is_not_asked_again(
    folder: Path, own_cache: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("max_new_tokens=5",) if command == "dialogue" else ()
    arguments = (command, folder / "model", folder / "test.txt", "--json", *few)
    first = run(*arguments)
    assert first.exit_code == 0, first.output
    kept = sorted((own_cache / command).iterdir())
    assert kept and all(path.name.startswith(command) for path in kept)

    def never(*given: Any, **named: Any) -> Any:
        raise AssertionError("asked again")

    with monkeypatch.context() as patch:
        patch.setattr("hanmo.evaluation.dialogue.generate", never)
        patch.setattr("hanmo.nn.row_model.RowModel.forward", never)
        again = run(*arguments)
        assert again.exit_code == 0 and again.stdout == first.stdout
        other = run(*arguments, "--limit", "100")
        assert isinstance(other.exception, AssertionError)


def test_dialogue_as_json_takes_preset_and_overrides(folder: Path) -> None:
    arguments = ("dialogue", folder / "model", folder / "test.txt", "--json", "--first", 2, "--batch-size", 1)
    shown = run(*arguments, "--preset", "static", "max_new_tokens=5", "--published", "--output", folder / "out")
    assert shown.exit_code == 0, shown.output
    result = json.loads(shown.stdout)
    settings = result["about"]["settings"]
    assert (settings["max_new_tokens"], settings["repetition_penalty"], settings["seed"]) == (5, 1.2, 0)
    assert not settings["rule_files"] and result["about"]["rule files"] == []
    assert settings["published"] and result["about"]["protocol"] == "published"
    assert result["about"]["records"] == 2
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "answers",
        "generations.jsonl",
        "report.html",
        "results.json",
    ]
    again = run(*arguments, "published=true", "max_new_tokens=5")
    assert json.loads(again.stdout) == result


def test_perplexity(folder: Path) -> None:
    shown = run("perplexity", folder / "model", folder / "test.txt")
    assert shown.exit_code == 0, shown.output
    assert "perplexity" in shown.stdout and "95 % interval" in shown.stdout
    result = json.loads(run("perplexity", folder / "model", folder / "test.txt", "--json").stdout)
    assert result["records"] == 3 and result["perplexity"] > 1


def test_bad_records_stop_or_are_listed(folder: Path) -> None:
    arguments = ("perplexity", folder / "model", folder / "bad.jsonl", "--json")
    stopped = run(*arguments)
    assert isinstance(stopped.exception, RecordError) and "bad.jsonl:2:" in str(stopped.exception)
    passed = run(*arguments, "--skip-bad", "--output", folder / "skipped")
    assert json.loads(passed.stdout)["records"] == 1
    rejects = (folder / "skipped" / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["line"] for line in rejects] == [2]


def test_unknown_names_are_answered_with_the_nearest(folder: Path) -> None:
    arguments = ("dialogue", folder / "model", folder / "test.txt")
    for extra, near in ((("--preset", "statik"), "static"), (("top_pp=0.5",), "top_p")):
        shown = run(*arguments, *extra)
        assert isinstance(shown.exception, ConfigError) and f"did you mean {near}" in str(shown.exception)


def test_an_empty_file_says_so(folder: Path) -> None:
    (folder / "empty.txt").write_text("\n", encoding="utf-8")
    shown = run("perplexity", folder / "model", folder / "empty.txt")
    assert isinstance(shown.exception, RecordError) and "no records" in str(shown.exception)


@pytest.mark.parametrize("command", ["dialogue", "perplexity"])
def test_help_has_an_example(command: str) -> None:
    assert f"hanmo eval {command} " in run(command, "--help").stdout
