"""A table of the recorded cases: family, kind of case (or CLUE task), passed of all, and the largest difference seen.

    python -m pytest tests/parity -p tests.parity.table

A plugin of pytest's. It notes every difference that the tests compare with a tolerance: those of torch's assert_close,
of pytest's approx, and of a tensor that is asked to be less than a small number.
"""

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from hanmo.evaluation.suites.clue.tasks import all_tasks

FAMILIES = ("eva", "transformer_xl", "pangu", "glm", "clue", "data", "rl")
SMALL = 0.01  # no tolerance of ours is larger
ApproxScalar: Any = type(pytest.approx(1.0))  # moves from one private module to another
_now = 0.0  # the largest difference of the test that is running


def _note(difference: float) -> None:
    global _now
    if difference == difference and difference < SMALL:  # others are meant to differ, or fail anyway
        _now = max(_now, difference)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_KEY] = defaultdict(lambda: [0, 0, 0.0])
    equal, less, close = ApproxScalar.__eq__, Tensor.__lt__, torch.testing.assert_close

    def noting_equal(self: Any, actual: Any) -> bool:
        result = equal(self, actual)
        if result and isinstance(actual, int | float) and isinstance(self.expected, int | float):
            _note(abs(float(actual) - float(self.expected)))
        return result

    def noting_less(self: Tensor, other: Any) -> Any:
        result = less(self, other)
        if isinstance(other, float) and other <= SMALL and self.numel() == 1 and bool(result):
            _note(float(self))
        return result

    def noting_close(actual: Any, expected: Any, **tolerances: Any) -> None:
        close(actual, expected, **tolerances)
        if isinstance(actual, Tensor) and actual.is_floating_point() and actual.numel():
            apart = (actual.double() - torch.as_tensor(expected).double()).abs()
            _note(float(apart[apart.isfinite()].max()) if bool(apart.isfinite().any()) else 0.0)

    ApproxScalar.__eq__ = noting_equal
    Tensor.__lt__ = noting_less  # type: ignore[assignment]
    torch.testing.assert_close = noting_close


_KEY = pytest.StashKey[dict[tuple[str, str], list[Any]]]()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    global _now
    report = (yield).get_result()
    if call.when != "call":
        return
    module = item.path.stem.removeprefix("test_")
    family = next((name for name in FAMILIES if module.startswith(f"{name}_")), "several")
    kind = module.removeprefix(f"{family}_").replace("_", " ")
    cell = item.config.stash[_KEY][family, _task(item) or kind]
    cell[0] += report.passed
    cell[1] += 1
    cell[2] = max(cell[2], _now)
    _now = 0.0


def _task(item: pytest.Item) -> str:
    """The CLUE task that a test was given, by its name or in its case; "" where it is about none."""
    given = item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
    named = [value.get("task") if isinstance(value, dict) else value for value in given]
    return next((name for name in named if isinstance(name, str) and name in all_tasks()), "")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    write = terminalreporter.write_line
    write("| family | kind | passed | of | largest difference |")
    write("| --- | --- | --- | --- | --- |")
    for (family, kind), (passed, total, largest) in sorted(config.stash[_KEY].items()):
        write(f"| {family} | {kind} | {passed} | {total} | {f'{largest:.1e}' if largest else 'exact'} |")
