"""Writing files so that a reader never sees half of one, and names of files that come out of files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hanmo.errors import CheckpointError

LONGEST = 255  # bytes of a name that every file system takes
_RESERVED = frozenset('<>:"/\\|?*')  # separators, drive letters, streams and patterns, of any system
_DEVICES = {"con", "prn", "aux", "nul"} | {f"{port}{number}" for port in ("com", "lpt") for number in range(10)}


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path``, to write to; renamed to ``path`` at the end, removed after an error.

    >>> with replacing("a.txt") as temporary:
    ...     temporary.write_text("whole or not at all")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole file as UTF-8 with newlines as they are."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def plain_name(name: object, source: str | Path) -> str:
    """The name of a file or folder that a file gives: one component, and the same one on every system.

    Nothing that a file says may lead out of the folder that it speaks of, so every such name goes through here.

    Args:
        source: the file that says it, for the message.

    Raises:
        CheckpointError: no text, empty, a path, ``..``, or with characters that are special somewhere.
    """
    if not isinstance(name, str) or not name:
        problem = "is no name of a file"
    elif name.rstrip(" .") != name:  # Windows drops them; . and .. are no names anywhere
        problem = "ends in a dot or a space"
    elif special := "".join(sorted(_RESERVED & set(name))):
        problem = f"holds {special}"
    elif not name.isprintable():
        problem = "holds characters that cannot be seen"
    elif name.split(".")[0].rstrip(" ").lower() in _DEVICES:
        problem = "is a device on Windows"
    elif len(name.encode()) > LONGEST:
        problem = f"is longer than {LONGEST} bytes"
    else:
        return name
    raise CheckpointError(f"{source}: {str(name)[:80]!r} {problem}; expected the plain name of a file beside it")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        CheckpointError: it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of text, of JSON, of numbers with too many digits, of depth
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
