"""Examinations in many subjects: data, read from exams.yaml. Each subject is a task like any other."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hanmo.errors import ConfigError, unknown
from hanmo.evaluation.suites.task import Task, Template

LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Exam:
    """One examination; exams.yaml explains the attributes."""

    title: str
    files: str
    splits: tuple[str, ...]
    published: str
    subjects: dict[str, Task]


@functools.cache
def all_exams() -> dict[str, Exam]:
    """The examinations by name, their subjects in the order in which they are evaluated."""
    content = yaml.safe_load(Path(__file__).with_name("exams.yaml").read_text(encoding="utf-8"))
    return {name: _exam(value) for name, value in content.items()}


def find_exam(name: str) -> Exam:
    """An examination by name.

    Raises:
        ConfigError: there is none.
    """
    if name.lower() not in all_exams():
        raise ConfigError(unknown("examination", name, all_exams()))
    return all_exams()[name.lower()]


def _exam(value: dict[str, Any]) -> Exam:
    subjects = {}
    for place, (name, (title, *groups)) in enumerate(value["subjects"].items()):
        subjects[name] = Task(
            name=name,
            title=title,
            template=Template(value["template"]),
            shorten={"question": "start"},
            reading="sum",
            labels=dict(zip(LETTERS, LETTERS, strict=True)),
            instruction=value["instruction"].format(subject=title),
            groups=tuple(groups),
            place=place,
        )
    return Exam(value["title"], value["files"], tuple(value["splits"]), value.get("published", ""), subjects)
