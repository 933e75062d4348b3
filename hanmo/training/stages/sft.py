"""Supervised fine-tuning: learning the last turn of dialogues, or the response to a prompt."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed

from hanmo.data.rows.dataset import Rows, make_rows
from hanmo.data.rows.documents import StreamRows
from hanmo.data.rows.packing import PackedRows
from hanmo.errors import ConfigError
from hanmo.families.base import OpenedModel
from hanmo.records import Rejects, iter_records
from hanmo.training import lifecycle
from hanmo.training.config import TuningConfig, one_checkpointing, one_parallelism
from hanmo.training.exclusive import exclusive_run
from hanmo.training.launch import read_once
from hanmo.training.run_folder import Outcome, data_files, open_for_training, tokenising, trainer_settings
from hanmo.training.streams import StreamTrainer
from hanmo.training.trainable import LoraSettings, add_lora, checkpoint_layers, freeze_layers
from hanmo.training.trainer import RowTrainer


@dataclass(frozen=True)
class SftConfig(TuningConfig):
    """Settings of supervised fine-tuning; see ``TuningConfig`` for the others.

    Attributes:
        shape: what of the size's configuration is different, for a new model.
        packing: let short examples share a row without seeing each other.
        streams: lay the examples end to end as streams that carry memory, as published for Transformer-XL; ``limit`` is
            then a segment's length.
        published: the schedule as published, which with accumulation does not reach its end.
        freeze: the share of the layers, from the first, that are not trained.
        tensor_parallel: parts that the model is cut into, each in a process of its own (--tensor-parallel starts them).
        selective_checkpointing: of every layer keep for the backward pass only what is dear to compute. Ours, as the
            trainer's own option cannot say which operations those are in a file of settings; it keeps nothing of them.
    """

    out: str = "runs/sft"
    shape: dict[str, Any] = field(default_factory=dict)
    packing: bool = False
    streams: bool = False
    published: bool = False
    freeze: float = 0.0
    tensor_parallel: int = 1
    selective_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            freeze=(0 <= self.freeze < 1, "from 0 to below 1, e.g. 0.7"),
            tensor_parallel=(self.tensor_parallel >= 1, "at least 1"),
        )
        if self.packing and self.streams:
            raise ConfigError("packing and streams: in streams nothing is padding; give one of them")
        if self.freeze and self.lora:
            raise ConfigError("freeze and lora: LoRA already leaves all layers as they are; give one of them")
        one_checkpointing(self.selective_checkpointing, self.trainer)
        one_parallelism(self.tensor_parallel, self.trainer)


@exclusive_run
def sft(config: SftConfig, resume: bool = False, show: TrainerCallback | None = None) -> Outcome:
    """Fine-tune a model; the run's folder is described in ``training/run_folder.py``.

    Args:
        show: shows the progress, in place of bars on standard error.

    Raises:
        HanmoError: a setting, a file or a record is wrong, or training diverged.
    """
    start = time.monotonic()
    config, ready = _prepare(config, bars=show is None)
    return lifecycle.train(config, ready, resume, show, start)


def dry_run(config: SftConfig) -> dict[str, Any]:
    """The resolved settings, what was read, and what a step needs on this machine; nothing is written."""
    return lifecycle.dry_run(*_prepare(config))


def _prepare(config: SftConfig, bars: bool = True) -> tuple[SftConfig, lifecycle.Prepared]:
    """Everything that can be wrong, before anything is written."""
    train_file, valid_file = data_files(config.data, config.valid)
    config = replace(config, trainer=trainer_settings(config.trainer, valid_file is not None))
    set_seed(config.trainer.get("seed", 42))
    opened = open_for_training(
        config.model, config.size, config.original_config, config.vocab, config.rules, config.shape,
        config.tensor_parallel,
    )  # fmt: skip
    rows, valid, rejects = read_once("rows", lambda: _read(train_file, valid_file, opened, config, bars))
    trainer = StreamTrainer if config.streams else RowTrainer
    title = "Supervised fine-tuning"
    return config, lifecycle.Prepared(opened, _adapted(opened, config), rows, valid, rejects, trainer, title)


def _read(
    train: Path, valid: Path | None, opened: OpenedModel, config: SftConfig, bars: bool
) -> tuple[Rows, Rows | None, Rejects]:
    rejects = Rejects()
    rows = _rows(train, opened, config, rejects, bars)
    return rows, _rows(valid, opened, config, rejects, bars) if valid else None, rejects


def _rows(file: Path, opened: OpenedModel, config: SftConfig, rejects: Rejects, bars: bool) -> Rows:
    records = tokenising(iter_records(file, rejects if config.skip_bad else None, reply="needed"), file.name, bars)
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
    if config.selective_checkpointing:
        checkpoint_layers(network, selective=True)
    if config.freeze:
        freeze_layers(network, config.freeze)
    if config.lora:
        network = add_lora(network, LoraSettings(**config.lora), opened.family.lora_targets)
    return network
