"""JSON of another form than expected, for readers of files that others made."""

from collections.abc import Iterator
from typing import Any

STRANGE = (None, True, 3, "x", [], {}, [[]], [{"a": []}], {"a": [1]})


def variants(value: Any) -> Iterator[Any]:
    """The value with each thing in it replaced by each of ``STRANGE``."""
    yield from STRANGE
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, item in items:
        for other in variants(item):
            yield value | {key: other} if isinstance(value, dict) else [*value[:key], other, *value[key + 1 :]]
