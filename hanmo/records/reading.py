"""Reads records from a file, whose form is recognised by its content: lines of text or of JSON, or a JSON array."""

import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, TextIO

from hanmo.errors import RecordError
from hanmo.files import check_characters, data_at, data_of
from hanmo.records.schemas import json_record
from hanmo.records.types import Dialogue, Record, Rejects, Text, unanswered, unasked

Plain = Literal["dialogue", "text"]
Reply = Literal["any", "needed", "waiting"]
_CHECKS: dict[Reply, Callable[[Record], str | None]] = {"needed": unanswered, "waiting": unasked, "any": lambda _: None}
Values = Iterator[tuple[int, Any]]  # line number from 1, and the value or, where it is unreadable, a RecordError
CHUNK = 1 << 20  # characters read at once from an array
LONGEST = 1 << 24  # characters of a record; a packed file of a few KB may hold a line of gigabytes
_NO_TEXT = re.compile("[\udc80-\udcff]+")  # what bytes that are not UTF-8 are read as


def iter_records(
    path: str | Path, rejects: Rejects | None = None, plain: Plain = "dialogue", reply: Reply = "any"
) -> Iterator[Record]:
    """The records of a file, one after the other; ``plain``: whether plain lines are tab-separated turns or text.

    ``rejects`` takes bad records; without it the first one stops the reading with a RecordError. ``reply``: with "needed"
    a record without a reply is bad; with "waiting" the reply may be missing, but the prompt may not, and the record keeps
    all fields of a JSON object.
    """
    path = Path(path)
    with opened_text(path, errors="surrogateescape") as file:
        read = _reader(path, file)
        if read is text_lines:
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
                if reply == "waiting" and isinstance(value, dict) and not isinstance(record, Text):
                    record = replace(record, fields=value)  # for rewards
            except ValueError as error:
                bad = error if isinstance(error, RecordError) else RecordError(path, line, str(error))
                if rejects is None:
                    raise bad from None
                rejects.errors.append(bad)
            else:
                yield record


@contextmanager
def opened_text(path: Path, newline: str | None = None, errors: str = "strict") -> Iterator[TextIO]:
    """A file of UTF-8, with or without a byte order mark: plain, .gz or the only one of a .zip; else a RecordError.

    ``newline``, ``errors``: as for ``open``.
    """
    try:
        with _opened_bytes(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", errors, newline) as file:
            yield file
    except FileNotFoundError:
        raise RecordError(path, 0, "no such file") from None
    except IsADirectoryError:
        raise RecordError(path, 0, "is a folder; name the file in it") from None
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise RecordError(path, 0, f"damaged {'zip' if path.suffix == '.zip' else 'gzip'} file: {error}") from None
    except UnicodeDecodeError:
        with opened_text(path, errors="surrogateescape") as file:
            raise next(
                (bad for _, bad in text_lines(path, file) if isinstance(bad, RecordError)),
                RecordError(path, 0, "not UTF-8"),
            ) from None


def not_utf8(path: Path, line: int, text: str, around: str = "", cut: bool = False) -> RecordError | None:
    """The error of the first bytes in text from ``line`` on that are not UTF-8, read with ``errors="surrogateescape"``.

    ``around``: more of the text; ``cut``: whether the text around is known to be UTF-8.
    """
    if (bad := _NO_TEXT.search(text)) is None:
        return None
    near = around or text
    chinese = sum(not character.isascii() for character in near)
    advice = "convert it, e.g. iconv -f gb18030 -t utf-8"
    if cut or chinese > 2 * sum(map(len, _NO_TEXT.findall(near))):
        advice = "the text around is: a character was cut; mend it, or leave the record out"
    found = bad.group()[:4].encode("utf-8", "surrogateescape").hex(" ")
    return RecordError(path, line + text.count("\n", 0, bad.start()), f"not UTF-8 (found the bytes {found}); {advice}")


def _opened_bytes(path: Path) -> IO[bytes] | gzip.GzipFile:
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix != ".zip":
        return path.open("rb")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(names) != 1:
            raise RecordError(path, 0, f"expected one file in the archive, found {len(names)}; unpack it")
        return archive.open(names[0])


def _reader(path: Path, file: TextIO) -> Callable[[Path, TextIO], Values]:
    """The reader for the file, by its name and its first line that is not blank."""
    first = next((line for line in _bounded(file) if line.strip()), "").strip()
    file.seek(0)
    names_json = {".json", ".jsonl"} & set(path.suffixes)
    if not first or (not names_json and first[0] not in "[{"):
        return text_lines
    try:
        value, end = data_at(first, 0)
        whole_line = isinstance(value, (dict, list)) and end == len(first)
    except json.JSONDecodeError:
        whole_line = False
    if first[0] == "[" and not (whole_line and ".jsonl" in path.suffixes) and (names_json or first in ("[", "[{")):
        return json_array
    if whole_line or names_json:
        return json_lines
    return text_lines  # a dialogue may begin with a bracket


def text_lines(path: Path, file: TextIO) -> Iterator[tuple[int, str | RecordError]]:
    """Line number and text of every line that is not blank; a RecordError in place of one that is not UTF-8, or too long.

    ``file``: opened with ``errors="surrogateescape"``.
    """
    good = 0  # lines of Chinese, less those that are not UTF-8
    for number, line in enumerate(_bounded(file), 1):
        if len(line) > LONGEST:
            yield number, RecordError(path, number, f"longer than {LONGEST:,} characters; expected one record a line")
        elif line.isascii():
            if line.strip():
                yield number, line
        else:
            error = not_utf8(path, number, line, cut=good > 0)
            good += -1 if error else 1
            yield number, error or line


def _bounded(file: TextIO) -> Iterator[str]:
    """The lines of a file; of one that is longer than ``LONGEST`` as many characters and one."""
    while line := file.readline(LONGEST + 1):
        yield line
        while len(line) > LONGEST and not line.endswith("\n"):
            line = file.readline(LONGEST + 1)


def _dialogue_line(line: str, where: str) -> Dialogue:
    # The whole line is stripped, so an empty first or last turn vanishes; an empty turn in the middle stays.
    return Dialogue(tuple(line.strip().split("\t")), where=where)


def _text_line(line: str, where: str) -> Text:
    return Text(line.strip("\r\n"), where)


def json_lines(path: Path, file: TextIO) -> Values:
    """Line number and value of every line that is not blank; a RecordError in place of a value that is not JSON."""
    for number, line in text_lines(path, file):
        try:
            yield number, line if isinstance(line, RecordError) else data_of(line.strip())
        except json.JSONDecodeError as error:
            yield number, RecordError(path, number, f"not JSON: {error.msg} at column {error.colno}")


def json_members(path: Path, file: TextIO) -> Iterator[tuple[int, str, Any]]:
    """Line, key ("" in an array) and value of every member of the one array or object that a file holds.

    Only the current member is in memory. A RecordError takes the place of a value with a lone surrogate. It is
    raised for damage, after which nothing can be trusted, for a value of more than ``LONGEST`` characters, and for text
    after the end. ``file``: opened with ``errors="surrogateescape"``.
    """
    scanner = _Scanner(path, file)
    opening = scanner.next()
    if opening not in ("[", "{"):
        raise RecordError(path, scanner.line, "expected a JSON array or object")
    closing, name = ("]", "array") if opening == "[" else ("}", "object")
    mark = scanner.next()
    while mark != closing:
        scanner.place -= 1
        line, key = scanner.line, ""
        if opening == "{":
            if isinstance(key := scanner.value(), RecordError):
                raise key
            if scanner.next() != ":":
                raise RecordError(path, scanner.line, "not JSON: expected a colon after the key")
            scanner.skip()
            line = scanner.line
        yield line, str(key), scanner.value()
        mark = scanner.next()
        if mark not in (",", closing):
            problem = f"not JSON: the {name} does not end with {closing}: expected a comma or {closing}"
            raise RecordError(path, scanner.line, f"{problem}, found {mark or 'the end of the file'}")
        if mark == ",":
            mark = scanner.next()
    if scanner.next():
        problem = f"text after the end of the {name}; for one {name} a line name the file .jsonl"
        raise RecordError(path, scanner.line, problem)


def json_array(path: Path, file: TextIO) -> Values:
    """``json_members`` of an array, without keys."""
    return ((line, value) for line, _, value in json_members(path, file))


class _Scanner:
    """A position in JSON text that is read chunk by chunk."""

    def __init__(self, path: Path, file: TextIO):
        self.path, self.file, self.line = path, file, 1
        self.text, self.place, self.ended = "", 0, False
        self.before = 0  # characters of the first line of ``text`` that were dropped from it

    def next(self) -> str:
        """The next character other than white space, "" at the end."""
        self.skip()
        self.place += 1
        return self.text[self.place - 1 : self.place]

    def skip(self) -> None:
        """Move to the next character other than white space."""
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
                column = error.colno + (self.before if error.lineno == 1 else 0)
                if len(self.text) - self.place <= LONGEST and self._more():
                    continue
                damage = RecordError(self.path, line, f"not JSON: {error.msg} at column {column}")
                raise not_utf8(self.path, self.line, self.text[self.place :]) or damage from None
            if end < len(self.text) or not self._more():  # a number may go on in the next chunk
                try:
                    check_characters(value, self.text, self.place, end)
                except json.JSONDecodeError as error:
                    line = self.line + self.text.count("\n", self.place, error.pos)
                    value = RecordError(self.path, line, f"not JSON: {error.msg}")
                value = not_utf8(self.path, self.line, self.text[self.place : end], self.text) or value
                self.line += self.text.count("\n", self.place, end)
                self.place = end
                return value

    def _more(self) -> bool:
        """Read on and forget the text before the current place."""
        if self.ended:
            return False
        # Doubles the text, so that a large value is not decoded again for every small chunk of it.
        chunk = self.file.read(max(CHUNK, len(self.text) - self.place))
        self.ended = not chunk
        line_start = self.text.rfind("\n", 0, self.place) + 1
        self.before = self.place - line_start + (0 if line_start else self.before)
        self.text, self.place = self.text[self.place :] + chunk, 0
        return bool(chunk)
