"""A task: a template around its candidates, and the examples that its records make."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from hanmo.errors import ConfigError, unknown

Reading = Literal["sum", "mean", "prior", "f1"]
OPTION = "{option}"
_GAP = re.compile(r"(?<!\{)((?:\{\{)*)\{option\}")  # not {{option}}, which is text
UNKNOWN = -1  # the right candidate of an example whose answer is not published
AnyTask = TypeVar("AnyTask", bound="Task")


@dataclass(frozen=True)
class Template:
    """Text around a candidate."""

    text: str

    def around(self, fields: Mapping[str, str]) -> tuple[str, str]:
        """The text before and after the candidate.

        >>> Template("{a}?{option}!").around({"a": "x"})
        ('x?', '!')
        """
        found = _GAP.search(self.text)
        before, after = (found.end(1), found.end()) if found else (len(self.text), len(self.text))
        return self.text[:before].format_map(fields), self.text[after:].format_map(fields)

    def fill(self, fields: Mapping[str, str], option: str) -> str:
        before, after = self.around(fields)
        return before + option + after

    def without_text(self, fields: Mapping[str, str]) -> tuple[str, str]:
        """As ``around``, with the record's text before the candidate left out."""
        return self.around(dict.fromkeys(fields, ""))[0], self.around(fields)[1]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task.

    Attributes:
        shorten: fields that may be cut where the whole does not fit, and from which side: "start" or "end".
        labels: label in the files: its word, in the order of the candidates; empty if every record has its own candidates.
    """

    name: str
    title: str  # name in results
    template: Template  # text of a question; a candidate replaces {option}
    shorten: dict[str, str] = field(default_factory=dict)
    reading: Reading  # the reading that is the result, see prompting.py; "f1": the model generates the answer
    labels: dict[str, str] = field(default_factory=dict)
    instruction: str = ""  # stands once before few-shot examples and question
    groups: tuple[str, ...] = ()  # groups whose averages the task counts in, such as the domain of a subject
    place: int = 0  # among the tasks

    @property
    def generates(self) -> bool:
        """Whether the model generates the answer, without candidates."""
        return self.reading == "f1"

    def hash(self) -> str:
        """16 hex digits over everything that makes a question out of a record."""
        content = [self.name, self.instruction, self.template.text, self.labels, self.shorten]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Example:
    """One question of a task."""

    fields: dict[str, str]  # texts that templates may name
    options: tuple[str, ...]  # candidates in order; none where the answer is generated
    gold: int  # index of the right candidate, or ``UNKNOWN``
    where: str  # "file:line", or "file:record" where a file is one JSON document
    label: str  # the right answer as it stands in the file
    answers: tuple[str, ...] = ()  # all accepted ones, where the answer is generated

    @property
    def right(self) -> str:
        """The right candidate, or an accepted answer."""
        return self.options[self.gold] if self.options else self.answers[0]

    def wrong(self) -> list[str]:
        return [option for option in self.options if option != self.right]


def data_hash(examples: Iterable[Example]) -> str:
    """16 hex digits of sha256 over the examples, whatever file they came from."""
    digest = hashlib.sha256()
    for example in examples:
        content = [example.fields, example.options, example.gold, example.label, example.answers]
        digest.update(json.dumps(content, ensure_ascii=False, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def read_tasks(path: str | Path, make: Callable[..., AnyTask] = Task) -> dict[str, AnyTask]:  # type: ignore[assignment]
    """Tasks by name, in the order of a YAML file that maps names to the arguments of ``make``.

    Raises:
        ConfigError: a task lacks an attribute or has an unknown one.
    """
    content: dict[str, dict[str, Any]] = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    tasks = {}
    for place, (name, value) in enumerate(content.items()):
        try:
            tasks[name] = make(name=name, place=place, **{**value, "template": Template(value["template"])})
        except (TypeError, KeyError) as error:
            raise ConfigError(f"{path}: {name}: {error}") from None
    return tasks


def choose_tasks(what: str, tasks: Mapping[str, AnyTask], names: Iterable[str]) -> list[AnyTask]:
    """Tasks by name, in the order of ``tasks``; all of them if there are no names.

    Raises:
        ConfigError: no task has such a name; ``what`` describes a task in the message.
    """
    wanted = {name.lower() for name in names}
    for name in wanted - tasks.keys():
        raise ConfigError(unknown(what, name, tasks))
    return [task for name, task in tasks.items() if not wanted or name in wanted]
