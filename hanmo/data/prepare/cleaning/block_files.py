"""The result of cleaning a block of records, as a file of JSON lines: data that executes nothing when it is read.

The first line has the reports of all steps; a line per record follows: the cleaned record, or null, and its rejects.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hanmo.data.prepare.normalisation import text_hash
from hanmo.errors import HanmoError
from hanmo.records import Dialogue, PromptResponse, Record, ScoredAnswers, Text

FORM = "JSON lines"
EXAMPLES = 3
KINDS = {kind.__name__: kind for kind in (Text, Dialogue, PromptResponse, ScoredAnswers)}

Reject = tuple[str, str, str, str]  # step, reason, text, where
CleanedRecord = tuple[Record | None, list[Reject]]
T = TypeVar("T")


@dataclass
class StepReport:
    """How many views (see ``views``) a step changed and removed, and a few examples, chosen by hash."""

    changed: int = 0
    removed: int = 0
    examples: list[tuple[int, str, str]] = field(default_factory=list)  # rank, text, reason or text afterwards

    def example(self, text: str, reason: str) -> None:
        self.examples = sorted({*self.examples, (text_hash(text), text, reason)})[:EXAMPLES]

    def example_texts(self) -> list[str]:
        """The examples for people, shortened."""
        return [f"{_short(text)} ({_short(reason)})" for _, text, reason in self.examples]

    def add(self, other: StepReport) -> None:
        self.changed += other.changed
        self.removed += other.removed
        self.examples = sorted({*self.examples, *other.examples})[:EXAMPLES]


def _short(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def write_block(path: Path, cleaned: Sequence[CleanedRecord], reports: dict[str, StepReport]) -> None:
    """Write the result of a block."""
    with path.open("w", encoding="ascii") as file:
        print(json.dumps({name: asdict(report) for name, report in reports.items()}, allow_nan=False), file=file)
        for record, rejected in cleaned:
            line = [record and [type(record).__name__, asdict(record)], rejected]
            print(json.dumps(line, allow_nan=False), file=file)


def read_cleaned(path: Path) -> Iterator[CleanedRecord]:
    """The records of a block, one at a time.

    Raises:
        HanmoError: the file is not what ``write_block`` writes.
    """
    with path.open("rb") as file:
        next(file, None)
        for line in file:
            yield _read(path, line, _cleaned_record)


def read_reports(path: Path) -> dict[str, StepReport]:
    """The reports of all steps of a block; raises as ``read_cleaned`` does."""
    with path.open("rb") as file:
        return _read(path, file.readline(), _reports)


def _read(path: Path, line: bytes, parse: Callable[[Any], T]) -> T:
    try:
        return parse(json.loads(line))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise HanmoError(
            f"{path}: not the result of a block ({error!r}); remove {path.parent} and begin again"
        ) from None


def _cleaned_record(found: Any) -> CleanedRecord:
    record, rejected = found
    if record is not None:
        name, fields = record
        record = KINDS[name](**{key: _tuples(value) for key, value in fields.items()})
    return record, [(step, reason, text, where) for step, reason, text, where in rejected]


def _reports(found: Any) -> dict[str, StepReport]:
    return {
        name: StepReport(report["changed"], report["removed"], list(map(_tuples, report["examples"])))
        for name, report in found.items()
    }


def _tuples(value: Any) -> Any:
    """JSON has lists where records have tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
