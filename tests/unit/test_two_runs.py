"""Of two runs into one place the second ends with one message, whatever command it is, and touches nothing."""

import sys
from pathlib import Path

import pytest

from hanmo.cli import main
from hanmo.data.prepare.cleaning.clean import clean
from hanmo.data.prepare.cleaning.recipe import load
from hanmo.errors import HanmoError, InUseError
from hanmo.evaluation.engine.cache import opened_store
from hanmo.locks import holding, holding_inside
from hanmo.training.stages import NAMES, load_stage


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_does_not_begin_where_another_runs(name: str, tmp_path: Path) -> None:
    stage = load_stage(name)
    rewards = {"rewards": ("a:b",)} if name in ("grpo", "ppo") else {}
    settings = stage.config(model="init:none", data=str(tmp_path / "none.txt"), out=str(tmp_path / "run"), **rewards)
    with holding_inside(tmp_path / "run"):
        with pytest.raises(InUseError, match="run: in use by process"):
            stage(settings)
        assert [item.name for item in (tmp_path / "run").iterdir()] == [".lock"]
    with pytest.raises(HanmoError, match=r"none\.txt"):  # and now begins, without its data
        stage(settings)
    assert not list(tmp_path.iterdir()), "what comes to nothing leaves nothing"


def typed(command: str, where: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says on standard error, of which nothing else is to come than exit code 2."""
    monkeypatch.chdir(where)
    monkeypatch.setattr(sys, "argv", ["hanmo", *command.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    return said.err


@pytest.mark.parametrize(
    "command",
    [
        "train sft init:cpm-1 none.txt place --preset none",
        "eval dialogue none none.txt --output place",
        "eval perplexity none none.txt --output place",
        "eval clue none --output place",
        "eval exam none --kind ceval --data none --output place",
        "eval task none none.yaml --output place",
    ],
)
def test_a_command_that_writes_into_a_folder_waits_its_turn(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with holding_inside(tmp_path / "place"):
        said = typed(command, tmp_path, monkeypatch, capsys)
    assert said.startswith("hanmo: place: in use by process") and said.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        "data clean lines.txt --out place",
        "data tokenize lines.txt --out place --tokenizer vocab.txt --family eva",
        "demo --output place",
    ],
)
def test_a_command_that_replaces_a_file_or_folder_waits_its_turn(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines.txt").write_text("你好\t你好吗\n", encoding="utf-8")
    words = ["<s>", "</s>", "<pad>", "<unk>", "<sep>", "<eod>", "<s_0>", "你", "好"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    with holding(tmp_path / "place"):
        said = typed(command, tmp_path, monkeypatch, capsys)
    assert "place: in use by process" in said and "Traceback" not in said
    assert not (tmp_path / "place").exists()


def test_shares_of_one_cleaning_run_beside_each_other(tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("你好\t你好吗\n", encoding="utf-8")
    with holding(tmp_path / "out.txt.0-of-2"):
        assert clean(load("eva"), [lines], tmp_path / "out.txt", share=(1, 2)) is None
        with pytest.raises(InUseError, match="0-of-2"):
            clean(load("eva"), [lines], tmp_path / "out.txt", share=(0, 2))


def test_the_same_questions_are_not_asked_by_two_runs_at_once(tmp_path: Path) -> None:
    """Both would write to one file of answers, and the first lose its own when the second takes them in."""
    with opened_store(tmp_path, "task", ["q"], str) as store:
        store.add(0, "an answer")
        with pytest.raises(InUseError, match="task-"), opened_store(tmp_path, "task", ["q"], str):
            pass
        with opened_store(tmp_path, "task", ["other"], str):
            pass
    with opened_store(tmp_path, "task", ["q"], str) as store:
        assert store.values == {0: "an answer"}
