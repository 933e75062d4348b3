"""How much work something is, counted and not timed: the same on every machine, however busy it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
