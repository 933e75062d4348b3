"""How the demo follows the training stages it calls: progress for the display, and a stop that goes on up."""

from __future__ import annotations

import signal
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hanmo.demo.display import Update
from hanmo.training.lifecycle import Outcome


class ShowTraining(TrainerCallback):
    """Passes the step and the loss on to the display."""

    def __init__(self, update: Update):
        self._update, self._loss = update, ""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._update(state.global_step, state.max_steps, f"step {state.global_step} of {state.max_steps}{self._loss}")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            self._loss = f", loss {logs['loss']:.3f}"


def require_finished(outcome: Outcome) -> None:
    """Goes on only if the stage was not stopped by a signal.

    Raises:
        KeyboardInterrupt: Ctrl-C stopped it.
        SystemExit: another signal did.
    """
    if outcome.signal == signal.SIGINT:
        raise KeyboardInterrupt
    if outcome.signal is not None:
        raise SystemExit(128 + outcome.signal)
