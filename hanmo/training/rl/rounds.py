"""Rounds as transformers' Trainer sees them: its data loader, and when it may save and stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class RoundTrainer(Protocol):
    """The part of ``PolicyTrainer`` that rounds need.

    Attributes:
        round: rounds begun so far.
        left: batches of this round that are still to come.
        moved: for each batch of this step, how far the policy moved (nats, summed) and over how many tokens.
    """

    args: TrainingArguments
    config: Any
    round: int
    left: int
    moved: list[Any]

    @property
    def between_rounds(self) -> bool: ...

    def collect(self) -> list[Any]: ...

    def minibatch(self, batch: Sequence[Any]) -> dict[str, Any]: ...

    def moved_too_far(self) -> bool: ...


class Rounds:
    """The data loader of the Trainer: minibatches, round after round."""

    def __init__(self, trainer: RoundTrainer):
        self.trainer = trainer

    def __len__(self) -> int:
        args = self.trainer.args
        return args.max_steps * args.gradient_accumulation_steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        trainer = self.trainer
        size, accumulated = trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps
        while True:
            batch = trainer.collect()
            batches: list[Sequence[int]] = []
            for epoch in range(trainer.config.epochs):
                seed = (trainer.args.seed * 1_000_003 + trainer.round) * 101 + epoch
                order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed)).tolist()
                # The batches of one optimizer step are added up, so that they may be of rows of similar length.
                for step in chunked(order, size * accumulated):
                    batches += chunked(sorted(step, key=lambda place: batch[place].row.size), size)
            trainer.left = len(batches)
            trainer.round += 1
            for number, places in enumerate(batches):
                if number % accumulated == 0 and number and trainer.moved_too_far():
                    break
                trainer.left -= 1
                yield trainer.minibatch([batch[place] for place in places])


def chunked(places: Sequence[int], size: int) -> list[Sequence[int]]:
    """Runs of ``size``, the last of what is left."""
    return [places[first : first + size] for first in range(0, len(places), size)]


class BetweenRounds(TrainerCallback):
    """Lets the run be saved and stopped between rounds only, and saved as often as asked for."""

    def __init__(self, trainer: RoundTrainer):
        self.trainer = trainer

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.moved.clear()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        trainer = self.trainer
        if not trainer.between_rounds:
            control.should_save = False
            control.should_training_stop = state.global_step >= state.max_steps
            return
        if trainer.round >= trainer.config.rounds:  # rounds that ended early leave steps over
            control.should_training_stop = True
        if trainer.config.max_kl is not None:  # rounds are of different lengths, and each is logged
            control.should_log = True
        if trainer.config.save_rounds and trainer.round % trainer.config.save_rounds == 0:
            control.should_save = True
