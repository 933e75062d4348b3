"""Supervised fine-tuning: learning the last turn of dialogues, or the response to a prompt."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed

from hanmo.data.documents import StreamRows
from hanmo.data.packing import PackedRows
from hanmo.data.rows import Rows, make_rows
from hanmo.errors import ConfigError
from hanmo.families.base import OpenedModel
from hanmo.records import Rejects, iter_records
from hanmo.training import stage
from hanmo.training.adapt import Checkpointing, add_lora, checkpoint_layers, freeze_layers
from hanmo.training.parallel import read_once
from hanmo.training.run import (
    TRAINER,
    Outcome,
    data_files,
    open_for_training,
    tokenising,
    trainer_settings,
    without_checkpoints,
)
from hanmo.training.schedules import Schedule
from hanmo.training.streams import StreamTrainer
from hanmo.training.trainer import RowTrainer


@dataclass(frozen=True)
class SftConfig:
    """Settings of supervised fine-tuning.

    Attributes:
        model: a model, or ``init:SIZE`` for one of random weights in a released size's shape.
        data: a folder with train.* and, if there is one, valid.* or dev.*; or the training file.
        out: the run's folder.
        valid: the validation file, where it is not in the data folder.
        size, original_config, vocab, rules: of an original checkpoint, where its files do not say; ``vocab`` also of a
            new model.
        shape: what of the size's configuration is different, for a new model.
        limit: tokens of a row; for encoder-decoders, of the encoder's input. What does not fit is left out and named.
        response_limit: tokens of the decoder's input where that is an axis of its own; ``limit`` if null.
        packing: let short examples share a row without seeing each other.
        streams: lay the examples end to end as streams that carry memory, as published for Transformer-XL; ``limit`` is
            then a segment's length.
        schedule: learning-rate schedule of the originals; null: trainer.lr_scheduler_type.
        published: the schedule as published, which with accumulation does not reach its end.
        skip_bad: pass over bad records instead of stopping; they are named in rejects.jsonl.
        freeze: the share of the layers, from the first, that are not trained.
        lora_rank: train LoRA adapters of this rank instead of the weights; 0 is off. They are merged at the end.
        lora_alpha, lora_dropout: of the adapters.
        lora_targets: names of the linear modules to adapt; the family's own if empty.
        tensor_parallel: parts that the model is cut into, each in a process of its own (--tensor-parallel starts them).
        checkpointing: keep less for the backward pass and compute it again there: "full" every layer, "selective" only
            its cheap operations.
        trainer: every setting of transformers.TrainingArguments.
    """

    model: str
    data: str
    out: str = "runs/sft"
    valid: str | None = None
    size: str | None = None
    original_config: str | None = None
    vocab: str | None = None
    rules: str | None = None
    shape: dict[str, Any] = field(default_factory=dict)
    limit: int = 512
    response_limit: int | None = None
    packing: bool = False
    streams: bool = False
    schedule: Schedule | None = None
    published: bool = False
    skip_bad: bool = False
    freeze: float = 0.0
    lora_rank: int = 0
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ()
    tensor_parallel: int = 1
    checkpointing: Checkpointing = "none"
    trainer: dict[str, Any] = field(default_factory=dict, metadata=TRAINER)

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("limit", self.limit >= 2, "at least 2"),
            ("response_limit", self.response_limit is None or self.response_limit >= 2, "at least 2"),
            ("freeze", 0 <= self.freeze < 1, "from 0 to below 1, e.g. 0.7"),
            ("lora_rank", self.lora_rank >= 0, "0 (off) or more"),
            ("tensor_parallel", self.tensor_parallel >= 1, "at least 1"),
        ):
            if not good:
                raise ConfigError(f"{name}={getattr(self, name)}: must be {expected}")
        if self.packing and self.streams:
            raise ConfigError("packing and streams: in streams nothing is padding; give one of them")
        if self.tensor_parallel > 1 and (self.lora_rank or self.streams):
            raise ConfigError("tensor_parallel: not together with lora_rank or streams")
        if self.freeze and self.lora_rank:
            raise ConfigError("freeze and lora_rank: LoRA already leaves all layers as they are; give one of them")


def sft(config: SftConfig, resume: bool = False, show: TrainerCallback | None = None) -> Outcome:
    """Fine-tune a model; the run's folder is described in ``training/run.py``.

    Args:
        show: shows the progress, in place of bars on standard error.

    Raises:
        HanmoError: a setting, a file or a record is wrong, or training diverged.
    """
    start = time.monotonic()
    config, ready = _prepare(config, bars=show is None)
    return stage.train(config, ready, resume, show, start)


def dry_run(config: SftConfig) -> dict[str, Any]:
    """The resolved settings, what was read, and what a step needs on this machine; nothing is written."""
    return stage.dry_run(*_prepare(config))


def _prepare(config: SftConfig, bars: bool = True) -> tuple[SftConfig, stage.Prepared]:
    """Everything that can be wrong, before anything is written."""
    train_file, valid_file = data_files(config.data, config.valid)
    if config.tensor_parallel > 1:
        config = replace(config, trainer=without_checkpoints(config.trainer))
    config = replace(config, trainer=trainer_settings(config.trainer, valid_file is not None))
    set_seed(config.trainer.get("seed", 42))
    opened = open_for_training(
        config.model, config.size, config.original_config, config.vocab, config.rules, config.shape,
        config.tensor_parallel,
    )  # fmt: skip
    rows, valid, rejects = read_once("rows", lambda: _read(train_file, valid_file, opened, config, bars))
    trainer = StreamTrainer if config.streams else RowTrainer
    title = "Supervised fine-tuning"
    return config, stage.Prepared(opened, _adapted(opened, config), rows, valid, rejects, trainer, title)


def _read(
    train: Path, valid: Path | None, opened: OpenedModel, config: SftConfig, bars: bool
) -> tuple[Rows, Rows | None, Rejects]:
    rejects = Rejects()
    rows = _rows(train, opened, config, rejects, bars)
    return rows, _rows(valid, opened, config, rejects, bars) if valid else None, rejects


def _rows(file: Path, opened: OpenedModel, config: SftConfig, rejects: Rejects, bars: bool) -> Rows:
    records = tokenising(iter_records(file, rejects if config.skip_bad else None), file.name, bars)
    if config.streams and not opened.family.streams:
        raise ConfigError(f"streams: {opened.family.name} carries no memory from row to row; streams=false")
    limits = (sys.maxsize, None) if config.streams else (config.limit, config.response_limit)
    rows = make_rows(records, opened.family, *limits, rejects)
    if not len(rows):
        reasons = f"; the first: {rejects.errors[0]}" if rejects else ""
        raise ConfigError(f"{file}: nothing to learn from{reasons}")
    seed = config.trainer.get("seed", 42)
    if config.streams:
        return StreamRows(rows, opened.family, config.limit, seed)
    return PackedRows(rows, config.limit, config.response_limit, seed) if config.packing else rows


def _adapted(opened: OpenedModel, config: SftConfig) -> Any:
    network = opened.network
    checkpoint_layers(network, config.checkpointing)
    if config.freeze:
        freeze_layers(network, config.freeze)
    if config.lora_rank:
        targets = config.lora_targets or opened.family.lora_targets
        network = add_lora(network, targets, config.lora_rank, config.lora_alpha, config.lora_dropout)
    return network
