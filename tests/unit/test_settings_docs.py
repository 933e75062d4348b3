"""docs/settings.md and the help of the stages list every setting, as the dataclasses have it."""

from __future__ import annotations

from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_core import to_jsonable_python
from typer.testing import CliRunner

from hanmo.cli import app
from hanmo.cli.settings_help import Setting, attributes, read_settings, stage_settings
from tools import settings_docs

STAGES = settings_docs.stages()


def config_class(stage: str) -> Any:
    module = import_module(f"hanmo.training.stages.{stage}")
    (kind,) = (
        value
        for name, value in vars(module).items()
        if name.endswith("Config") and getattr(value, "__module__", "") == module.__name__
    )
    return kind


@pytest.mark.parametrize("stage", STAGES)
def test_settings_read_from_the_source_are_those_of_the_class(stage: str) -> None:
    expected = {
        field.name: field.default_factory() if field.default_factory is not MISSING else field.default
        for field in fields(config_class(stage))
    }
    read = {
        setting.name: MISSING if setting.default is None else yaml.safe_load(setting.default)
        for setting in stage_settings(stage)
    }
    assert read == {name: value if value is MISSING else to_jsonable_python(value) for name, value in expected.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_the_help_of_a_stage_lists_every_setting_with_its_default(stage: str) -> None:
    shown = CliRunner().invoke(app, ["train", stage, "--help"]).output
    for setting in stage_settings(stage):
        assert f"  {setting.name}" + ("" if setting.default is None else f"={setting.default}") in shown


def test_an_attribute_has_its_text_and_one_text_may_describe_two() -> None:
    found = attributes(
        "Settings.\n\nAttributes:\n    a, b: of the first\n        and the second.\n    c: last. [β]\n\nMore.\n"
    )
    assert found == {"a": "of the first and the second.", "b": "of the first and the second.", "c": "last. [β]"}


def test_a_comment_behind_a_field_describes_it_where_no_attribute_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '''class Options:
    """Options.

    Attributes:
        limit: the longest row. [tokens]
    """

    limit: int = 512  # not this
    说明: float | None = None  # half "以" of it [T]
    bare: str = "#"
'''
    (tmp_path / "example.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr("hanmo.__file__", str(tmp_path / "__init__.py"))
    found = {setting.name: (setting.meaning, setting.unit) for setting in read_settings("hanmo.example.Options")}
    assert found == {"limit": ("the longest row.", "tokens"), "说明": ('half "以" of it', "T"), "bare": ("", "")}


def test_the_page_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(settings_docs, "PAGE", tmp_path / "settings.md")
    found = {"train x": ("`x`", [Setting("rate", "the | step. ", "nats", "a number", "0.1", None)])}
    monkeypatch.setattr(settings_docs, "sections", lambda: found)
    assert settings_docs.main(["--check"]) == 1 and "out of date" in capsys.readouterr().out
    assert settings_docs.main([]) == 0 and settings_docs.main(["--check"]) == 0
    assert r"| `rate` | the \| step. " in (tmp_path / "settings.md").read_text(encoding="utf-8")

    found["train x"][1].append(Setting("bare", "", "", "a number", "1", None))
    assert settings_docs.main([]) == 1
    assert "no description in an Attributes: section: train x: bare" in capsys.readouterr().out
