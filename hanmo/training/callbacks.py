"""What happens around a run's steps: metrics on disk, a progress bar, and stopping on a signal."""

import math
import signal
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pydantic import TypeAdapter
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hanmo.errors import RecordError
from hanmo.files import json_text, or_null, write_text

LINES = 100  # most lines of progress of a run, besides those of evaluations


class MetricsFile(TrainerCallback):
    """Appends what is logged to a file, one JSON object a line; a resumed run continues at its checkpoint's step."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **rest: Any) -> None:
        if state.is_world_process_zero:
            kept = [entry for entry in read_metrics(self.path) if entry["step"] <= state.global_step]
            write_text(self.path, "".join(json_text(or_null(entry)) + "\n" for entry in kept))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        # A run shorter than ``logging_steps`` logs a loss too.
        if state.global_step >= state.max_steps and args.logging_strategy != "no":
            control.should_log = True

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **rest: Any) -> None:
        if state.is_world_process_zero and logs:
            entry = {"step": state.global_step, **logs, "time": round(time.time(), 3)}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json_text(or_null(entry)) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The entries of a metrics file, without a last line cut off by a kill; numbers that were not finite are NaN.

    RecordError for a damaged line.
    """
    if not path.is_file():
        return []
    entry = TypeAdapter(dict[str, int | float | None])
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            entries.append(entry.validate_json(line, strict=True))
            if not isinstance(entries[-1].get("step"), int):
                raise ValueError("no step")
        except ValueError:
            expected = 'expected numbers by name, "step" among them, as the run logged them'
            raise RecordError(path, number, f"damaged: {expected}; remove the line to go on without it") from None
    return [{name: math.nan if value is None else value for name, value in entry.items()} for entry in entries]


class StopOnSignal(TrainerCallback):
    """SIGTERM or Ctrl-C: finish the step, save a checkpoint, stop. A second one stops at once; ``restore`` undoes this.

    A signal that the caller ignores stays ignored: a shell script ignores SIGINT for runs in the background, because a
    Ctrl-C at its terminal is not meant for them.
    """

    def __init__(self) -> None:
        self.signal: int | None = None  # the number of the signal that stopped the run
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **rest: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Put back the handlers that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.restore()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        if args.world_size > 1:  # all processes must stop after the same step
            numbers = torch.tensor(self.signal or 0, device=args.device)
            torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
            self.signal = int(numbers) or None
        if self.signal is not None:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        # Stopped in mid-epoch: nothing is due; the checkpoint was saved after the step.
        if self.signal is not None and not float(state.epoch or 0).is_integer():
            control.should_evaluate = control.should_save = False


class Progress(TrainerCallback):
    """A bar with the latest figures on standard error; where that is no terminal, at most ``LINES`` lines of them."""

    def __init__(self, names: Sequence[str] = ("loss", "eval_loss")):
        self._names = names
        self._bar: Any = None
        self._shown: dict[str, str] = {}
        self._start, self._first, self._printed = 0.0, 0, 0  # time and step of the beginning; step of the last line

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **rest: Any) -> None:
        if state.is_world_process_zero:
            self._start, self._first, self._printed = time.monotonic(), state.global_step, -state.max_steps
            steps = {"total": state.max_steps, "initial": state.global_step, "unit": "step"}
            self._bar = tqdm(desc="training", **steps, disable=not sys.stderr.isatty())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **rest: Any) -> None:
        if self._bar is None or not logs:
            return
        new = {name: f"{logs[name]:.4g}" for name in self._names if name in logs}
        self._shown.update(new)
        if not self._bar.disable:
            self._bar.set_postfix(self._shown)
            return
        step, steps = state.global_step, state.max_steps
        due = step - self._printed >= steps / LINES or step >= steps or any(name.startswith("eval_") for name in new)
        if new and due:
            self._printed = step
            figures = [f"{name} {value}" for name, value in new.items()]
            if self._first < step < steps:
                seconds = (time.monotonic() - self._start) / (step - self._first) * (steps - step)
                figures.append(f"{timedelta(seconds=round(seconds))} left")
            print(f"step {step}/{steps}: {', '.join(figures)}", file=sys.stderr)

    def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if self._bar is not None:
            self._bar.close()
