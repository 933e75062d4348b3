"""JSON values of a text file, read one at a time: of JSON lines, or of one array or object."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from hanmo.errors import RecordError
from hanmo.files import check_characters, data_at, data_of

CHUNK = 1 << 20  # characters read at once from an array


def json_lines(path: Path, file: TextIO) -> Iterator[tuple[int, Any]]:
    """Line number and value of every line that is not blank; a RecordError in place of a value that is not JSON."""
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield number, data_of(line.strip())
            except json.JSONDecodeError as error:
                yield number, RecordError(path, number, f"not JSON: {error.msg} at column {error.colno}")


def json_members(path: Path, file: TextIO) -> Iterator[tuple[int, str, Any]]:
    """Line, key ("" in an array) and value of every member of the one array or object that a file holds.

    Only the current member is in memory. A RecordError stands in place of a value that holds half a character.

    Raises:
        RecordError: damage, after which nothing can be trusted, or text after the end.
    """
    scanner = _Scanner(path, file)
    opening = scanner.next()
    if opening not in ("[", "{"):
        raise RecordError(path, scanner.line, "expected a JSON array or object")
    closing, name = ("]", "array") if opening == "[" else ("}", "object")
    mark = scanner.next()
    while mark != closing:
        scanner.back()
        line, key = scanner.line, ""
        if opening == "{":
            key = str(scanner.value())
            if scanner.next() != ":":
                raise RecordError(path, scanner.line, "not JSON: expected a colon after the key")
            scanner.skip()
            line = scanner.line
        yield line, key, scanner.value()
        mark = scanner.next()
        if mark not in (",", closing):
            problem = f"not JSON: the {name} does not end with {closing}: expected a comma or {closing}"
            raise RecordError(path, scanner.line, f"{problem}, found {mark or 'the end of the file'}")
        if mark == ",":
            mark = scanner.next()
    if scanner.next():
        problem = f"text after the end of the {name}; for one {name} a line name the file .jsonl"
        raise RecordError(path, scanner.line, problem)


class _Scanner:
    """A position in JSON text that is read chunk by chunk."""

    def __init__(self, path: Path, file: TextIO):
        self.path, self.file, self.line = path, file, 1
        self.text, self.place, self.ended = "", 0, False
        self.before = 0  # characters of the first line of ``text`` that are no longer in it

    def next(self) -> str:
        """The next character that is not white space, "" at the end."""
        self.skip()
        self.place += 1
        return self.text[self.place - 1 : self.place]

    def back(self) -> None:
        self.place -= 1

    def skip(self) -> None:
        """Move to the next character that is not white space."""
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
                if self._more():
                    continue
                raise RecordError(self.path, line, f"not JSON: {error.msg} at column {column}") from None
            if end < len(self.text) or not self._more():  # a number may go on in the next chunk
                value = self._checked(value, end)
                self.line += self.text.count("\n", self.place, end)
                self.place = end
                return value

    def _checked(self, value: Any, end: int) -> Any:
        """The value, or a RecordError in its place if half a character is in it; the file can be read on."""
        try:
            check_characters(value, self.text, self.place, end)
        except json.JSONDecodeError as error:
            return RecordError(
                self.path, self.line + self.text.count("\n", self.place, error.pos), f"not JSON: {error.msg}"
            )
        return value

    def _more(self) -> bool:
        """Read on and forget the text before the current place."""
        if self.ended:
            return False
        # Twice the text at hand, so that a large value is not decoded anew for every small chunk of it.
        chunk = self.file.read(max(CHUNK, len(self.text) - self.place))
        self.ended = not chunk
        line_start = self.text.rfind("\n", 0, self.place) + 1
        self.before = self.place - line_start + (0 if line_start else self.before)
        self.text, self.place = self.text[self.place :] + chunk, 0
        return bool(chunk)
