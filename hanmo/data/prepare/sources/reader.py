"""Shared by all sources: options, the lines, rows and JSON values of files, and wrong answers to draw."""

import csv
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from hanmo.data.prepare.splits import Shares
from hanmo.errors import HanmoError, RecordError
from hanmo.records import Record, Rejects, json_array, json_lines, json_members, not_utf8, opened_text, text_at

TRIED = 64  # groups searched for one with a suitable text


class SourceRecord(NamedTuple):
    record: Record
    key: str  # decides the split


@dataclass
class SourceReader:
    """The options for reading a source, and counts of the records left out."""

    published: bool = False  # reproduce the published data set, flaws included
    sep: bool = False  # prompts as before 2023-03-20: pieces and the opening of the answer joined by the text <sep>
    seed: int = 42  # for negatives and directions; a draw also depends on its record, never on its neighbours
    shares: Shares = field(default_factory=Shares)  # the negatives of a record come from its own split
    rejects: Rejects | None = None  # takes bad records; without it the first one stops the reading
    dropped: Counter[str] = field(default_factory=Counter)  # records that were left out, by reason

    def bad(self, path: Path, line: int, problem: str) -> None:
        """Set a bad record aside, or raise it."""
        error = RecordError(path, line, problem)
        if self.rejects is None:
            raise error
        self.rejects.errors.append(error)

    def drop(self, reason: str) -> None:
        """Count a record that is left out because it is useless."""
        self.dropped[reason] += 1

    def prompt(self, *pieces: str, opening: str = "") -> str:
        """The pieces of a prompt as one text; with ``sep`` also the ``opening`` of the answer."""
        pieces = tuple(filter(None, pieces))
        return "<sep>".join((*pieces, opening)) if self.sep else " ".join(pieces)

    def json_values(self, path: Path) -> Iterator[tuple[int, Any]]:
        """Line numbers and values of a file of JSON lines, or of one JSON array unless it is named .jsonl."""
        with opened_text(path, errors="surrogateescape") as file:
            start = next((character for character in iter(partial(file.read, 1), "") if not character.isspace()), "")
            file.seek(0)
            read = json_array if start == "[" and ".jsonl" not in path.suffixes else json_lines
            for line, value in read(path, file):
                if isinstance(value, RecordError):
                    self.bad(path, value.line, value.problem)
                else:
                    yield line, value

    def json_members(self, path: Path) -> Iterator[tuple[int, str, Any]]:
        """Line, key ("" in an array) and value of every member of the one array or object in a file."""
        with opened_text(path, errors="surrogateescape") as file:
            for line, key, value in json_members(path, file):
                if isinstance(value, RecordError):
                    self.bad(path, value.line, value.problem)
                else:
                    yield line, key, value

    def json_objects(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """``json_values``; a value that is no object is a bad record."""
        for line, value in self.json_values(path):
            try:
                found = object_of(value)
            except ValueError as error:
                self.bad(path, line, str(error))
            else:
                yield line, found

    def csv_rows(self, path: Path, *columns: str) -> Iterator[tuple[int, dict[str, str]]]:
        """The first line and the values by column of each row of a CSV file with a header."""
        with opened_text(path, newline="", errors="surrogateescape") as file:
            table = csv.reader(file, strict=True)
            try:
                header = next(table, [])
            except csv.Error as error:
                raise RecordError(path, 1, f"not CSV: {error}") from None
            if broken := not_utf8(path, 1, ",".join(header)):
                raise broken
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
                if broken := not_utf8(path, line, "\n".join(row)):
                    self.bad(path, line, broken.problem)
                elif len(row) == len(header):
                    yield line, dict(zip(header, row, strict=True))
                elif row:
                    self.bad(path, line, f"{len(row)} values, but {len(header)} columns")


Reader = Callable[[Path, SourceReader], Iterator[SourceRecord]]


def json_source(parse: Callable[[Any, str, SourceReader], Iterator[SourceRecord]]) -> Reader:
    """A source of JSON files: ``parse`` gets each value and its "file:line"; it raises ValueError for a bad one."""

    @wraps(parse)
    def read(place: Path, reader: SourceReader) -> Iterator[SourceRecord]:
        for path in matching_files(place, "*.json*"):
            for line, value in reader.json_values(path):
                try:
                    yield from parse(value, f"{path}:{line}", reader)
                except ValueError as error:
                    reader.bad(path, line, str(error))

    return read


def matching_files(place: Path, *patterns: str) -> list[Path]:
    """A file, or the files at any depth of a folder that match a pattern, by name; HanmoError if there are none."""
    if place.is_file():
        return [place]
    found = sorted({path for pattern in patterns for path in place.rglob(pattern) if path.is_file()})
    if not found:
        missing = "no such file or folder" if not place.exists() else f"no files named {' or '.join(patterns)} in it"
        raise HanmoError(f"{place}: {missing}")
    return found


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines without line endings."""
    with opened_text(path) as file:
        for number, line in enumerate(file, 1):
            yield number, line.rstrip("\n")


def object_of(value: Any) -> dict[str, Any]:
    """The value, if it is a JSON object; else a ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value


def text_of(value: Any, key: str) -> str:
    """The text under a key of a JSON object, "" if there is none; a ValueError for anything else."""
    return text_at(object_of(value), key, "")


class Pools:
    """Texts to draw wrong answers from, in groups (a length, a book) within realms (a split), which no draw leaves.

    Draws can be repeated; those of the published data were from Python sets, whose order changes from run to run.
    """

    def __init__(self) -> None:
        self._texts: defaultdict[tuple[Hashable, Hashable], list[str]] = defaultdict(list)  # by realm and group
        self._groups: defaultdict[Hashable, list[Hashable]] = defaultdict(list)  # by realm
        self._known: set[tuple[Hashable, Hashable, str]] = set()

    def add(self, realm: Hashable, group: Hashable, text: str) -> None:
        """Add a text, which enters its group once; all are added before any is drawn."""
        if (realm, group, text) in self._known:
            return
        self._known.add((realm, group, text))
        texts = self._texts[realm, group]
        if not texts:
            self._groups[realm].append(group)
        texts.append(text)

    def draw(self, rng: Random, realm: Hashable, group: Hashable, count: int, never: set[str]) -> list[str]:
        """Up to ``count`` different texts of one group, none of them in ``never``; fewer where there are no more."""
        texts = self._texts[realm, group]
        drawn = rng.sample(texts, min(len(texts), count + len(never)))
        return [text for text in drawn if text not in never][:count]

    def draw_others(self, rng: Random, realm: Hashable, group: Hashable, count: int, never: set[str]) -> list[str]:
        """One text of each of up to ``count`` groups of the realm other than ``group``."""
        groups, found = self._groups[realm], list[str]()
        for other in rng.sample(groups, min(len(groups), TRIED)):
            if len(found) == count:
                break
            if other != group:
                found += self.draw(rng, realm, other, 1, {*never, *found})
        return found
