"""Rounds as transformers' Trainer sees them: its data loader, and when it saves and stops."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hanmo.rows import chunked


def passes(args: TrainingArguments, number: int, epoch: int, sizes: Sequence[int]) -> list[Sequence[int]]:
    """The batches of a pass over the replies of a round, by place; ``sizes``: the tokens of each reply's row."""
    size = args.per_device_train_batch_size
    draws = torch.Generator().manual_seed((args.seed * 1_000_003 + number) * 101 + epoch)
    batches: list[Sequence[int]] = []
    # The batches of an optimizer step are summed, so each may hold rows of similar length.
    for step in chunked(torch.randperm(len(sizes), generator=draws).tolist(), size * args.gradient_accumulation_steps):
        batches += chunked(sorted(step, key=sizes.__getitem__), size)
    return batches


class Rounds:
    """The data loader of a ``PolicyTrainer``: minibatches, round after round."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def __len__(self) -> int:
        return self.trainer.args.max_steps * self.trainer.args.gradient_accumulation_steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        trainer = self.trainer
        args, accumulated = trainer.args, trainer.args.gradient_accumulation_steps
        while True:
            batch = trainer.collect()
            sizes = [one.row.size for one in batch]
            batches = [
                places for epoch in range(trainer.config.epochs) for places in passes(args, trainer.round, epoch, sizes)
            ]
            trainer.left = len(batches)
            trainer.round += 1
            for number, places in enumerate(batches):
                if number % accumulated == 0 and number and trainer.moved_too_far():
                    break
                trainer.left -= 1
                yield trainer.minibatch([batch[place] for place in places])


class BetweenRounds(TrainerCallback):
    """Saves and stops the run only between rounds, and saves it as often as configured."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.moved.clear()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        trainer = self.trainer
        if trainer.left and not trainer.moved_too_far():
            control.should_save = False
            control.should_training_stop = state.global_step >= state.max_steps
            return
        if trainer.round >= trainer.config.rounds:  # rounds that ended early leave steps unused
            control.should_training_stop = True
        if trainer.config.max_kl is not None:  # rounds differ in length, and each is logged
            control.should_log = True
        if trainer.config.save_rounds and trainer.round % trainer.config.save_rounds == 0:
            control.should_save = True
