"""The ten CLUE tasks: data, read from tasks.yaml."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hanmo.errors import ConfigError, unknown
from hanmo.evaluation.suites.task import Task, Template


@dataclass(frozen=True)
class Published:
    """The original's way with a task.

    Attributes:
        words: the candidate for each label, where it is another word than ours.
        drawn: so many wrong labels are drawn for each record; 0: all labels are candidates.
        only: this option alone makes a prompt, and neighbouring records pass for each other's candidates.
        filled_to: lists of candidates are filled up to this length with names of no prompt.
    """

    template: Template
    words: dict[str, str] = field(default_factory=dict)
    drawn: int = 0
    only: int | None = None
    filled_to: int = 0


@dataclass(frozen=True, kw_only=True)
class ClueTask(Task):
    """One task; tasks.yaml says what the attributes mean."""

    layout: str
    published: Published
    skip: str = ""


@functools.cache
def all_tasks() -> dict[str, ClueTask]:
    """The tasks by name, in the order of the published table."""
    content = yaml.safe_load(Path(__file__).with_name("tasks.yaml").read_text(encoding="utf-8"))
    return {name: _task(name, value, place) for place, (name, value) in enumerate(content.items())}


def chosen_tasks(names: Iterable[str]) -> list[ClueTask]:
    """Tasks by name; all of them if there are no names.

    Raises:
        ConfigError: no task has such a name.
    """
    tasks = all_tasks()
    for name in names:
        if name.lower() not in tasks:
            raise ConfigError(unknown("CLUE task", name, tasks))
    wanted = {name.lower() for name in names}
    return [task for name, task in tasks.items() if not wanted or name in wanted]


def _task(name: str, value: dict[str, Any], place: int) -> ClueTask:
    published = value["published"]
    return ClueTask(
        **{key: entry for key, entry in value.items() if key not in ("template", "published")},
        name=name,
        place=place,
        template=Template(value["template"]),
        published=Published(**{**published, "template": Template(published["template"])}),
    )
