"""The progress of the demo on standard error: its stages with their state and the time left."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hanmo.training.lifecycle import Outcome

LONG = 1000  # units of work above which a stage also reports tenths
Update = Callable[..., None]  # done, total, message (the previous one if none is given)


class Display(Progress):
    """Stages one below the other. Without a terminal: a line for every stage, and for every tenth of a long one."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        super().__init__(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description:<16}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[message]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Update]:
        """One stage; yields the function that updates its progress."""
        start, task = time.monotonic(), self.add_task(name, total=None, message="")
        message, full, tenths = "", 1, 0

        def update(done: int, total: int, text: str = "") -> None:
            nonlocal message, full, tenths
            message, full = text or message, total
            self.update(task, completed=done, total=total, message=message)
            if self.disable and total > LONG and tenths < 10 * done // total < 10:
                tenths = 10 * done // total
                left = (time.monotonic() - start) * (total - done) / done
                self.console.print(f"{name}: {message}, {left:.0f} s left", highlight=False)

        yield update
        self.seconds[name] = time.monotonic() - start
        self.update(task, completed=full, total=full)
        if self.disable:
            self.console.print(f"{name}: {self.seconds[name]:.1f} s{', ' if message else ''}{message}", highlight=False)


class ShowTraining(TrainerCallback):
    """Shows the step and the loss of a training stage."""

    def __init__(self, update: Update):
        self._update, self._loss = update, ""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._update(state.global_step, state.max_steps, f"step {state.global_step} of {state.max_steps}{self._loss}")

    def on_log(self, *args: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._loss = f", loss {logs['loss']:.3f}"


def require_finished(outcome: Outcome) -> None:
    """KeyboardInterrupt if Ctrl-C stopped the stage, SystemExit if another signal did."""
    if outcome.signal == signal.SIGINT:
        raise KeyboardInterrupt
    if outcome.signal is not None:
        raise SystemExit(128 + outcome.signal)
