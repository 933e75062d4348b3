"""A pytest plugin: all tests are collected once; then each fault is planted in a fork, which runs its tests.

Used by ``python -m tools.mutants`` in a copy of the tree. MUTANTS_WANTED names a JSON file of faults with their tests,
MUTANTS_OUTCOMES the file that outcomes are added to, a JSON line each.

The fault goes into the functions that are loaded already, wherever they have been imported to, and into the file, for
processes that the tests start. Nothing but the tests' own time is spent on a fault.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

_WANTED, _OUTCOMES = Path(os.environ["MUTANTS_WANTED"]), Path(os.environ["MUTANTS_OUTCOMES"])


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    items = {item.nodeid: item for item in session.items}
    end = time.monotonic() + float(os.environ.get("MUTANTS_SECONDS", "inf"))
    for wanted in json.loads(_WANTED.read_text(encoding="utf-8")):
        if time.monotonic() > end:
            break
        started = time.monotonic()
        tests = [items[nodeid] for nodeid in wanted["tests"] if nodeid in items]
        outcome, by = _plant(wanted, tests) if tests else ("survived", "no fast test executes it")
        spent = round(time.monotonic() - started, 1)
        known = {"key": wanted["key"], "outcome": outcome, "by": by, "tests": len(tests), "seconds": spent}
        with _OUTCOMES.open("a", encoding="utf-8") as file:
            file.write(json.dumps(known, ensure_ascii=False) + "\n")
        print(f"{wanted['said']}\n    {outcome}: {by} ({len(tests)} tests, {spent} s)", file=sys.stderr, flush=True)
    return True


def _plant(wanted: dict[str, Any], tests: list[pytest.Item]) -> tuple[str, str]:
    path = Path(wanted["path"])
    source, stamp = path.read_bytes(), path.stat()
    changed = source[: wanted["start"]] + wanted["text"].encode() + source[wanted["end"] :]
    path.write_bytes(changed)
    answer = _OUTCOMES.with_name("answer")
    answer.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        _test(path, changed, wanted["scope"], tests, answer)
    try:
        if not _ended(child, wanted["limit"]):
            return "killed", "time"
        failed = answer.read_text(encoding="utf-8") if answer.is_file() else "the process ended"
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


def _test(path: Path, changed: bytes, scope: str, tests: list[pytest.Item], answer: Path) -> None:
    """In the child: the tests until one fails, whose name is the answer; never returns."""
    os.setpgid(0, 0)
    try:
        _replace(path.resolve(), changed, scope)
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
    except BaseException as error:
        answer.write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
    finally:
        os._exit(0)


def _reports(item: pytest.Item, following: pytest.Item | None) -> list[pytest.TestReport]:
    from _pytest.runner import runtestprotocol

    return runtestprotocol(item, log=False, nextitem=following)


def _replace(path: Path, changed: bytes, scope: str) -> None:
    """Give every loaded function of this name in this file the code that the changed file has for it.

    Raises:
        LookupError: there is no such function: the fault would not be planted.
    """
    code = next((one for one in _codes(compile(changed, str(path), "exec")) if one.co_qualname == scope), None)
    loaded = [
        one for one in gc.get_objects()
        if isinstance(one, FunctionType) and one.__code__.co_qualname == scope
        and Path(one.__code__.co_filename).resolve() == path
    ]  # fmt: skip
    if code is None or not loaded:
        raise LookupError(f"{path}: no function {scope}")
    for function in loaded:
        function.__code__ = code


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)
