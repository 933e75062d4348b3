"""Limits on memory and time for reading untrusted files that are small programs, such as a tokenizer's rewriting rules.

Such a file is first read in a forked process, which starts within milliseconds; families/huggingface/templates.py has a
long-lived process instead.
"""

import contextlib
import os
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from hanmo.errors import CheckpointError

MEMORY = 800 << 20  # bytes beyond what the process already uses
SECONDS = 5  # of processor time, not wall-clock time: a busy machine must not fail a harmless file
SECONDS_PER_MB = 3  # added: a vocabulary of 250,000 words takes a second for each MB of its file
MEMORY_PER_BYTE = 50  # added: such a vocabulary takes this much
WAIT = 60  # seconds of wall-clock time; ten more for each second of processor time that a large file adds
_MEMORY_ENDED = 3  # exit status


def run_within_limits(task: Callable[[], object], what: str, size: int = 0) -> None:
    """Check in a forked process (not on Windows) that ``task`` ends within the limits; discard its result and errors.

    The limits grow with ``size``, the bytes that are read. CheckpointError, beginning with ``what``, if ``task`` exceeds
    the memory or the time, or crashes.
    """
    if not hasattr(os, "fork"):
        return
    seconds = SECONDS + SECONDS_PER_MB * (size >> 20)
    memory = MEMORY + MEMORY_PER_BYTE * size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning about threads, which the child neither has nor needs
        process = os.fork()
    if process == 0:
        _try(task, seconds, memory)
    status = None
    try:
        status = _ended(process, WAIT + 10 * (seconds - SECONDS))
    finally:
        if status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
    if status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)):
        raise CheckpointError(f"{what}: takes more than {seconds} seconds to read, which no honest file does; refused")
    if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == _MEMORY_ENDED:
        raise CheckpointError(f"{what}: takes more than {memory >> 20} MB of memory to read, or crashes; refused")


def _ended(process: int, seconds: int) -> int | None:
    """The exit status of a child, or None if it does not end within ``seconds`` of wall-clock time."""
    start, pause = time.monotonic(), 0.001
    while time.monotonic() - start < seconds:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return status
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)
    return None


def _try(task: Callable[[], object], seconds: int, memory: int) -> NoReturn:
    """Run the task in the forked process, which ends here."""
    import resource

    status = 0
    try:
        os.setpgid(0, 0)  # so that Ctrl-C reaches the parent only, which then ends this process
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        limit_memory(memory)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        task()
    except BaseException as error:  # the parent will meet the same error and report it
        status = _MEMORY_ENDED if _of_memory(error) else 0
    finally:
        os._exit(status)


def limit_memory(more: int) -> None:
    """Limit this process to ``more`` bytes beyond its present size, where the system enforces it (Linux; not macOS)."""
    import resource

    with contextlib.suppress(OSError, ValueError):
        data = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (data + more, data + more))


def _of_memory(error: BaseException | None) -> bool:
    """Whether an error or one of its causes is that memory ran out."""
    while error is not None:
        if isinstance(error, MemoryError) or "alloc" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False
