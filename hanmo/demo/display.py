"""What the demo shows while it works: its stages, each with what it is at and the time left; on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LONG = 1000  # units of work above which a stage also tells how far it is
Update = Callable[[int, int, str], None]  # done, of how many, what to say


class Display:
    """Stages one under the other. Where standard error is no terminal: a line for every stage, and for tenths of long ones."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description:<16}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[said]}"),
            console=self.console,
        )
        self.seconds: dict[str, float] = {}

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:
            self._progress.stop()

    @contextmanager
    def stage(self, name: str) -> Iterator[Update]:
        """One stage; the function it gives takes progress."""
        start, task = time.monotonic(), self._progress.add_task(name, total=None, said="")
        said, tenths = "", 0

        def update(done: int, total: int, text: str = "") -> None:
            nonlocal said, tenths
            said = text or said
            self._progress.update(task, completed=done, total=total, said=said)
            if not self.console.is_terminal and total > LONG and tenths < 10 * done // total < 10:
                tenths = 10 * done // total
                left = (time.monotonic() - start) * (total - done) / done
                self.console.print(f"{name}: {said}, {left:.0f} s left", highlight=False)

        yield update
        self.seconds[name] = time.monotonic() - start
        self._finish(task, name, said)

    def _finish(self, task: TaskID, name: str, said: str) -> None:
        total = self._progress.tasks[self._progress.task_ids.index(task)].total or 1
        self._progress.update(task, completed=total, total=total)
        if not self.console.is_terminal:
            self.console.print(f"{name}: {self.seconds[name]:.1f} s{', ' if said else ''}{said}", highlight=False)
