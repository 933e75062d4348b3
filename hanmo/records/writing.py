"""Writing records: as JSON lines, or tab-separated."""

import gzip
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from hanmo.errors import RecordError
from hanmo.files import json_text, replacing
from hanmo.records.types import Dialogue, Record, ScoredAnswers


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write records one a line, as JSON, or tab-separated if the name ends in .txt or .txt.gz; returns how many.

    RecordError for a record that tab-separated lines cannot hold without a change.
    """
    count = 0
    with record_writer(path) as write:
        for count, record in enumerate(records, 1):  # noqa: B007
            write(record)
    return count


@contextmanager
def record_writer(path: str | Path) -> Iterator[Callable[[Record], None]]:
    """``write_records`` for records that arrive one by one."""
    path, count = Path(path), 0
    as_line = _as_tabs if ".txt" in path.suffixes else _as_json
    with replacing(path) as temporary, _created(temporary, path.suffix == ".gz") as file:

        def write(record: Record) -> None:
            nonlocal count
            count += 1
            try:
                file.write(as_line(record) + "\n")
            except ValueError as error:
                raise RecordError(path, count, str(error)) from None

        yield write


@contextmanager
def _created(path: Path, compressed: bool) -> Iterator[TextIO]:
    if not compressed:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        return
    # The file holds neither a name nor a time, so that the same records give the same bytes.
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as file,
    ):
        yield file


def _as_tabs(record: Record) -> str:
    if not isinstance(record, Dialogue) or record.system or record.label is not None:
        raise ValueError(
            "tab-separated lines hold dialogues without a system text or a label only; write .jsonl instead"
        )
    line = "\t".join(record.turns)
    if any(mark in turn for turn in record.turns for mark in "\t\r\n"):
        raise ValueError("a turn holds a tab or a line break; replace it or write .jsonl instead")
    if line.strip() != line or not line:
        raise ValueError("white space at either end would be lost; strip it or write .jsonl instead")
    return line


def _as_json(record: Record) -> str:
    left_out = ("where", "ids", "fields")
    value = {key: part for key, part in vars(record).items() if key not in left_out and part is not None}
    if isinstance(record, ScoredAnswers):
        value["answers"] = [{"answer": answer, "score": score} for answer, score in record.answers]
    return json_text({key: part for key, part in value.items() if part or key not in ("prefix", "system", "history")})
