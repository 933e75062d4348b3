"""What the demo shows while it works: its stages, each with what it is at and the time left; on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Update = Callable[[int, int, str], None]  # done, of how many, what to say


class Display:
    """Stages one under the other. Where standard error is no terminal, a line for every stage that is over."""

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
        self._progress.stop()

    @contextmanager
    def stage(self, name: str) -> Iterator[Update]:
        """One stage; the function it gives takes progress."""
        start, task = time.monotonic(), self._progress.add_task(name, total=None, said="")
        said = ""

        def update(done: int, total: int, text: str = "") -> None:
            nonlocal said
            said = text or said
            self._progress.update(task, completed=done, total=total, said=said)

        yield update
        self.seconds[name] = time.monotonic() - start
        self._finish(task, name, said)

    def _finish(self, task: TaskID, name: str, said: str) -> None:
        total = self._progress.tasks[self._progress.task_ids.index(task)].total or 1
        self._progress.update(task, completed=total, total=total)
        if not self.console.is_terminal:
            self.console.print(f"{name}: {self.seconds[name]:.1f} s{', ' if said else ''}{said}", highlight=False)
