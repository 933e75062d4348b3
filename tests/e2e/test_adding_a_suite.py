"""The worked example of docs/adding-a-suite.md is a suite like any other."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hanmo.cli import app
from hanmo.errors import ConfigError, RecordError
from hanmo.evaluation.engine import candidates
from hanmo.evaluation.suites.suite import Options
from tests.unit.clue_files import write_lines
from tests.unit.tiny import tiny_eva

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-suite.md"
RIDDLES = [
    {"riddle": "你好", "choices": ["天气", "火锅", "再见"], "answer": "火锅"},
    {"riddle": "明天", "choices": ["很好", "今天", "再见"], "answer": "再见"},
    {"riddle": "今天天气", "choices": ["很好", "火锅"], "answer": "很好"},
]
REPORTS = [
    {"report": text, "label": label} for text, label in (("很好", "good"), ("不好", "bad"), ("今天很好", "good"))
]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The page's modules, imported, and their data in ``tmp_path / "data"``."""
    files = re.findall(r"```\w+ file=(\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert {name for name, _ in files} == {"tasks.yaml", "riddles.py", "evaluating.py"}
    package = tmp_path / "page_of_suites"
    package.mkdir()
    for name, text in [("__init__.py", ""), *files]:
        (package / name).write_text(text, encoding="utf-8")
    for split in ("dev", "train"):
        write_lines(tmp_path / "data" / f"riddles-{split}.jsonl", RIDDLES)
        write_lines(tmp_path / "data" / f"weather-{split}.jsonl", REPORTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return importlib.import_module("page_of_suites.riddles"), importlib.import_module("page_of_suites.evaluating")


def test_worked_example(page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right answers by hand from the scores of each candidate, files that compare reads, and answers that are kept."""
    riddles, evaluating = page
    suite, opened = riddles.riddle_suite(tmp_path / "data"), tiny_eva()
    found = evaluating.measure(opened, suite, tmp_path / "out")
    assert list(found) == ["riddles", "weather"]
    lines = (tmp_path / "out/items.jsonl").read_text(encoding="utf-8").splitlines()
    for task, reading in (("riddles", "mean"), ("weather", "prior")):
        items = [item for item in map(json.loads, lines) if item["task"] == task]
        scores = [item["scores"][reading] for item in items]
        right = [values.index(max(values)) == item["gold"] for values, item in zip(scores, items, strict=True)]
        assert len(right) == 3 and found[task] == sum(right) / 3
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"answers", "items.jsonl", "report.html", "results.json", "results.md"}
    assert "mean over questions" in (tmp_path / "out/results.md").read_text(encoding="utf-8")
    monkeypatch.setattr(candidates, "_score", None)  # every answer is known
    assert evaluating.measure(opened, suite, tmp_path / "out") == found
    shown = CliRunner().invoke(app, ["eval", "compare", str(tmp_path / "out"), str(tmp_path / "out")])
    assert shown.exit_code == 0 and "riddles" in shown.output and "knowledge" in shown.output


def test_its_mistakes_are_answered_as_everywhere(page: Any, tmp_path: Path) -> None:
    riddles, _ = page
    suite = riddles.riddle_suite(tmp_path / "data")
    bad = {"riddle": "你好", "choices": ["天气"], "answer": "火锅"}
    path = write_lines(tmp_path / "data" / "riddles-dev.jsonl", [RIDDLES[0], bad])
    with pytest.raises(RecordError, match=f"{path}:2: .*expected the fields of Riddles"):
        suite.read(suite.tasks[0], "dev", None)
    with pytest.raises(ConfigError, match="--published: the original has no Riddles and weather"):
        suite.protocol(Options(published=True))
    with pytest.raises(ConfigError, match="--cot has no effect on Riddles and weather"):
        suite.protocol(Options(cot=True))
