"""Processes that tests start: none outlives its test, and none inherits which signals the caller ignores.

A suite started in the background, under nohup or by some CI systems hands SIGINT down as ignored; a process of a test
begins with the signals' defaults all the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 600  # seconds; more than any process of a test needs on a busy machine
POLL = 0.02
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _begin() -> None:
    """In the new process, before its program: default signals, and its end when the suite's process ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def started(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process with text streams; it, and all that it started, is gone when the block ends, whatever ends it.

    Args:
        command: the program and its arguments.
        options: of ``subprocess.Popen``.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "Linux ends such a process when the thread that started it ends: start it in the main thread"
        )
    options = {"text": True, "encoding": "utf-8", **options}
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=_begin, **options)
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a process, what it started (also in sessions of their own, as torchrun's are), and what these left."""
    left: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        left = psutil.Process(process.pid).children(recursive=True)
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the orphans of its session
    if process.poll() is None:
        process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def run(
    command: Sequence[str | Path],
    *,
    input: str | None = None,
    check: bool = False,
    capture_output: bool = True,
    timeout: float = LIMIT,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` with text streams, captured, for a process as ``started`` makes it.

    Raises:
        subprocess.TimeoutExpired: it took longer than ``timeout`` seconds; it has been killed.
        subprocess.CalledProcessError: ``check``, and it failed.
    """
    if capture_output:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    options.setdefault("stdin", subprocess.DEVNULL if input is None else subprocess.PIPE)
    with started(command, **options) as process:
        output, errors = process.communicate(input, timeout=timeout)
    done = subprocess.CompletedProcess(process.args, process.returncode, output, errors)
    if check and done.returncode:
        print(errors)  # pytest shows it with the failure
        done.check_returncode()
    return done


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """This process cannot write a file of more bytes: what a full disk does, in the middle of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Until something is so, or the process has ended (what it said tells why)."""
    for _ in range(int(LIMIT / POLL)):
        if condition() or process.poll() is not None:
            return
        time.sleep(POLL)
    raise TimeoutError(f"{process.args}: nothing for {LIMIT} seconds")


def together(
    commands: Sequence[tuple[Sequence[str | Path], dict[str, str] | None]], timeout: float = LIMIT, **options: Any
) -> list[subprocess.CompletedProcess[str]]:
    """Run several processes that need each other at the same time; each command comes with its environment."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(started(command, env=env, **options)) for command, env in commands]
        said = [process.communicate(timeout=timeout) for process in running]
        return [
            subprocess.CompletedProcess(process.args, process.returncode, output, errors)
            for process, (output, errors) in zip(running, said, strict=True)
        ]
