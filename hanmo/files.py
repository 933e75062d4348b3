"""Atomic writing of files, strictly valid JSON, data files of packages, checks of file names in untrusted files."""

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from hanmo.errors import CheckpointError, NotANumberError

LONGEST = 255  # bytes of a name that every file system takes
_RESERVED = frozenset('<>:"/\\|?*')  # separators, drive letters, streams and patterns, of any system
_DEVICES = {"con", "prn", "aux", "nul"} | {f"{port}{number}" for port in ("com", "lpt") for number in range(10)}


def package_yaml(package: str, name: str) -> Any:
    """The content of a YAML file that lies in a package of hanmo."""
    import yaml

    return yaml.safe_load(files(package).joinpath(name).read_text(encoding="utf-8"))


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; it is renamed to ``path`` at the end, removed after an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # a full disk names none
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def system_errors() -> Iterator[None]:
    """Raise an OSError for an error of the system, such as a full disk, that native code raises as something else."""
    try:
        yield
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if isinstance(error, OSError) or number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def write_text(path: str | Path, text: str) -> None:
    """Write a whole file as UTF-8 with newlines as they are."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def json_text(value: Any, indent: int | None = None) -> str:
    """Valid JSON, Chinese as it is. NotANumberError for NaN and infinity; ``or_null`` takes them out."""
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    except ValueError:
        path = next(_not_finite(value, "the result"), None)
        if path is None:
            raise
        problem = "which JSON cannot express and no result should be; please report how it arose"
        raise NotANumberError(f"{path}, {problem}") from None


_DECODER = json.JSONDecoder()
_MAY_BE_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a character beyond U+FFFF, which JSON writes as a pair
_HALF = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)


def data_of(text: str) -> Any:
    """The value of JSON text whose strings must be text: half of a character, such as ``\\ud83d`` alone, is none.

    JSONDecodeError for that, for no JSON, for what is nested too deeply, and for a number of thousands of digits.
    """
    value, end = data_at(text, len(text) - len(text.lstrip(" \t\r\n")))
    if text[end:].strip(" \t\r\n"):
        raise json.JSONDecodeError("Extra data", text, end)
    check_characters(value, text)
    return value


def data_at(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at ``start``, its characters unchecked, and where it ends; raises as ``data_of``."""
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", text, start) from None
    except ValueError as error:  # Python refuses to compute numbers of more than 4,300 digits
        raise json.JSONDecodeError(str(error).partition(";")[0], text, start) from None


def check_characters(value: Any, text: str, start: int = 0, end: int | None = None) -> None:
    """Check a value that was read from ``text[start:end]``; see ``data_of``."""
    if _MAY_BE_HALF.search(text, start, len(text) if end is None else end) is None:
        return
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=True).encode("utf-8")
    except UnicodeEncodeError:
        place = _HALF.search(text, start)
        problem = f"{place.group() if place else 'a surrogate'} alone is half of a character"
        raise json.JSONDecodeError(problem, text, place.start() if place else start) from None


def or_null(value: Any) -> Any:
    """A copy with None (null in JSON) in place of every number that is not finite."""
    if isinstance(value, dict):
        return {key: or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _not_finite(value: Any, path: str) -> Iterator[str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield from _not_finite(item, f"{path}[{key!r}]")
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{path} is {value}"


def plain_name(name: object, source: str | Path) -> str:
    """The name of a file or folder in the file ``source``; CheckpointError unless it is a plain name on every system."""
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
    """The object in a JSON file, which may hold NaN and infinity, as transformers writes some; or a CheckpointError."""
    try:
        content = json.loads(text := path.read_text(encoding="utf-8"))
        check_characters(content, text)
    except (ValueError, RecursionError) as error:  # of text, of JSON, of numbers with too many digits, of depth
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
