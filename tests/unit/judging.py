"""Functions that judge replies, well and badly, which tests name as rewards."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

Records = Sequence[dict[str, Any]]
BAD = "坏"  # what a reply holds on which the bad ones fail


def wanted(prompts: Sequence[str], replies: Sequence[str], records: Records) -> list[float]:
    """1 for replies that contain the character that their record wants."""
    return [float(record["wanted"] in reply) for reply, record in zip(replies, records, strict=True)]


def third(prompts: Sequence[str], replies: Sequence[str], rows: Records, *, times: float = 1.0) -> list[float]:
    return [times * row["level"] for row in rows]


def by_name(prompts: Sequence[str], replies: Sequence[str], times: float = 1.0, *, records: Records) -> list[float]:
    return [times * record["level"] for record in records]


def two(prompts: Sequence[str], replies: Sequence[str], times: float = 1.0) -> list[float]:
    return [times * len(prompt + reply) for prompt, reply in zip(prompts, replies, strict=True)]


def only_hard(prompts: Sequence[str], replies: Sequence[str], records: Records) -> list[float | None]:
    """The level of hard records; easy ones it does not judge."""
    return [record["level"] if record["level"] > 1 else None for record in records]


def spoils(prompts: list[str], replies: list[str], records: Records) -> list[float]:
    """Changes what it is given."""
    scores = [float(len(record["list"])) for record in records]
    for record in records:
        record["list"].clear()
    replies.clear()
    return scores


def hangs(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    while any(BAD in reply for reply in replies):
        with suppress(Exception):  # does not catch the watchdog
            time.sleep(0.01)
    return [1.0] * len(replies)


def slow(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    time.sleep(0.05 * len(replies))
    return [1.0] * len(replies)


def raises(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    return [1 / (BAD not in reply) for reply in replies]


def leaves(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    if any(BAD in reply for reply in replies):
        sys.exit("leaving")
    return [1.0] * len(replies)


def crashes(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    print("printed, and not an answer")
    if any(BAD in reply for reply in replies):
        os._exit(7)
    return [1.0] * len(replies)


def forgets(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    return [1.0 for reply in replies if BAD not in reply]


def never_ends(prompts: Sequence[str], replies: Sequence[str]) -> Iterator[float]:
    return (1.0 for _ in count())


def texts(prompts: Sequence[str], replies: Sequence[str]) -> list[Any]:
    return ["1.0" if BAD in reply else 1.0 for reply in replies]


def nan(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    return [float("nan") if BAD in reply else 1.0 for reply in replies]


def one_number(prompts: Sequence[str], replies: Sequence[str]) -> float:
    return 1.0


def process_number(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    return [float(os.getpid())] * len(replies)


def runs_replies(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    """Says of itself that it runs code."""
    return process_number(prompts, replies)


runs_replies.runs_code = True  # type: ignore[attr-defined]
