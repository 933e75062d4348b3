"""Reading the CSV files of an examination. Every cell is text: a choice may be "None", "N/A" or "nan"."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from hanmo.errors import HanmoError, RecordError
from hanmo.evaluation.suites.exam.exams import LETTERS, Exam
from hanmo.evaluation.suites.task import Example, Task
from hanmo.records import opened_text

COLUMNS = ("question", *LETTERS)
ANSWER = "answer"
UNKNOWN = -1  # the right choice of a question whose answer is not published


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
        if first is None or len(examples) < first:
            fields = {name: row[name] for name in COLUMNS} | {"id": row.get("id", str(len(examples)))}
            gold = LETTERS.index(answer) if answer else UNKNOWN
            examples.append(Example(fields, LETTERS, gold, f"{path}:{line}", answer))
    if not examples:
        raise HanmoError(f"{path}: no question in it")
    return examples


def subject_file(exam: Exam, task: Task, data: str | Path, split: str) -> Path:
    """The file of a split, compressed or not."""
    path = Path(data) / exam.files.format(split=split, subject=task.name)
    found = next((one for one in (path, path.with_name(path.name + ".gz")) if one.is_file()), None)
    if found is None:
        raise HanmoError(f"{path}: no such file; expected {exam.title} as its authors publish it, or name --subjects")
    return found


def header_of(row: list[str]) -> list[str] | None:
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
            header = header_of(row) if start == 1 else None
            if header is not None:
                names = header
            elif row and len(row) != len(names):
                raise RecordError(path, start, f"{len(row)} values; expected {len(names)}: {', '.join(names)}")
            elif row:
                yield start, dict(zip(names, row, strict=True))
