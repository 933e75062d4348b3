"""Tools of every source: its options, its files with their lines, rows and JSON values, and what was left out."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from hanmo.data.prepare.splits import Shares
from hanmo.errors import HanmoError, RecordError
from hanmo.records import Record, Rejects, json_lines, json_members, opened_text


class SourceRecord(NamedTuple):
    """A record of a source. Records of the same ``key`` always come into the same split."""

    record: Record
    key: str


@dataclass
class SourceReader:
    """The options for reading a source, and counts of what was left out.

    Attributes:
        published: reproduce the published data set, flaws included.
        sep: prompts as before 2023-03-20: their pieces and what opens the answer joined by the text ``<sep>``.
        seed: of what is drawn (negatives, directions); each draw depends on the record too, never on its neighbours.
        shares: the splits, so that the negatives of a record come from its own split.
        rejects: takes bad records, which are then passed over; without it the first one stops the reading.
        dropped: how many records were left out, by reason.
    """

    published: bool = False
    sep: bool = False
    seed: int = 42
    shares: Shares = field(default_factory=Shares)
    rejects: Rejects | None = None
    dropped: Counter[str] = field(default_factory=Counter)

    def bad(self, path: Path, line: int, problem: str) -> None:
        """Stop at a bad record, or set it aside."""
        self._reject(RecordError(path, line, problem))

    def _reject(self, error: RecordError) -> None:
        if self.rejects is None:
            raise error
        self.rejects.errors.append(error)

    def drop(self, reason: str) -> None:
        """Leave out a record that is not bad, only of no use."""
        self.dropped[reason] += 1

    def prompt(self, *pieces: str, opening: str = "") -> str:
        """The pieces of a prompt as one text. ``opening``: what opens the answer; it belongs to the prompt with sep."""
        pieces = tuple(filter(None, pieces))
        return "<sep>".join((*pieces, opening)) if self.sep else " ".join(pieces)

    def json_values(self, path: Path) -> Iterator[tuple[int, Any]]:
        """Line numbers and values of a file of JSON lines, or of one JSON array unless it is named .jsonl."""
        with opened_text(path) as file:
            array = ".jsonl" not in path.suffixes and _first_character(file) == "["
            members = (
                ((line, value) for line, _, value in json_members(path, file)) if array else json_lines(path, file)
            )
            for line, value in members:
                if isinstance(value, RecordError):
                    self._reject(value)
                else:
                    yield line, value

    def json_objects(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """The JSON objects among ``json_values``; any other value is a bad record."""
        for line, value in self.json_values(path):
            if isinstance(value, dict):
                yield line, value
            else:
                self.bad(path, line, f"expected a JSON object, found {type(value).__name__}")

    def csv_rows(self, path: Path, *columns: str) -> Iterator[tuple[int, dict[str, str]]]:
        """The rows of a CSV file with a header: the line each begins on, and its values by column."""
        with opened_text(path, newline="") as file:
            table = csv.reader(file, strict=True)
            header = next(table, [])
            missing = [column for column in columns if column not in header]
            if missing:
                found = ", ".join(header) or "empty"
                raise RecordError(path, 1, f"no column {', '.join(missing)}; the header is {found}")
            while True:
                line = table.line_num + 1
                try:
                    row = next(table, None)
                except csv.Error as error:
                    self.bad(path, line, f"not CSV: {error}")
                    continue
                if row is None:
                    return
                if len(row) == len(header):
                    yield line, dict(zip(header, row, strict=True))
                elif row:
                    self.bad(path, line, f"{len(row)} values, but {len(header)} columns")

    def json_records(
        self, place: Path, parse: Callable[[Any, str], Iterable[SourceRecord]], objects: bool = True
    ) -> Iterator[SourceRecord]:
        """What ``parse`` makes of every JSON object, or value, of a file or folder.

        Args:
            parse: takes a value and its place ("file:line"); raises ValueError for a bad one.
        """
        for path in matching_files(place, "*.json*"):
            for line, value in self.json_objects(path) if objects else self.json_values(path):
                try:
                    yield from parse(value, f"{path}:{line}")
                except ValueError as error:
                    self.bad(path, line, str(error))


def _first_character(file: TextIO) -> str:
    while (character := file.read(1)).isspace():
        pass
    file.seek(0)
    return character


def matching_files(place: Path, *patterns: str) -> list[Path]:
    """A file, or the files of a folder and its folders that match a pattern, in order of their names.

    Raises:
        HanmoError: there are none.
    """
    if place.is_file():
        return [place]
    found = sorted({path for pattern in patterns for path in place.rglob(pattern) if path.is_file()})
    if not found:
        missing = "no such file or folder" if not place.exists() else f"no files named {' or '.join(patterns)} in it"
        raise HanmoError(f"{place}: {missing}")
    return found


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines without their ends."""
    with opened_text(path) as file:
        for number, line in enumerate(file, 1):
            yield number, line.rstrip("\n")


def text_of(value: dict[str, Any], key: str) -> str:
    """The text under a key, "" where there is none; a ValueError where it is anything else."""
    found = value.get(key)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise ValueError(f"{key!r} must be text, found {type(found).__name__}")
    return found
