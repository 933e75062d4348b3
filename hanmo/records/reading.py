"""Reads records from a file, whose form is recognised by its content.

Plain text is one dialogue a line, turns separated by tabs (or one text a line, when asked for); JSON is one record a
line, or one array of records. Any file may be gzip-compressed.
"""

from __future__ import annotations

import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, TextIO

from hanmo.errors import RecordError
from hanmo.files import data_at
from hanmo.records.json_values import json_lines, json_members
from hanmo.records.schemas import json_record
from hanmo.records.types import Dialogue, Plain, Record, Rejects, Text, unanswered, unasked

Reply = Literal["any", "needed", "waiting"]
_CHECKS: dict[Reply, Callable[[Record], str | None]] = {"needed": unanswered, "waiting": unasked, "any": lambda _: None}


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
            missing, but the prompt may not. "any": no check.

    Raises:
        RecordError: a record that cannot be read; file, line, reason and what was expected.
    """
    path = Path(path)
    with opened_text(path) as file:
        yield from _records(path, file, rejects, plain, reply)


@contextmanager
def opened_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """A file of UTF-8, with or without a byte order mark: plain, gzip (.gz) or the only file of a .zip.

    Args:
        newline: as for ``open``; "" for CSV.

    Raises:
        RecordError: no such file, a damaged one, or no UTF-8.
    """
    try:
        with _opened_bytes(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline=newline) as file:
            yield file
    except FileNotFoundError:
        raise RecordError(path, 0, "no such file") from None
    except IsADirectoryError:
        raise RecordError(path, 0, "is a folder; name the file in it") from None
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise RecordError(path, 0, f"damaged {'zip' if path.suffix == '.zip' else 'gzip'} file: {error}") from None
    except UnicodeDecodeError as error:
        raise RecordError(path, 0, f"not UTF-8 ({error}); convert it, e.g. iconv -f gb18030 -t utf-8") from None


@contextmanager
def _opened_bytes(path: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    if path.suffix == ".gz":
        with gzip.open(path) as packed:
            yield packed
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(names) != 1:
                raise RecordError(path, 0, f"expected one file in the archive, found {len(names)}; unpack it")
            with archive.open(names[0]) as member:
                yield member
    else:
        with path.open("rb") as raw:
            yield raw


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
            if problem := _CHECKS[reply](record):
                raise ValueError(problem)
        except (RecordError, ValueError) as error:
            bad = error if isinstance(error, RecordError) else RecordError(path, line, str(error))
            if rejects is None:
                raise bad from None
            rejects.errors.append(bad)
        else:
            yield record


Values = Iterator[tuple[int, Any]]  # line number from 1, and what stands there; a RecordError where it is unreadable


def _reader(path: Path, file: TextIO) -> Callable[[Path, TextIO], Values]:
    """The reader for the file, by its name and its first line that is not blank."""
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
        return json_lines
    return _plain_values  # a dialogue may begin with a bracket


def _plain_values(path: Path, file: TextIO) -> Values:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, line


def _array_values(path: Path, file: TextIO) -> Values:
    return ((line, value) for line, _, value in json_members(path, file))


def _dialogue_line(line: str, where: str) -> Dialogue:
    # The whole line is stripped, so an empty first or last turn vanishes; an empty turn in the middle stays.
    return Dialogue(tuple(line.strip().split("\t")), where=where)


def _text_line(line: str, where: str) -> Text:
    return Text(line.strip("\r\n"), where)
