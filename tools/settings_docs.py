"""Write docs/settings.md from the documentation of the settings' dataclasses; with --check, only compare.

python -m tools.settings_docs [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from hanmo.cli.settings_help import STAGES, Setting, read_settings, stage_settings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
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


def stages() -> list[str]:
    """The names of the stages of training."""
    folder = PAGE.parents[1].joinpath(*STAGES.split("."))
    return sorted(file.stem for file in folder.glob("[!_]*.py"))


def sections() -> dict[str, tuple[str, list[Setting]]]:
    """Title -> (how its settings are given, the settings); what all stages share comes first."""
    every = {stage: stage_settings(stage) for stage in stages()}
    first, *others = every.values()
    shared = [setting for setting in first if all(setting in settings for settings in others)]
    found = {"All stages": ("`hanmo train STAGE MODEL DATA [OUT] [KEY=VALUE]...`", shared)}
    for stage, settings in every.items():
        own = [setting for setting in settings if setting not in shared]
        found[f"train {stage}"] = (f"`hanmo train {stage}`, besides those of all stages", own)
    return found | {title: (given, read_settings(path)) for title, (given, path) in TABLES.items()}


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
    """Settings without a description, and tables without settings."""
    missing = [f"{title}: {one.name}" for title, (_, settings) in found.items() for one in settings if not one.meaning]
    return missing + [f"{title}: no such class" for title, (_, settings) in found.items() if not settings]


def main(arguments: list[str]) -> int:
    """Exit code 1 where a setting has no description, or with --check where the page is out of date."""
    found = sections()
    text, missing = page(found), undocumented(found)
    for name in missing:
        print(f"no description in an Attributes: section: {name}")
    if "--check" not in arguments:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print(f"docs/{PAGE.name} is out of date: run make settings")
        return 1
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
