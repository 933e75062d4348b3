"""Tasks, the examples that their records make, and suites: tasks that are evaluated together."""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from hanmo.errors import ConfigError, unknown
from hanmo.evaluation.results.result import TaskResult

Reading = Literal["sum", "mean", "prior", "f1"]
OPTION = "{option}"
_GAP = re.compile(r"(?<!\{)((?:\{\{)*)\{option\}")  # not {{option}}, which is text
UNKNOWN = -1  # the right candidate of an example whose answer is not published
LIMIT = 1024
ALWAYS = ("shots", "published", "first", "limit")  # options that every protocol has
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


@dataclass(frozen=True, kw_only=True)
class Task:
    """A template, and how its candidates are read."""

    name: str
    title: str  # name in results
    template: Template  # text of a question; a candidate replaces {option}
    # Fields that may be cut where the whole does not fit, and from which side: "start" or "end".
    shorten: dict[str, str] = field(default_factory=dict)
    reading: Reading  # the reading that is the result, see prompting.py; "f1": the model generates the answer
    # Label in the files: its word, in the order of the candidates; empty if every record has its own candidates.
    labels: dict[str, str] = field(default_factory=dict)
    instruction: str = ""  # text that stands once before examples and question
    groups: tuple[str, ...] = ()  # groups whose averages the task counts in, such as the domain of a subject
    place: int = 0  # among the tasks

    @property
    def generates(self) -> bool:
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
    """Tasks by name, from a YAML file that maps names to arguments of ``make``; ConfigError for unknown arguments."""
    content: dict[str, dict[str, Any]] = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    tasks = {}
    for place, (name, value) in enumerate(content.items()):
        try:
            tasks[name] = make(name=name, place=place, **{**value, "template": Template(value["template"])})
        except (TypeError, KeyError) as error:
            raise ConfigError(f"{path}: {name}: {error}") from None
    return tasks


def choose_tasks(what: str, tasks: Mapping[str, AnyTask], names: Iterable[str]) -> list[AnyTask]:
    """The named tasks, or all if there are no names; ConfigError for an unknown name of a ``what``."""
    wanted = {name.lower() for name in names}
    for name in wanted - tasks.keys():
        raise ConfigError(unknown(what, name, tasks))
    return [task for name, task in tasks.items() if not wanted or name in wanted]


@dataclass(frozen=True)
class Options:
    """How a suite is evaluated."""

    shots: int = 0  # few-shot examples in the prompt [examples]
    published: bool = False  # use the published protocol, flaws included
    first: int | None = None  # evaluate at most this many examples of every task [examples]
    limit: int | None = None  # the longest question; by default the protocol's, within the model's positions [tokens]
    budget: int | None = None  # tokens in memory at the same time; the default suits the device [tokens]
    split: str | None = None  # the split to evaluate; by default the suite's first one
    seed: int | None = None  # seed of the draw of few-shot examples and candidates; 0 by default
    choices: int | None = None  # offer at most this many candidates [candidates]
    chat: bool = False  # use the model's chat template
    cot: bool = False  # the few-shot examples explain their answers
    candidates: Path | None = None  # file of the original's wrong candidates, see docs/clue.md


@dataclass(frozen=True)
class Protocol:
    """A way to evaluate the tasks of a suite."""

    # Evaluates a task, given a ``runner.TaskRun``, the examples, and the pool of few-shot examples; None: as corrected.
    evaluate: Callable[[Any, list[Example], list[Example]], TaskResult] | None = None
    limit: int = LIMIT  # most tokens of a question, unless the options set it
    # The split that few-shot examples are taken from; None: ``evaluate`` takes them from elsewhere.
    pool: str | None = "train"
    seed: int | None = None  # fixed seed, where the protocol has one
    # Those with an effect, besides ``ALWAYS``.
    options: Collection[str] = ("budget", "split", "seed", "choices", "chat")
    refused: Mapping[str, str] = field(default_factory=dict)  # messages for options that have none


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Tasks that are evaluated together."""

    name: str  # of its folder in the cache
    title: str  # of its results
    tasks: Sequence[Task]
    # The examples of a task and a split, or only the first ones; raises ``RecordError`` for a bad record.
    read: Callable[[Any, str, int | None], list[Example]]
    splits: Sequence[str] = ("dev",)  # those that may be evaluated, the default first
    corrected: Protocol = Protocol()
    published: Protocol | None = None
    # Few-shot examples are the first of the pool, as many as a question has room for; else a balanced random draw.
    first_shots: bool = False
    id_field: str = ""  # field of an example that identifies it in submission.json; "" writes no such file

    def protocol(self, options: Options) -> Protocol:
        """The protocol that the options choose; ConfigError if there is none, or an option has no effect."""
        protocol = self.published if options.published else self.corrected
        if protocol is None:
            raise ConfigError(f"--published: the original has no {self.title}; leave it out")
        for option in fields(options):
            given = getattr(options, option.name) != option.default
            if given and option.name not in (*ALWAYS, *protocol.options):
                without = f"--{option.name} has no effect on {self.title}; leave it out"
                raise ConfigError(protocol.refused.get(option.name, without))
        if options.seed is not None and not options.shots and options.choices is None:
            raise ConfigError(f"--seed {options.seed}: nothing is drawn without --shots or --choices; leave it out")
        for name, value in (("--choices", options.choices), ("--budget", options.budget)):
            if value is not None and all(task.generates for task in self.tasks):
                titles = ", ".join(task.title for task in self.tasks)
                raise ConfigError(f"{name} has no effect on {titles}: the model generates the answer")
        return protocol
