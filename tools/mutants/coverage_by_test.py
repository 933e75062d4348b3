"""A pytest plugin: which lines of the modules under mutation each test executes, and how long each test takes.

Used by ``python -m tools.mutants``; needs MUTANTS_COVERAGE, a folder for its two files, and MUTANTS_SOURCES, a list of
files separated by commas.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest

_FOLDER = Path(os.environ["MUTANTS_COVERAGE"])
_LINES = coverage.Coverage(
    data_file=str(_FOLDER / "lines"), include=os.environ["MUTANTS_SOURCES"].split(","), config_file=False
)
_seconds: dict[str, float] = {}
_failed: list[str] = []
EVERY = 50  # tests after which what is known is written
_LINES.start()  # before the modules are imported


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    """Everything from a test's fixtures to its end counts as its own."""
    _LINES.switch_context(item.nodeid)
    done = yield
    if len(_seconds) % EVERY == 0:
        _save()
    return done


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[report.nodeid] = _seconds.get(report.nodeid, 0.0) + report.duration
    if report.outcome != "passed":
        _failed.append(report.nodeid)


def pytest_unconfigure() -> None:
    _LINES.stop()
    _save()


def _save() -> None:
    _LINES.save()
    passed = {nodeid: round(seconds, 3) for nodeid, seconds in _seconds.items() if nodeid not in set(_failed)}
    (_FOLDER / "seconds.json").write_text(json.dumps(passed, ensure_ascii=False, indent=0), encoding="utf-8")
