"""Reading records from a file, whose form is told from its content.

Plain text is one dialogue a line, turns separated by tabs (or one text a line, when asked for); JSON is one record a
line, or one array of records. Any file may be gzip-compressed.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TextIO

from hanmo.errors import RecordError
from hanmo.files import check_characters, data_at, data_of
from hanmo.records.schemas import json_record
from hanmo.records.types import Dialogue, Plain, Record, Rejects, Text, unanswered

Reply = Literal["any", "needed", "waiting"]


def read_records(path: str | Path, rejects: Rejects | None = None, plain: Plain = "dialogue") -> list[Record]:
    """All records of a file; see ``iter_records``."""
    return list(iter_records(path, rejects, plain))


def iter_records(
    path: str | Path, rejects: Rejects | None = None, plain: Plain = "dialogue", reply: Reply = "any"
) -> Iterator[Record]:
    """The records of a file, one after the other.

    Args:
        rejects: takes bad records, which are then passed over; without it the first one stops the reading.
        plain: what a line of plain text is: the tab-separated turns of a dialogue, or running text.
        reply: "needed": a record without a reply (one turn, or an empty one) is a bad record. "waiting": the reply may be
            missing, as in prompts. "any": no check.

    Raises:
        RecordError: a record that cannot be read; file, line, reason and what was expected.
    """
    path = Path(path)
    with opened_text(path) as file:
        yield from _records(path, file, rejects, plain, reply)


@contextmanager
def opened_text(path: Path) -> Iterator[TextIO]:
    """A file of UTF-8, with or without a byte order mark, plain or gzip (.gz); a RecordError where it is none."""
    try:
        with _open(path) as file:
            yield file
    except FileNotFoundError:
        raise RecordError(path, 0, "no such file") from None
    except IsADirectoryError:
        raise RecordError(path, 0, "is a folder; name the file in it") from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise RecordError(path, 0, f"damaged gzip file: {error}") from None
    except UnicodeDecodeError as error:
        raise RecordError(path, 0, f"not UTF-8 ({error}); convert it, e.g. iconv -f gb18030 -t utf-8") from None


def _open(path: Path) -> TextIO:
    # Python's own newlines: \n, \r\n and \r. Never str.splitlines, which also splits at U+2028.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _records(path: Path, file: TextIO, rejects: Rejects | None, plain: Plain, reply: Reply) -> Iterator[Record]:
    read = _reader(path, file)
    if read is _plain_values:
        as_record: Callable[[Any, str], Record] = _dialogue_line if plain == "dialogue" else _text_line
    else:
        as_record = partial(json_record, waiting=reply == "waiting")
    for line, value in read(path, file):
        try:
            if isinstance(value, RecordError):
                raise value
            record = as_record(value, f"{path}:{line}")
            if reply == "needed" and (problem := unanswered(record)):
                raise ValueError(problem)
        except RecordError as error:
            if rejects is None:
                raise
            rejects.errors.append(error)
        except ValueError as error:
            bad = RecordError(path, line, str(error))
            if rejects is None:
                raise bad from None
            rejects.errors.append(bad)
        else:
            yield record


Values = Iterator[tuple[int, Any]]  # line number from 1, and what stands there; a RecordError where it is unreadable


def _reader(path: Path, file: TextIO) -> Callable[[Path, TextIO], Values]:
    """How to read the file, told from its name and its first line with something on it."""
    first = next((line for line in file if line.strip()), "").strip()
    file.seek(0)
    names_json = {".json", ".jsonl"} & set(path.suffixes)
    if not first or (not names_json and first[0] not in "[{"):
        return _plain_values
    try:
        value, end = data_at(first, 0)
        whole_line = isinstance(value, (dict, list)) and end == len(first)
    except json.JSONDecodeError:
        whole_line = False
    if first[0] == "[" and not (whole_line and ".jsonl" in path.suffixes) and (names_json or first in ("[", "[{")):
        return _array_values
    if whole_line or names_json:
        return _line_values
    return _plain_values  # a dialogue may begin with a bracket


def _plain_values(path: Path, file: TextIO) -> Values:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, line


def _line_values(path: Path, file: TextIO) -> Values:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield number, data_of(line.strip())
            except json.JSONDecodeError as error:
                yield number, RecordError(path, number, f"not JSON: {error.msg} at column {error.colno}")


def _array_values(path: Path, file: TextIO) -> Values:
    """The items of one JSON array, which is held in memory as text; larger data belongs in JSON lines."""
    text, end, line = file.read(), 0, 1
    position = _skip(text, text.index("[") + 1)
    while position < len(text) and text[position] != "]":
        line += text.count("\n", end, position)
        try:
            value, end = data_at(text, position)
        except json.JSONDecodeError as error:
            raise RecordError(path, error.lineno, f"not JSON: {error.msg} at column {error.colno}") from None
        yield line, _checked(path, line, value, text, position, end)
        line += text.count("\n", position, end)
        position = _skip(text, end)
        if position < len(text) and text[position] == ",":
            position = _skip(text, position + 1)
        elif position >= len(text) or text[position] != "]":
            break
    if position >= len(text) or text[position] != "]":
        raise RecordError(path, text.count("\n", 0, position) + 1, "not JSON: the array does not end with ]")
    rest = _skip(text, position + 1)
    if rest < len(text):
        line = text.count("\n", 0, rest) + 1
        raise RecordError(path, line, "text after the end of the array; for one array a line name the file .jsonl")


def _checked(path: Path, line: int, value: Any, text: str, start: int, end: int) -> Any:
    try:
        check_characters(value, text, start, end)
    except json.JSONDecodeError as error:
        return RecordError(path, line, f"not JSON: {error.msg}")
    return value


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _dialogue_line(line: str, where: str) -> Dialogue:
    # The whole line is stripped, so an empty first or last turn vanishes; an empty turn in the middle stays.
    return Dialogue(tuple(line.strip().split("\t")), where=where)


def _text_line(line: str, where: str) -> Text:
    return Text(line.strip("\r\n"), where)
