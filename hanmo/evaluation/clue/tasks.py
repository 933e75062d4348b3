"""What a CLUE task is: data, read from tasks.yaml, and the example that a record of it makes."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from hanmo.errors import ConfigError, unknown

Reading = Literal["sum", "mean", "prior", "f1"]
READINGS: tuple[Reading, ...] = ("sum", "mean", "prior")
OPTION = "{option}"


@dataclass(frozen=True)
class Template:
    """Text around a candidate, as in tasks.yaml.

    >>> Template("{a}?{option}!").around({"a": "x"})
    ('x?', '!')
    """

    text: str

    def around(self, fields: Mapping[str, str]) -> tuple[str, str]:
        """What stands before and after the candidate."""
        before, _, after = self.text.partition(OPTION)
        return before.format_map(fields), after.format_map(fields)

    def fill(self, fields: Mapping[str, str], option: str) -> str:
        before, after = self.around(fields)
        return before + option + after

    def without_text(self, fields: Mapping[str, str]) -> tuple[str, str]:
        """As ``around``, with the record's text before the candidate left out."""
        before, _, _ = self.text.partition(OPTION)
        return before.format_map(dict.fromkeys(fields, "")), self.around(fields)[1]


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


@dataclass(frozen=True)
class Task:
    """One task; tasks.yaml says what the attributes mean."""

    name: str
    title: str
    layout: str
    template: Template
    shorten: dict[str, str]
    reading: Reading
    published: Published
    labels: dict[str, str] = field(default_factory=dict)
    skip: str = ""

    @property
    def generates(self) -> bool:
        """The model says the answer; there is nothing to choose from."""
        return self.reading == "f1"

    def hash(self) -> str:
        """What the corrected protocol asks: 16 hex digits over the template and the labels."""
        asked = [self.name, self.template.text, self.labels, self.shorten]
        return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Example:
    """One question of a task.

    Attributes:
        fields: texts that templates may name.
        options: the candidates of our template, in order; none where the answer is generated.
        gold: which of them is right.
        where: "file:line", or "file:record" where a file is one JSON document.
        label: the right one as it stands in the file.
        answers: all accepted answers of a generated one.
    """

    fields: dict[str, str]
    options: tuple[str, ...]
    gold: int
    where: str
    label: str
    answers: tuple[str, ...] = ()


@functools.cache
def all_tasks() -> dict[str, Task]:
    """The tasks by name, in the order of the published table."""
    content = yaml.safe_load(Path(__file__).with_name("tasks.yaml").read_text(encoding="utf-8"))
    return {name: _task(name, value) for name, value in content.items()}


def chosen_tasks(names: Iterable[str]) -> list[Task]:
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


def data_hash(examples: Iterable[Example]) -> str:
    """What was evaluated, whatever file it came from: 16 hex digits of sha256."""
    digest = hashlib.sha256()
    for example in examples:
        content = [example.fields, example.options, example.gold, example.label, example.answers]
        digest.update(json.dumps(content, ensure_ascii=False, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _task(name: str, value: dict[str, Any]) -> Task:
    published = value["published"]
    return Task(
        **{key: entry for key, entry in value.items() if key not in ("template", "published")},
        name=name,
        template=Template(value["template"]),
        published=Published(**{**published, "template": Template(published["template"])}),
    )
