"""A function that judges replies in a process of its own: it may hang or crash there, and its process is then ended."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hanmo.errors import ConfigError
from hanmo.verify import Record, Scores
from hanmo.verify.functions import JudgeError, too_long

START = 600  # seconds for the imports of a function's module
_SCRIPT = Path(__file__).with_name("child.py")


class JudgeProcess:
    """Calls the function ``name`` in a process, which is started when it is needed, and again after it was ended.

    It protects the run, not the machine: the function has all rights of the user.
    """

    def __init__(self, name: str, options: Mapping[str, Any]):
        self.first = {"name": name, "options": dict(options)}
        self.process: subprocess.Popen[str] | None = None

    def __call__(
        self, prompts: Sequence[str], replies: Sequence[str], records: Sequence[Record], seconds: float
    ) -> Scores:
        """As ``judged_in_time``; a JudgeError also if the process ends."""
        self.start()
        given = {"prompts": list(prompts), "replies": list(replies), "records": list(records)}
        answer = self._answer(given, seconds)
        if "problem" in answer:
            raise JudgeError(answer["problem"], answer["place"])
        return answer["scores"]

    def start(self) -> None:
        """Start the process, if there is none; ConfigError if it cannot load the function."""
        if self.process is not None:
            return
        self.process = subprocess.Popen(
            # Isolated, so that no file of the working folder passes for a library; this process's folders come after Python's.
            [sys.executable, "-I", str(_SCRIPT), *filter(None, sys.path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
            start_new_session=True,  # so that Ctrl-C reaches this process only, and the end all that the function started
        )  # fmt: skip
        self.ended = weakref.finalize(self, _end, self.process)  # at the latest with this process
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=_forward, args=(self.process.stdout, self.lines), daemon=True).start()
        answer = self._answer(self.first, START)
        if "refused" in answer:
            raise ConfigError(answer["refused"])

    def _answer(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert self.process is not None and self.process.stdin is not None
        answered = False
        try:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
            line = self.lines.get(timeout=seconds)
            if not line.endswith("\n"):
                raise JudgeError(f"its process ended with exit status {self.process.wait()}")
            answered = True
            return json.loads(line)
        except queue.Empty:
            raise JudgeError(too_long(seconds)) from None
        finally:
            if not answered:
                self.end()

    def end(self) -> None:
        """End the process and all that it has started."""
        if self.process is not None:
            self.ended()
        self.process = None


def _end(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()  # type: ignore[union-attr]


def _forward(lines: Any, to: "queue.SimpleQueue[str]") -> None:
    """Pass the lines of a process on, and "" when it has ended."""
    with lines:
        for line in lines:
            to.put(line)
    to.put("")
