"""The worked example of docs/adding-a-stage.md is a stage like any other."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hanmo.checkpoints import open_model, save_model
from hanmo.cli.train import stage_command
from hanmo.training import stages
from tests.unit.tiny import tiny

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-stage.md"


@pytest.fixture
def forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command of the page's stage, for one test."""
    ((name, text),) = re.findall(r"```python file=(\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(stages, "__path__", [*stages.__path__, str(tmp_path / "stages")])
    return stage_command("forget")


def test_worked_example(forget: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has a help, a dry run that writes nothing, and a run that ends with a model, a report and the next command."""
    save_model(tiny("pangu", tmp_path / "vocabulary"), tmp_path / "start")
    data, run = tmp_path / "data.jsonl", tmp_path / "run"
    data.write_text('{"prompt": "你好吗", "response": "我很好"}\n' * 4, encoding="utf-8")
    given = [str(run), f"valid={data}", "limit=32", "floor=1e-6", "trainer.max_steps=4", "trainer.eval_strategy=steps",
             "trainer.eval_steps=2", "trainer.load_best_model_at_end=false", "trainer.learning_rate=0.01",
             "trainer.use_cpu=true"]  # fmt: skip
    assert forget.__doc__.startswith("Make given responses less likely")

    forget(str(tmp_path / "start"), str(data), given, dry_run=True, as_json=True)
    needs = json.loads(capsys.readouterr().out)
    assert (needs["rows"], needs["valid_rows"], needs["steps"]) == (4, 4, 4) and not run.exists()

    forget(str(tmp_path / "start"), str(data), given)
    printed = capsys.readouterr()
    before, after = re.findall(r"learned  likelihood loss of the responses (\S+) -> (\S+)", printed.out)[0]
    assert float(after) > float(before) + 0.1
    assert f"next     hanmo chat {run / 'model'}" in printed.out
    assert re.search(r"step 4/4: .*loss ", printed.err)
    assert "Unlikelihood training" in (run / "report.html").read_text(encoding="utf-8")
    assert open_model(run / "model", device="cpu").family.name == "pangu"
