"""What every source reader needs: files and their lines, JSON read piece by piece, and what was left out."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from hanmo.data.prepare.splits import Shares
from hanmo.errors import HanmoError, RecordError
from hanmo.files import check_characters, data_at, data_of
from hanmo.records import Record, Rejects

CHUNK = 1 << 20  # characters read at once from a JSON array


class Item(NamedTuple):
    """A record of a source. Records of the same ``key`` always come into the same split."""

    record: Record
    key: str


@dataclass
class Reading:
    """How a source is to be read, and what was left out on the way.

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
        error = RecordError(path, line, problem)
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


def files(place: Path, *patterns: str) -> list[Path]:
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


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """A text file as UTF-8, plain, gzip (.gz) or the only file of a .zip; damage is a RecordError."""
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                if len(names) != 1:
                    raise RecordError(path, 0, f"expected one file in the archive, found {len(names)}; unpack it")
                with archive.open(names[0]) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
                    yield file
        elif path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
                yield file
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield file
    except FileNotFoundError:
        raise RecordError(path, 0, "no such file") from None
    except (zipfile.BadZipFile, gzip.BadGzipFile, EOFError) as error:
        raise RecordError(path, 0, f"damaged file: {error}") from None
    except UnicodeDecodeError as error:
        raise RecordError(path, 0, f"not UTF-8 ({error}); convert it, e.g. iconv -f gb18030 -t utf-8") from None


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines without their ends; only \\n and \\r\\n end a line."""
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            yield number, line.rstrip("\r\n")


def rows(path: Path, reading: Reading, *columns: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a header: the line each begins on, and its values by column."""
    with opened(path) as file:
        table = csv.reader(file, strict=True)
        header = next(table, [])
        missing = [column for column in columns if column not in header]
        if missing:
            raise RecordError(path, 1, f"no column {', '.join(missing)}; the header is {', '.join(header) or 'empty'}")
        while True:
            line = table.line_num + 1
            try:
                row = next(table, None)
            except csv.Error as error:
                reading.bad(path, line, f"not CSV: {error}")
                continue
            if row is None:
                return
            if len(row) == len(header):
                yield line, dict(zip(header, row, strict=True))
            elif row:
                reading.bad(path, line, f"{len(row)} values, but {len(header)} columns")


def objects(path: Path, reading: Reading) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a file of JSON lines or of one JSON array; anything else there is bad."""
    for line, value in values(path, reading):
        if isinstance(value, dict):
            yield line, value
        else:
            reading.bad(path, line, f"expected a JSON object, found {type(value).__name__}")


def values(path: Path, reading: Reading) -> Iterator[tuple[int, Any]]:
    """Line numbers and values of a file of JSON lines, or of one JSON array unless it is named .jsonl."""
    if ".jsonl" not in path.suffixes and _first(path) == "[":
        for line, _, value in members(path):
            yield line, value
        return
    for line, text in lines(path):
        if text.strip():
            try:
                yield line, data_of(text)
            except json.JSONDecodeError as error:
                reading.bad(path, line, f"not JSON: {error.msg} at column {error.colno}")


def text_of(value: dict[str, Any], key: str) -> str:
    """The text under a key, "" where there is none; a ValueError where it is anything else."""
    found = value.get(key)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise ValueError(f"{key!r} must be text, found {type(found).__name__}")
    return found


def members(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Line, key ("" in an array) and value of every member of the one array or object that a file holds.

    Only the member at hand is in memory. Damage is a RecordError: nothing after it can be trusted.
    """
    with opened(path) as file:
        scan = _Scan(path, file)
        opening = scan.next()
        if opening not in ("[", "{"):
            raise RecordError(path, scan.line, "expected a JSON array or object")
        closing = "]" if opening == "[" else "}"
        mark = scan.next()
        while mark != closing:
            scan.back()
            line, key = scan.line, ""
            if opening == "{":
                key = str(scan.value())
                if scan.next() != ":":
                    raise RecordError(path, scan.line, "not JSON: expected a colon after the key")
                scan.skip()
                line = scan.line
            yield line, key, scan.value()
            mark = scan.next()
            if mark not in (",", closing):
                raise RecordError(
                    path, scan.line, f"not JSON: expected a comma or {closing}, found {mark or 'the end'}"
                )
            if mark == ",":
                mark = scan.next()


def _first(path: Path) -> str:
    with opened(path) as file:
        return _Scan(path, file).next()


class _Scan:
    """A walk over JSON text that is read chunk by chunk."""

    def __init__(self, path: Path, file: TextIO):
        self.path, self.file, self.line = path, file, 1
        self.text, self.place, self.ended = "", 0, False

    def next(self) -> str:
        """The next character that is no white space, "" at the end."""
        self.skip()
        self.place += 1
        return self.text[self.place - 1 : self.place]

    def back(self) -> None:
        self.place -= 1

    def skip(self) -> None:
        """Walk to the next character that is no white space."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in " \t\r\n":
                self.line += self.text[self.place] == "\n"
                self.place += 1
            if self.place < len(self.text) or not self._more():
                return

    def value(self) -> Any:
        self.skip()
        while True:
            try:
                value, end = data_at(self.text, self.place)
            except json.JSONDecodeError as error:
                line = self.line + self.text.count("\n", self.place, error.pos)
                if self._more():
                    continue
                raise RecordError(self.path, line, f"not JSON: {error.msg}") from None
            if end < len(self.text) or not self._more():  # a number may go on in the next chunk
                self._check(value, end)
                self.line += self.text.count("\n", self.place, end)
                self.place = end
                return value

    def _check(self, value: Any, end: int) -> None:
        try:
            check_characters(value, self.text, self.place, end)
        except json.JSONDecodeError as error:
            line = self.line + self.text.count("\n", self.place, error.pos)
            raise RecordError(self.path, line, f"not JSON: {error.msg}") from None

    def _more(self) -> bool:
        """Read on; what has been walked over is forgotten."""
        if self.ended:
            return False
        # Twice what is there, so that a large value is not decoded anew for every small chunk of it.
        chunk = self.file.read(max(CHUNK, len(self.text) - self.place))
        self.ended = not chunk
        self.text, self.place = self.text[self.place :] + chunk, 0
        return bool(chunk)
