"""Limits on what reading a stranger's file may take, where only the reading itself shows it.

Sizes that a file claims are compared with the bytes that are there, where the file is read. Some files are small programs,
though, such as a tokenizer's rules that rewrite text. ``tried`` runs such a reading first in a process of its own, a
copy of this one, so that it starts in milliseconds with everything imported. (Chat templates are rendered for as long as
a command runs; families/huggingface/rendering.py is a process for them.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from hanmo.errors import CheckpointError

MEMORY = 800 << 20  # bytes beyond what the process has
SECONDS = 5  # of processor time; a crowded machine must not make an honest file look like a trap
SECONDS_PER_MB = 3  # more: a vocabulary of 250,000 words takes a second for each MB of its file
MEMORY_PER_BYTE = 50  # more: such a vocabulary takes as much
WAIT = 60  # seconds in all, and ten for each second of processor time that a large file has more
_MEMORY_ENDED = 3  # exit status


def tried(task: Callable[[], object], what: str, size: int = 0) -> None:
    """Do ``task`` in a copy of this process, to see that it ends within the limits; its result and its errors are lost.

    Where the system has no such copies (Windows), nothing is tried.

    Args:
        size: bytes of the files that are read; the limits grow with it.

    Raises:
        CheckpointError: it took too much memory or time, or it crashed; ``what`` names the file.
    """
    if not hasattr(os, "fork"):
        return
    seconds = SECONDS + SECONDS_PER_MB * (size >> 20)
    memory = MEMORY + MEMORY_PER_BYTE * size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this process has threads: the copy has none, and does without
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
    """The status with which a child ends, or None if it does not in time."""
    start, pause = time.monotonic(), 0.001
    while time.monotonic() - start < seconds:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return status
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)
    return None


def _try(task: Callable[[], object], seconds: int, memory: int) -> NoReturn:
    """The copy's part: it ends here, whatever happens."""
    import resource

    status = 0
    try:
        os.setpgid(0, 0)  # Ctrl-C is for the parent, which ends this process
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        limit_memory(memory)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        task()
    except BaseException as error:  # the parent meets the same, and tells it
        status = _MEMORY_ENDED if _of_memory(error) else 0
    finally:
        os._exit(status)


def limit_memory(more: int) -> None:
    """Limit this process to so many bytes more than it has, where the system counts them (Linux does, macOS does not)."""
    import resource

    with contextlib.suppress(OSError, ValueError):
        data = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (data + more, data + more))


def _of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised for, is a lack of memory."""
    while error is not None:
        if isinstance(error, MemoryError) or "alloc" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False
