"""docs/settings.md and the help of the stages list every setting, as the dataclasses have it."""

from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import pytest
import yaml
from pydantic_core import to_jsonable_python
from typer.testing import CliRunner

from hanmo.cli import app
from hanmo.training.stages import NAMES, load_stage
from tools import settings_docs
from tools.settings_docs import Setting, attributes, read_settings


@pytest.mark.parametrize("stage", NAMES)
def test_defaults_are_those_of_the_class_as_yaml(stage: str) -> None:
    kind = load_stage(stage).config
    expected = {
        field.name: field.default_factory() if field.default_factory is not MISSING else field.default
        for field in fields(kind)
    }
    read = {
        setting.name: MISSING if setting.default is None else yaml.safe_load(setting.default)
        for setting in read_settings(kind)
    }
    assert read == {name: value if value is MISSING else to_jsonable_python(value) for name, value in expected.items()}


@pytest.mark.parametrize("stage", NAMES)
def test_the_help_of_a_stage_lists_every_setting_with_its_default(stage: str) -> None:
    shown = CliRunner().invoke(app, ["train", stage, "--help"]).output
    for setting in read_settings(load_stage(stage).config):
        assert f"  {setting.name}" + ("" if setting.default is None else f"={setting.default}") in shown


def test_an_attribute_has_its_text_and_one_text_may_describe_two() -> None:
    found = attributes(
        "Settings.\n\nAttributes:\n    a, b: of the first\n        and the second.\n    c: last. [β]\n\nMore.\n"
    )
    assert found == {"a": "of the first and the second.", "b": "of the first and the second.", "c": "last. [β]"}


@dataclass
class Options:
    """Options.

    Attributes:
        limit: the longest row. [tokens]
    """

    limit: int = 512  # not this
    说明: float | None = None  # half "以" of it [T]
    bare: str = "#"


def test_a_comment_behind_a_field_describes_it_where_no_attribute_does() -> None:
    found = {setting.name: (setting.meaning, setting.unit) for setting in read_settings(Options)}
    assert found == {"limit": ("the longest row.", "tokens"), "说明": ('half "以" of it', "T"), "bare": ("", "")}


def test_every_number_has_a_unit_or_a_symbol() -> None:
    found = settings_docs.sections(settings_docs.stages())
    numbers = [one for _, settings in found.values() for one in settings if "number" in one.type.split(" or ")[0]]
    assert len(numbers) > 40 and not [one.name for one in numbers if not one.unit and one.name != "seed"]


def test_both_files_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(settings_docs, "PAGE", tmp_path / "settings.md")
    monkeypatch.setattr(settings_docs, "HELP", tmp_path / "settings.yaml")
    settings = [Setting("rate", "the | step. ", "nats", "a number", "0.1", None)]
    monkeypatch.setattr(settings_docs, "stages", lambda: {"x": settings, "y": []})
    monkeypatch.setattr(settings_docs, "TABLES", {})
    assert settings_docs.main(["--check"]) == 1 and "settings.md is out of date" in capsys.readouterr().out
    assert settings_docs.main([]) == 0 and settings_docs.main(["--check"]) == 0
    assert r"| `rate` | the \| step. " in (tmp_path / "settings.md").read_text(encoding="utf-8")
    help_file = tmp_path / "settings.yaml"
    written = help_file.read_text(encoding="utf-8")
    assert yaml.safe_load(written)["x"] == {"rate=0.1": "the | step.  (a number; nats)"}
    help_file.write_text(written.replace("step", "steps"), encoding="utf-8")
    assert settings_docs.main(["--check"]) == 1 and "settings.yaml is out of date" in capsys.readouterr().out

    settings.append(Setting("bare", "", "", "a number", "1", None))
    assert settings_docs.main([]) == 1
    assert "no description in an Attributes: section: train x: bare" in capsys.readouterr().out
