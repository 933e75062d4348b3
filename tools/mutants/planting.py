"""A pytest plugin: all tests are collected once; then each fault is planted in a fork, which runs its tests.

Used by ``python -m tools.mutants`` in a copy of the tree. MUTANTS_WANTED names a JSON file of faults with their tests,
MUTANTS_OUTCOMES the file that outcomes are added to, a JSON line each.

The fault goes into the functions that are loaded already, wherever they have been imported to, and into the file, for
processes that the tests start. Nothing but the tests' own time is spent on a fault.
"""

import contextlib
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

_WANTED, _OUTCOMES = Path(os.environ["MUTANTS_WANTED"]), Path(os.environ["MUTANTS_OUTCOMES"])
UNPLANTED = "cannot be planted:"


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    items = {item.nodeid: item for item in session.items}
    loaded = _loaded()
    end = time.monotonic() + float(os.environ.get("MUTANTS_SECONDS", "inf"))
    for wanted in json.loads(_WANTED.read_text(encoding="utf-8")):
        if time.monotonic() > end:
            break
        started = time.monotonic()
        tests = [items[nodeid] for nodeid in wanted["tests"] if nodeid in items]
        outcome, by = _plant(wanted, tests, loaded) if tests else ("survived", "no fast test executes it")
        spent = round(time.monotonic() - started, 1)
        known = {"key": wanted["key"], "outcome": outcome, "by": by, "tests": len(tests), "seconds": spent}
        with _OUTCOMES.open("a", encoding="utf-8") as file:
            file.write(json.dumps(known, ensure_ascii=False) + "\n")
        print(f"{wanted['said']}\n    {outcome}: {by} ({len(tests)} tests, {spent} s)", file=sys.stderr, flush=True)
    return True


def _plant(
    wanted: dict[str, Any], tests: list[pytest.Item], loaded: dict[tuple[str, str], list[FunctionType]]
) -> tuple[str, str]:
    path = Path(wanted["path"])
    source, stamp = path.read_bytes(), path.stat()
    changed = source[: wanted["start"]] + wanted["text"].encode() + source[wanted["end"] :]
    path.write_bytes(changed)
    answer = _OUTCOMES.with_name("answer")
    answer.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        _test(lambda: _replace(path.resolve(), changed, wanted["scope"], loaded), tests, answer)
    try:
        if not _ended(child, wanted["limit"]):
            return "killed", "time"
        failed = answer.read_text(encoding="utf-8") if answer.is_file() else "the process ended"
        if failed.startswith(UNPLANTED):
            return "invalid", failed
        return ("killed", failed) if failed else ("survived", "all tests pass")
    finally:
        path.write_bytes(source)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # its compiled form is still right


def _ended(child: int, limit: float) -> bool:
    """Whether a child ends within the limit; it and what it started are gone in any case."""
    deadline, ended = time.monotonic() + limit, False
    while not ended and time.monotonic() < deadline:
        ended = os.waitpid(child, os.WNOHANG)[0] == child
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if not ended:
        os.waitpid(child, 0)
    return ended


def _test(replace: Callable[[], None], tests: list[pytest.Item], answer: Path) -> None:
    """In the child: the tests until one fails, whose name is the answer; never returns."""
    os.setpgid(0, 0)
    try:
        replace()
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silence, stream)
        failed = ""
        for place, item in enumerate(tests):
            following = tests[place + 1] if place + 1 < len(tests) else None
            reports = _reports(item, following)
            if any(report.failed for report in reports):
                failed = item.nodeid
                break
        answer.write_text(failed, encoding="utf-8")
    except _UnplantedError as error:
        answer.write_text(f"{UNPLANTED} {error}", encoding="utf-8")
    except BaseException as error:  # also what a test lets through, such as SystemExit
        answer.write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
    finally:
        os._exit(0)


def _reports(item: pytest.Item, following: pytest.Item | None) -> list[pytest.TestReport]:
    from _pytest.runner import runtestprotocol

    return runtestprotocol(item, log=False, nextitem=following)


def _loaded() -> dict[tuple[str, str], list[FunctionType]]:
    """The functions that are loaded, by file and qualified name, wherever they have been imported to."""
    found: dict[tuple[str, str], list[FunctionType]] = {}
    for one in gc.get_objects():
        if type(one) is FunctionType:
            found.setdefault((one.__code__.co_filename, one.__code__.co_qualname), []).append(one)
    return found


def _replace(path: Path, changed: bytes, scope: str, loaded: dict[tuple[str, str], list[FunctionType]]) -> None:
    """Give every loaded function of this name in this file the code that the changed file has for it.

    A file that no test imports at its beginning is read when one needs it, with the fault.

    Raises:
        _UnplantedError: there is no such function, or the fault takes away a variable of the function around it.
    """
    code = next((one for one in _codes(compile(changed, str(path), "exec")) if one.co_qualname == scope), None)
    functions = loaded.get((str(path), scope), [])
    if code is None or (not functions and any(file == str(path) for file, _ in loaded)):
        raise _UnplantedError(f"{path}: no function {scope}")
    try:
        for function in functions:
            function.__code__ = code
    except ValueError as error:
        raise _UnplantedError(str(error)) from error


class _UnplantedError(Exception):
    pass


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)
