"""How much work something is, counted and not timed: the same on every machine, however busy it is."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Calls:
    """The number of calls of functions, Python's and C's."""

    count = 0

    def _called(self, frame: Any, event: str, argument: Any) -> None:
        self.count += event in ("call", "c_call")


@contextmanager
def counted_calls() -> Iterator[Calls]:
    """Counts the calls of this thread until the block ends."""
    calls = Calls()
    before = sys.getprofile()
    sys.setprofile(calls._called)
    try:
        yield calls
    finally:
        sys.setprofile(before)


@contextmanager
def counted_files(*readers: Callable[..., Any]) -> Iterator[Counter[Path]]:
    """How often these functions are called for each file, their first argument, in this thread until the block ends."""
    codes = {reader.__code__ for reader in readers}  # type: ignore[attr-defined]
    reads: Counter[Path] = Counter()

    def called(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in codes:
            reads[Path(frame.f_locals[frame.f_code.co_varnames[0]])] += 1

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        yield reads
    finally:
        sys.setprofile(before)
