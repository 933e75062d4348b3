"""Running the program on hostile files: each in a copy of this process, so that thousands cost milliseconds, within limits.

    outcome = run(lambda: command("inspect", folder), canary=folder / "executed")
    assert outcome.kind == "message"

A copy starts with everything imported. It may be ended by its limits or crash; what it printed, how it ended and how much
memory it took beyond what it began with is the outcome.
"""

import contextlib
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hanmo import families
from hanmo.cli import main
from hanmo.errors import HanmoError

SECONDS = 10  # of processor time
MEMORY = 1 << 30  # bytes more than at the start
FUSE = 3 << 30  # bytes at which the system stops a copy, before the machine suffers
WAIT = 90  # seconds in all, for a crowded machine
for _family in (*families.OURS, families.TRANSFORMERS):
    families.load(_family)  # once here, not in every copy


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        kind: "fine": it did what it was asked; "message": it said what is wrong with the file, and no more; "traceback";
            "hung": it took more than its time; "memory": more than its memory; "crashed": by a signal; "executed": the
            file's own code has run, whatever else happened.
        printed: on standard output and standard error.
    """

    kind: str
    printed: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.printed[-2000:]}"


def command(*arguments: object) -> None:
    """``hanmo`` with these arguments, in this process."""
    sys.argv = ["hanmo", *map(str, arguments)]
    main()


def run(action: Callable[[], Any], canary: Path) -> Outcome:
    """The outcome of an action that reads hostile files.

    Args:
        canary: a file that the hostile file's own code would make.
    """
    with tempfile.TemporaryFile() as printed, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads of this process are not in the copy, and are not needed there
        sys.stdout.flush()
        sys.stderr.flush()
        began, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(tell, str(resident()).encode())
            _act(action, printed.fileno())
        os.close(tell)
        status, most = _wait(child)
        with os.fdopen(began) as told:
            peak = most - int(told.read() or most)
        printed.seek(0)
        text = printed.read().decode("utf-8", "replace")
    return Outcome("executed" if canary.exists() else _kind(status, peak, text), text)


def _act(action: Callable[[], Any], printed: int) -> None:
    """The copy's part; it ends here."""
    code = 70
    try:
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDONLY)
        for stream, target in ((0, null), (1, printed), (2, printed)):
            os.dup2(target, stream)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode) for n, mode in ((0, "r"), (1, "w"), (2, "w")))
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        data = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (data + FUSE, data + FUSE))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        action()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except HanmoError as error:
        print(f"hanmo: {error}")
        code = 2
    except BaseException:
        traceback.print_exc(file=sys.stdout)
    finally:
        for flushed in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                flushed.flush()
        os._exit(code)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _wait(child: int) -> tuple[int, int]:
    """How a copy ended, and the most memory that it or a process of its own had."""
    start, ended = time.monotonic(), 0
    while not ended:
        if time.monotonic() - start > WAIT:
            os.killpg(child, signal.SIGXCPU)
        ended, status, usage = os.wait4(child, os.WNOHANG)
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it may have left running
    return status, usage.ru_maxrss * 1024


def _kind(status: int, peak: int, text: str) -> str:
    if peak > MEMORY:
        return "memory"
    if os.WIFSIGNALED(status):
        return "hung" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) else "crashed"
    if "Traceback" in text or os.WEXITSTATUS(status) == 70:
        return "traceback"
    return "fine" if os.WEXITSTATUS(status) == 0 else "message"
