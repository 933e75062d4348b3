"""Functions that judge replies, by their names; what they return is checked, and they are watched while they compute.

``verify:number`` names a verifier, ``module:function`` and ``file.py:function`` a function of the user.
"""

import inspect
import math
import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

from hanmo.config import named_function
from hanmo.errors import ConfigError, HanmoError, quoted
from hanmo.verify import Record, Scores, verifier

SHIPPED = "verify:"
_FUNCTION = re.compile(r"(?:[A-Za-z_][\w.]*|.+\.py):[A-Za-z_]\w*")

Judge = Callable[[Sequence[str], Sequence[str], Sequence[Record]], Any]


class JudgeError(HanmoError):
    """A function failed on replies; ``place``: on which, if that is known."""

    def __init__(self, problem: str, place: int | None = None):
        super().__init__(problem)
        self.problem, self.place = problem, place


class _TimeUp(BaseException):
    """Raised in a function that takes too long; no ``except Exception`` of the function's catches it."""


def names_function(name: str) -> bool:
    """Whether a name is a function's, and not a folder's."""
    return name.startswith(SHIPPED) or (_FUNCTION.fullmatch(name) is not None and not Path(name).exists())


def runs_code(name: str) -> bool:
    """Whether a function says of itself that it runs the code of replies: ``function.runs_code = True``."""
    return not name.startswith(SHIPPED) and bool(getattr(named_function(name, "rewards"), "runs_code", False))


def load_judge(name: str, options: Mapping[str, Any]) -> Judge:
    """The function of this name with its options, called with prompts, replies and records.

    A function of the user gets the records if it has a parameter ``records`` or a third one without a default.

    Raises:
        ConfigError: there is no such function, or it cannot be called so.
        UnsupportedError: a verifier's package is missing.
    """
    if name.startswith(SHIPPED):
        return verifier(name.removeprefix(SHIPPED), **options)
    function = named_function(name, "rewards")
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a function written in C
        return lambda prompts, replies, records: function(prompts, replies, **options)
    placed = [one for one in parameters.values() if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    third = placed[2] if len(placed) > 2 else None
    by_place = third is not None and third.default is third.empty and third.name not in options
    by_name = not by_place and "records" in parameters
    more: list[Any] = [[]] if by_place else []
    try:
        inspect.signature(function).bind([], [], *more, **({"records": []} if by_name else {}), **options)
    except TypeError as error:
        expected = "expected a function of (prompts, replies) or (prompts, replies, records), and of the options given"
        raise ConfigError(f"rewards: {name}: {error}; {expected}") from None

    def judge(prompts: Sequence[str], replies: Sequence[str], records: Sequence[Record]) -> Any:
        if by_place:
            return function(prompts, replies, records, **options)
        return function(prompts, replies, **({"records": records} if by_name else {}), **options)

    return judge


def judged(judge: Judge, prompts: Sequence[str], replies: Sequence[str], records: Sequence[Record]) -> Scores:
    """The numbers, or None, that a function gives to replies; JudgeError if it raises or gives anything else."""
    count = len(replies)  # before the call, which may change the list
    try:
        return _checked(judge(prompts, replies, records), count)
    except JudgeError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, HanmoError):
            raise JudgeError(str(error)) from error
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise JudgeError(f"{type(error).__name__}: {quoted(error)} ({last.filename}:{last.lineno})") from error


def _checked(values: Any, count: int) -> Scores:
    if isinstance(values, str | Mapping) or not hasattr(values, "__iter__"):
        raise JudgeError(f"gives {type(values).__name__}; expected a list with a number or None for every reply")
    found = list(islice(values, count + 1))  # a generator may not end
    if len(found) != count:
        given = len(values) if hasattr(values, "__len__") else "more" if len(found) > count else len(found)
        raise JudgeError(f"gives {given} values for {count} replies")
    scores: Scores = []
    for place, value in enumerate(found):
        try:
            score = None if value is None else math.nan if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError, OverflowError):
            score = math.nan
        if score is not None and not math.isfinite(score):
            raise JudgeError(f"gives {value!r:.40}; expected a finite number or None for every reply", place)
        scores.append(score)
    return scores


def can_interrupt() -> bool:
    """Whether a function of this thread can be interrupted: on Unix, in the main thread."""
    return hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()


def judged_in_time(
    judge: Judge, prompts: Sequence[str], replies: Sequence[str], records: Sequence[Record], seconds: float
) -> Scores:
    """``judged``, interrupted after so many seconds by a JudgeError.

    What computes in C for long and looks for no signals is not interrupted; a process of its own is (``process.py``).
    """
    try:
        with _alarm(seconds):
            return judged(judge, prompts, replies, records)
    except _TimeUp:
        raise JudgeError(too_long(seconds)) from None


def too_long(seconds: float) -> str:
    return f"gives no answer within {seconds:g} seconds (reward_seconds)"


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise ``_TimeUp`` in the block after so many seconds, and every second from then on."""

    def ring(number: int, frame: FrameType | None) -> None:
        if waiting:
            raise _TimeUp

    waiting = True
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        try:
            yield
        finally:
            waiting = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
