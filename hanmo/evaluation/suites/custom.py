"""Tasks of the user's own: a YAML file each (``TaskFile``), and a file of records."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from hanmo.config import load
from hanmo.data.prepare.sources.reader import SourceReader
from hanmo.errors import ConfigError, HanmoError, RecordError
from hanmo.evaluation.suites.suite import OPTION, Example, Protocol, Suite, Task, Template

PLACE = OPTION.strip("{}")


@dataclass(frozen=True)
class TaskFile:
    """The settings in a task's YAML file.

    Attributes:
        data: records to evaluate: JSON lines, a JSON array, or CSV with a header; may be compressed (.gz). Relative to the
            YAML file.
        template: the question, with a record's fields in braces and {option} where the candidate goes.
        answer: the field that holds the right answer.
        labels: an answer in the records: its word. The candidates are the same for all records.
        options: the fields that hold a record's candidates, the answer being the name of one or the text in it; or the one
            field that holds a list of them, the answer being one of them or its index from 0.
        train: records for few-shot examples.
        title: name in results; by default the file's name.
        instruction: text that stands once before everything.
        shorten: fields that may be truncated if a question does not fit, and at which side.
        reading: the reading of the scores that counts; by default prior if the candidates are labels, otherwise mean.
    """

    data: Path
    template: str
    answer: str
    labels: dict[Any, str] = field(default_factory=dict)
    options: str | tuple[str, ...] = ()
    train: Path | None = None
    title: str = ""
    instruction: str = ""
    shorten: dict[str, Literal["start", "end"]] = field(default_factory=dict)
    reading: Literal["sum", "mean", "prior"] | None = None


@dataclass(frozen=True, kw_only=True)
class CustomTask(Task):
    """A task of a YAML file."""

    path: Path
    file: TaskFile
    fields: tuple[str, ...]  # that the template names


def custom_suite(tasks: Sequence[CustomTask]) -> Suite:
    """A suite of the user's own tasks; ConfigError if two of them have the same name."""
    names = [task.name for task in tasks]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"{', '.join(sorted(twice))}: given twice; results go by the name of the file")
    corrected = Protocol(options=("budget", "seed", "choices", "chat"))
    return Suite(name="task", title="Tasks", tasks=tasks, read=read_split, corrected=corrected)


def read_task(path: str | Path, place: int = 0) -> CustomTask:
    """A task from its YAML file; ConfigError if the file is missing or its settings are wrong."""
    path = Path(path)
    file = load(TaskFile, file=path)
    labels = {str(label): word for label, word in file.labels.items()}
    if bool(labels) == bool(file.options):
        raise ConfigError(f"{path}: give either labels (the same for all records) or options (fields of a record)")
    if len(labels or file.options) < 2 and not isinstance(file.options, str):
        raise ConfigError(f"{path}: one candidate alone leaves nothing to choose; give at least two")
    if len(set(labels.values())) < len(file.labels):
        raise ConfigError(f"{path}: labels: two are the same, or have the same word, and cannot be told apart")
    fields = _fields(path, file.template)
    for name in file.shorten.keys() - set(fields):
        raise ConfigError(f"{path}: shorten names {name!r}, which is not in the template; it has {', '.join(fields)}")
    return CustomTask(
        name=path.stem,
        title=file.title or path.stem,
        template=Template(file.template),
        shorten=dict(file.shorten),
        reading=file.reading or ("prior" if labels else "mean"),
        labels=labels,
        instruction=file.instruction,
        place=place,
        path=path,
        file=file,
        fields=fields,
    )


def read_split(task: CustomTask, split: str, first: int | None = None) -> list[Example]:
    """The examples of a task's data ("dev") or few-shot records ("train"). All are checked, the first returned.

    ConfigError if the task has no few-shot records; RecordError for a missing field or an answer that is no candidate.
    """
    name = task.file.train if split == "train" else task.file.data
    if name is None:
        raise ConfigError(f"{task.path}: examples in the prompt need records; say where with train: FILE")
    path, examples = task.path.parent / name, []
    columns = () if isinstance(task.file.options, str) else task.file.options
    reader = SourceReader()
    table = ".csv" in path.suffixes
    records = reader.csv_rows(path, *task.fields, task.file.answer, *columns) if table else reader.json_objects(path)
    for line, record in records:
        fields = {name: _text(record, name, path, line) for name in task.fields}
        options = tuple(task.labels.values()) or _options(task, record, path, line)
        gold = _gold(task, record, options, path, line)
        examples.append(Example(fields, options, gold, f"{path}:{line}", options[gold]))
    if not examples:
        raise HanmoError(f"{path}: no records; expected some for the task {task.title}")
    return examples[:first]


def _fields(path: Path, template: str) -> tuple[str, ...]:
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"{path}: template: {error}; a brace that is text is written twice") from None
    names = [name for _, name, _, _ in pieces if name is not None]
    if names.count(PLACE) != 1 or OPTION not in template:
        raise ConfigError(
            f"{path}: the template has {OPTION} {names.count(PLACE)} times; expected once, where a candidate goes"
        )
    for _, name, form, conversion in pieces:
        if name is not None and (not name or form or conversion or set(name) & set(".[]")):
            raise ConfigError(f"{path}: template: expected only names of fields in braces, as {{text}}; found {name!r}")
    return tuple(dict.fromkeys(name for name in names if name != PLACE))


def _text(record: dict[str, Any], name: str, path: Path, line: int) -> str:
    value = record.get(name)
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    problem = f"is {type(value).__name__}" if name in record else f"is missing; the record has {', '.join(record)}"
    raise RecordError(path, line, f"field {name!r} {problem}; expected text or a number")


def _options(task: CustomTask, record: dict[str, Any], path: Path, line: int) -> tuple[str, ...]:
    fields = task.file.options
    if not isinstance(fields, str):
        return tuple(_text(record, name, path, line) for name in fields)
    found = record.get(fields)
    if not isinstance(found, list) or len(found) < 2 or not all(isinstance(one, str) for one in found):
        raise RecordError(path, line, f"field {fields!r} is {found!r}; expected a list of at least two texts")
    return tuple(found)


def _gold(task: CustomTask, record: dict[str, Any], options: tuple[str, ...], path: Path, line: int) -> int:
    field, named = task.file.answer, task.file.options
    answer = record.get(field)
    if isinstance(answer, int) and not isinstance(answer, bool) and isinstance(named, str):
        if 0 <= answer < len(options):
            return answer
        raise RecordError(path, line, f"{field} is {answer}; expected an index from 0 to {len(options) - 1}")
    text = _text(record, field, path, line)
    names = tuple(task.labels) or (() if isinstance(named, str) else named)
    known = names if task.labels else (*names, *options)
    if text not in known:
        raise RecordError(path, line, f"{field} is {text!r}; expected one of {', '.join(known[:20])}")
    return known.index(text) % len(options)  # an option has its name, if any, in the same place
