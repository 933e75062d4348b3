"""The settings that stages of training have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hanmo import config as settings
from hanmo.errors import ConfigError
from hanmo.training.schedules import Schedule
from hanmo.training.trainable import LoraSettings

RESERVED = {  # settings of transformers' Trainer that no stage takes, and why
    "output_dir": "the run's folder is OUT",
    "resume_from_checkpoint": "say --resume",
    "remove_unused_columns": "batches are made of rows, not columns",
    "label_names": "rows have labels",
    "average_tokens_across_devices": "always so: the loss is divided by the weights of the whole step",
    "label_smoothing_factor": "the loss lives inside the network, which has no label smoothing",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "push_to_hub": "upload OUT/model when the run is over",
}
TRAINER = settings.settings_of("transformers.TrainingArguments", **RESERVED)
ROUNDS = "a run is as long as rounds=N says"
TRAINER_OF_ROUNDS = settings.settings_of(  # of the stages that learn from rewards
    "transformers.TrainingArguments",
    **RESERVED,
    max_steps=ROUNDS,
    num_train_epochs=f"{ROUNDS}; epochs=N are the passes over a round",
    save_strategy="checkpoints are written after every save_rounds=N rounds",
    save_steps="checkpoints are written after every save_rounds=N rounds",
    eval_strategy="a policy is judged by the rewards of its own replies",
    ignore_data_skip="always so: a resumed run goes on with the next round",
)
LORA = settings.settings_of("hanmo.training.trainable.LoraSettings")


@dataclass(frozen=True)
class RunConfig:
    """Settings that every stage has.

    Attributes:
        model: the model to start from; some stages take ``init:SIZE``, random weights in a released size's shape.
        data: a folder with train.* and, if there is one, valid.* or dev.*; or the training file.
        out: the run's folder.
        valid: the validation file, where it is not in the data folder.
        size, original_config, vocab, rules: of an original checkpoint, where its files do not say; ``vocab`` also of a
            new model.
        limit: tokens of a row; for encoder-decoders, of the encoder's input. What does not fit is left out and named.
        response_limit: tokens of the decoder's input where that is an axis of its own; ``limit`` if null.
        schedule: learning-rate schedule of the originals; null: trainer.lr_scheduler_type.
        skip_bad: pass over bad records instead of stopping; they are named in rejects.jsonl.
        trainer: every setting of transformers.TrainingArguments.
    """

    model: str
    data: str
    out: str = "runs/run"
    valid: str | None = None
    size: str | None = None
    original_config: str | None = None
    vocab: str | None = None
    rules: str | None = None
    limit: int = 512
    response_limit: int | None = None
    schedule: Schedule | None = None
    skip_bad: bool = False
    trainer: dict[str, Any] = field(default_factory=dict, metadata=TRAINER)

    def __post_init__(self) -> None:
        self.require(
            limit=(self.limit >= 2, "at least 2"),
            response_limit=(self.response_limit is None or self.response_limit >= 2, "at least 2"),
        )

    def require(self, **checks: tuple[bool, str]) -> None:
        """ConfigError naming the first setting that is not as expected."""
        for name, (good, expected) in checks.items():
            if not good:
                raise ConfigError(f"{name}={getattr(self, name)}: must be {expected}")


@dataclass(frozen=True)
class TuningConfig(RunConfig):
    """Settings of the stages that change a model a little; see ``RunConfig`` for the others.

    Attributes:
        lora: train adapters instead of the weights, see ``LoraSettings``; they are merged at the end. {}: no adapters.
    """

    lora: dict[str, Any] = field(default_factory=dict, metadata=LORA)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora:
            LoraSettings(**self.lora)


def one_checkpointing(selective: bool, trainer: dict[str, Any]) -> None:
    """ConfigError where selective activation checkpointing is asked for, and the trainer's own besides."""
    full = next((name for name in ("activation_checkpointing", "gradient_checkpointing") if trainer.get(name)), None)
    if selective and full:
        raise ConfigError(f"selective_checkpointing and trainer.{full}: the latter keeps less; give one of them")


def one_parallelism(tensor_parallel: int, trainer: dict[str, Any]) -> None:
    """ConfigError where a model is to be cut in two ways at once."""
    other = next((name for name in ("deepspeed", "fsdp") if trainer.get(name)), None)
    if tensor_parallel > 1 and other:
        raise ConfigError(f"tensor_parallel={tensor_parallel} and trainer.{other}: give one of them")
