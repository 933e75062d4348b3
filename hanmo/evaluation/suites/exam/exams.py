"""Examinations in many subjects: data, read from exams.yaml, and the CSV files of their questions.

Each subject is a task like any other. Every cell is text: a choice may be "None", "N/A" or "nan".
"""

import csv
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanmo.errors import ConfigError, HanmoError, RecordError, UnsupportedError, unknown
from hanmo.evaluation.suites.suite import UNKNOWN, Example, Task, Template
from hanmo.files import package_yaml
from hanmo.records import opened_text

LETTERS = ("A", "B", "C", "D")
COLUMNS = ("question", *LETTERS)
ANSWER = "answer"


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
    return {name: _exam(value) for name, value in package_yaml("hanmo.evaluation.suites.exam", "exams.yaml").items()}


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


def read_subject(exam: Exam, task: Task, data: str | Path, split: str, first: int | None = None) -> list[Example]:
    """The questions of a subject, all with answers or all without.

    Raises:
        HanmoError: the file is missing or holds no question.
        RecordError: a row is not a question, four choices and, where others have one, an answer.
    """
    path = subject_file(exam, task, data, split)
    examples: list[Example] = []
    for line, row in _rows(path):
        answer = row.get(ANSWER, "").strip()
        if answer not in ("", *LETTERS):
            raise RecordError(path, line, f"the answer is {answer!r}; expected one of {', '.join(LETTERS)}")
        if examples and bool(answer) != bool(examples[0].label):
            raise RecordError(path, line, "some questions have answers and some have none; expected all or none")
        fields = {name: row[name] for name in COLUMNS} | {"id": row.get("id", str(len(examples)))}
        gold = LETTERS.index(answer) if answer else UNKNOWN
        examples.append(Example(fields, LETTERS, gold, f"{path}:{line}", answer))
    if not examples:
        raise HanmoError(f"{path}: no question in it")
    return examples[:first]


def subject_file(exam: Exam, task: Task, data: str | Path, split: str) -> Path:
    """The file of a split, compressed or not."""
    path = Path(data) / exam.files.format(split=split, subject=task.name)
    found = next((one for one in (path, path.with_name(path.name + ".gz")) if one.is_file()), None)
    if found is None:
        raise HanmoError(f"{path}: no such file; expected {exam.title} as its authors publish it, or name --subjects")
    return found


def _header(row: list[str]) -> list[str] | None:
    """Columns by name, if this row names them: letters in capitals, all else in small letters, the unnamed first one "id"."""
    names = [name.strip().lower() for name in row]
    names = [name.upper() if name.upper() in LETTERS else name or "id" for name in names]
    return names if set(COLUMNS) <= set(names) else None


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The line each row begins on, and its cells by column."""
    with opened_text(path, newline="") as file:
        table, line = csv.reader(file), 1
        names = [*COLUMNS, ANSWER]
        for row in table:
            start, line = line, table.line_num + 1
            header = _header(row) if start == 1 else None
            if header is not None:
                names = header
            elif row and len(row) != len(names):
                raise RecordError(path, start, f"{len(row)} values; expected {len(names)}: {', '.join(names)}")
            elif row:
                yield start, dict(zip(names, row, strict=True))


def read_rows(path: Path, count: int | None = None) -> list[dict[str, str]]:
    """The first rows of a file as pandas reads them and Python prints its values, as published.

    Its defaults take "None", "N/A" or "nan" for a missing value and a number for a number.

    Raises:
        UnsupportedError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise UnsupportedError(
            "--published reads files by pandas, which is not installed: pip install pandas"
        ) from None
    with opened_text(path, newline="") as file:
        names = _header(next(csv.reader(file), []))
    frame = pandas.read_csv(path, header=None if names is None else 0)
    frame.columns = names or [*COLUMNS, ANSWER]
    columns = {name: list(map(str, frame[name])) for name in frame.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)][:count]
