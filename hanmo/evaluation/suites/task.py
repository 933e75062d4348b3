"""What a task is, whoever wrote it: a template around its candidates, and the examples that its records make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

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


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task.

    Attributes:
        title: what people call it.
        template: the text of a question; what stands at {option} is a candidate.
        shorten: fields that may be cut where the whole does not fit, and which side of them goes.
        reading: which of sum, mean and prior is the result, see asking.py; f1: the model says the answer.
        labels: label in the files: the word for it, in the order of the candidates; without them the records have their own.
        instruction: stands once in front of examples and question.
        groups: what results are averaged over: the domains of a subject.
        place: in the order in which results are shown.
    """

    name: str
    title: str
    template: Template
    shorten: dict[str, str] = field(default_factory=dict)
    reading: Reading
    labels: dict[str, str] = field(default_factory=dict)
    instruction: str = ""
    groups: tuple[str, ...] = ()
    place: int = 0

    @property
    def generates(self) -> bool:
        """The model says the answer; there is nothing to choose from."""
        return self.reading == "f1"

    def hash(self) -> str:
        """What is asked: 16 hex digits over the template and the labels."""
        asked = [self.name, self.instruction, self.template.text, self.labels, self.shorten]
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


def data_hash(examples: Iterable[Example]) -> str:
    """What was evaluated, whatever file it came from: 16 hex digits of sha256."""
    digest = hashlib.sha256()
    for example in examples:
        content = [example.fields, example.options, example.gold, example.label, example.answers]
        digest.update(json.dumps(content, ensure_ascii=False, sort_keys=True).encode())
    return digest.hexdigest()[:16]
