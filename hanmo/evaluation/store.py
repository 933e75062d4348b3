"""What a run has found so far, on disk: an interrupted one goes on, a finished one is not run again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from hanmo.files import write_text


class Store:
    """Results by number in a file of JSON lines that is only ever appended to.

    The name of the file says what was asked of which weights: another question is another file. A last line that was
    cut off by a crash is dropped.
    """

    def __init__(self, folder: str | Path, name: str, asked: Sequence[Any]):
        key = sha256(json.dumps(asked, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]
        self.path = Path(folder) / f"{name}-{key}.jsonl"
        self.values: dict[int, Any] = {}
        if self.path.is_file():
            self._read()
        else:
            write_text(self.path, "")
        self._file = self.path.open("a", encoding="utf-8")

    def __contains__(self, number: int) -> bool:
        return number in self.values

    def add(self, number: int, value: Any) -> None:
        """Keep one result; it is on disk when this returns."""
        self.values[number] = value
        self._file.write(json.dumps([number, value], ensure_ascii=False) + "\n")
        self._file.flush()

    def missing(self, count: int) -> list[int]:
        """The numbers below ``count`` that have no result yet."""
        return [number for number in range(count) if number not in self.values]

    def close(self) -> None:
        self._file.close()

    def _read(self) -> None:
        whole = self.path.read_text(encoding="utf-8")
        lines = whole.split("\n")
        for line in lines[:-1]:
            number, value = json.loads(line)
            self.values[number] = value
        if lines[-1]:
            write_text(self.path, whole[: len(whole) - len(lines[-1])])
