"""Write what documents settings, from the docstrings of their dataclasses; with --check, only compare.

docs/settings.md          tables of all settings
hanmo/cli/settings.yaml   the settings of each stage, as ``hanmo train STAGE --help`` prints them without importing torch

python -m tools.settings_docs [--check]
"""

import ast
import inspect
import json
import re
import sys
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from pkgutil import resolve_name
from textwrap import dedent
from typing import Any, get_type_hints

import yaml
from pydantic_core import to_jsonable_python

from hanmo.config import describe_type
from hanmo.training.stages import NAMES, load_stage

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "settings.md"
HELP = ROOT / "hanmo" / "cli" / "settings.yaml"
TABLES = {  # besides the stages: title, how the settings are given, class
    "LoRA": ("`lora.NAME=VALUE` in the stages that have `lora`", "hanmo.training.trainable.LoraSettings"),
    "Decoding": (
        "`generation.NAME=VALUE` in `train grpo` and `train ppo`; `NAME=VALUE` in `chat` and `generate`",
        "hanmo.generation.settings.Settings",
    ),
    "Suites": ("options of `hanmo eval clue`, `exam` and `task`", "hanmo.evaluation.suites.suite.Options"),
    "Tasks of your own": ("keys of the YAML file of `hanmo eval task`", "hanmo.evaluation.suites.custom.TaskFile"),
}
HEAD = """\
# Settings

<!-- Written by `make settings` from the docstrings of the classes; do not edit. -->

Every setting of every stage of training is given as `KEY=VALUE` after the command's arguments, or in a YAML file
(`--config`); `hanmo train STAGE --help` prints the same list. Values are written as in YAML. The command line goes over the
file, the file over the family's preset, and the preset over the defaults below. `trainer.NAME=VALUE` sets every setting of
[transformers.TrainingArguments](https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments).
"""
HELP_HEAD = "# Written by `make settings` from the docstrings of the classes; do not edit.\n"


@dataclass(frozen=True)
class Setting:
    """One field of a dataclass of settings.

    Attributes:
        unit: the unit or the paper's symbol; empty, like ``meaning``, where none is given.
        type: the values that it accepts.
        default: as YAML; None if it must be given.
        nested: the class whose settings the mapping holds, as a dotted path; None if it is no such mapping.
    """

    name: str
    meaning: str
    unit: str
    type: str
    default: str | None
    nested: str | None


def read_settings(kind: type[Any]) -> list[Setting]:
    """The settings of a dataclass, those of its bases first.

    A setting is described in the ``Attributes:`` section of its class or of a base, or else by a comment at the end of
    its line. A unit or the paper's symbol may end the description in brackets, e.g. "limit: the longest row. [tokens]".
    """
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        meanings |= comments(base) | attributes(inspect.cleandoc(base.__doc__ or ""))
    hints, found = get_type_hints(kind), []
    for field in fields(kind):
        given = field.default if field.default_factory is MISSING else field.default_factory()
        default = None if given is MISSING else to_jsonable_python(given)
        text = default if default and isinstance(default, str) else json.dumps(default, ensure_ascii=False)
        meaning = meanings.get(field.name, "")
        unit = re.search(r" \[([^\]]+)\]$", meaning)
        found.append(
            Setting(
                name=field.name,
                meaning=meaning[: unit.start()] if unit else meaning,
                unit=unit[1] if unit else "",
                type=describe_type(hints[field.name]),
                default=None if given is MISSING else text,
                nested=field.metadata.get("settings_of"),
            )
        )
    return found


def attributes(docstring: str) -> dict[str, str]:
    """The descriptions in the section ``Attributes:`` of a docstring, by name; "a, b: text" describes both."""
    section = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n)+)", docstring, re.M)
    entries = re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.M)
    return {name.strip(): " ".join(text.split()) for names, text in entries for name in names.split(",")}


def comments(kind: type[Any]) -> dict[str, str]:
    """The comments behind the fields of a class, by name."""
    source = dedent(inspect.getsource(kind))
    [node] = ast.parse(source).body
    assert isinstance(node, ast.ClassDef)
    found, lines = {}, source.splitlines()
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and item.end_lineno is not None:
            behind = lines[item.end_lineno - 1].encode()[item.end_col_offset :].decode().strip()
            if behind:
                found[ast.unparse(item.target)] = behind.removeprefix("#").strip()
    return found


def stages() -> dict[str, list[Setting]]:
    """The settings of each stage of training."""
    return {name: read_settings(load_stage(name).config) for name in sorted(NAMES)}


# hanmo train STAGE --help


def help_texts(every: dict[str, list[Setting]]) -> str:
    """The text of settings.yaml: stage -> key and default -> description."""
    shown = {stage: {label(one): description(one) for one in settings} for stage, settings in every.items()}
    return HELP_HEAD + yaml.safe_dump(shown, allow_unicode=True, sort_keys=False, width=120)


def label(setting: Setting) -> str:
    """The key and its default."""
    return setting.name if setting.default is None else f"{setting.name}={setting.default}"


def description(setting: Setting) -> str:
    """What the help prints about a setting, besides its name and default."""
    kind, nested = setting.type, setting.nested
    if nested is not None:
        inner = [one.name for one in read_settings(resolve_name(nested))] if nested.startswith("hanmo.") else []
        kind = f"{setting.name}.NAME=VALUE with the names of {nested}" + (f": {', '.join(inner)}" if inner else "")
    return f"{setting.meaning.replace('``', '')} ({'; '.join(filter(None, (kind, setting.unit)))})"


# docs/settings.md


def sections(every: dict[str, list[Setting]]) -> dict[str, tuple[str, list[Setting]]]:
    """Title -> (how its settings are given, the settings); what all stages share comes first."""
    first, *others = every.values()
    shared = [setting for setting in first if all(setting in settings for settings in others)]
    found = {"All stages": ("`hanmo train STAGE MODEL DATA [OUT] [KEY=VALUE]...`", shared)}
    for stage, settings in every.items():
        own = [setting for setting in settings if setting not in shared]
        found[f"train {stage}"] = (f"`hanmo train {stage}`, besides those of all stages", own)
    return found | {title: (given, read_settings(resolve_name(path))) for title, (given, path) in TABLES.items()}


def page(found: dict[str, tuple[str, list[Setting]]]) -> str:
    """The text of docs/settings.md."""
    parts = [HEAD]
    for title, (given, settings) in found.items():
        rows = ["| setting | meaning | value | default | unit, symbol |", "| --- | --- | --- | --- | --- |"]
        rows += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in _cells(one))} |" for one in settings]
        parts.append(f"## {title}\n\n{given[0].upper()}{given[1:]}:\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _cells(setting: Setting) -> list[str]:
    default = "required" if setting.default is None else f"`{setting.default}`"
    kind = f"settings of `{setting.nested}`" if setting.nested else setting.type
    return [f"`{setting.name}`", setting.meaning.replace("``", "`"), kind, default, setting.unit]


def undocumented(found: dict[str, tuple[str, list[Setting]]]) -> list[str]:
    """Settings without a description."""
    return [f"{title}: {one.name}" for title, (_, settings) in found.items() for one in settings if not one.meaning]


def main(arguments: list[str]) -> int:
    """Exit code 1 where a setting has no description, or with --check where a file is out of date."""
    every = stages()
    found = sections(every)
    missing = undocumented(found)
    for name in missing:
        print(f"no description in an Attributes: section: {name}")
    for path, text in ((PAGE, page(found)), (HELP, help_texts(every))):
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"{path.name} is out of date: run make settings")
            return 1
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
