"""The ten CLUE tasks: data, read from tasks.yaml."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hanmo.evaluation.suites.task import Task, Template, read_tasks


@dataclass(frozen=True)
class PublishedForm:
    """The original's form of a task.

    Attributes:
        words: the candidate for each label, where it is another word than ours.
        drawn: number of wrong labels drawn for each record; 0: all labels are candidates.
        only: index of the only option that makes a prompt; neighbouring records are each other's candidates.
        filled_to: lists of candidates are filled up to this length with names of no prompt.
    """

    template: Template
    words: dict[str, str] = field(default_factory=dict)
    drawn: int = 0
    only: int | None = None
    filled_to: int = 0


@dataclass(frozen=True, kw_only=True)
class ClueTask(Task):
    """One task; tasks.yaml explains the attributes."""

    layout: str
    published: PublishedForm
    skip: str = ""


@functools.cache
def all_tasks() -> dict[str, ClueTask]:
    """The tasks by name, in the order of the published table."""
    return read_tasks(Path(__file__).with_name("tasks.yaml"), _task)


def _task(published: dict[str, Any], **values: Any) -> ClueTask:
    form = PublishedForm(**{**published, "template": Template(published["template"])})
    return ClueTask(published=form, **values)
