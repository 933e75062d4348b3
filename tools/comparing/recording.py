"""A pytest plugin: of every test its outcome, and every bit of what it compares with a tolerance or as whole tensors.

Needs COMPARE_RECORDS, a folder. A test that compares with ``==`` needs no record: that it passes says what it had. Tests of
hypothesis have their outcome alone, because hypothesis also draws from the constants that it finds in the source.
"""

import functools
import json
import math
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from .hashes import digest

FUNCTIONS = {
    torch: ("equal", "allclose"),
    torch.testing: ("assert_close",),
    torch.Tensor: ("__sub__", "__rsub__"),  # (ours - theirs).abs().max() < TOLERANCE
    math: ("isclose",),
    np: ("array_equal", "allclose"),
    np.testing: ("assert_array_equal", "assert_allclose", "assert_equal", "assert_almost_equal", "assert_array_almost_equal"),
}  # fmt: skip
_FILE = Path(os.environ["COMPARE_RECORDS"]) / f"{os.environ.get('PYTEST_XDIST_WORKER', 'main')}.jsonl"
_TESTS = str(Path.cwd() / "tests") + os.sep  # comparisons inside the program are its own business
_calls: list[str] = []


def _recorded(name: str, function: Any) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if sys._getframe(1).f_code.co_filename.startswith(_TESTS):
            one, other = (*args, *kwargs.values())[:2]
            _calls.append(f"{name} {digest(one)} {digest(other)}")
        return function(*args, **kwargs)

    return call


for _module, _names in FUNCTIONS.items():
    for _name in _names:  # before any test imports them
        setattr(_module, _name, _recorded(_name, getattr(_module, _name)))


def _record_approx() -> None:
    """``actual == pytest.approx(expected)``: the actual side."""
    kinds = {type(pytest.approx(value)) for value in (1.0, [1.0], {"a": 1.0}, np.ones(1))}
    for kind in kinds:
        compare = kind.__eq__

        def equal(self: Any, actual: Any, compare: Any = compare) -> Any:
            _calls.append(f"approx {digest(actual)}")
            return compare(self, actual)

        kind.__eq__ = equal


_record_approx()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    _calls.clear()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)  # a test may draw without a seed
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[object]:
    report: Any = yield
    if report.when == "call" or report.outcome != "passed":
        draws = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr or "")[-300:]
        entry = {"test": item.nodeid, "when": report.when, "outcome": report.outcome, "said": said}
        _write(entry | {"calls": [] if draws else list(_calls)})
    return report


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _write({"test": report.nodeid, "when": "collect", "outcome": "failed", "said": str(report.longrepr)[-300:], "calls": []})  # fmt: skip


def _write(entry: dict[str, Any]) -> None:
    with _FILE.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
