"""Pretraining: a family's own objective on running text, or on every reply of dialogues."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed

from hanmo.data.rows.dataset import Rows
from hanmo.data.rows.documents import Documents, Pieces, StoreDocuments, StreamRows, read_documents
from hanmo.data.rows.packing import PackedRows
from hanmo.data.store.token_store import ABOUT, Store
from hanmo.errors import ConfigError, unknown
from hanmo.families.base import Family, OpenedModel
from hanmo.records import Plain, Rejects, iter_records
from hanmo.training import lifecycle
from hanmo.training.config import RunConfig, one_checkpointing, one_parallelism
from hanmo.training.exclusive import exclusive_run
from hanmo.training.launch import read_once
from hanmo.training.run_folder import Outcome, data_files, open_for_training, tokenising, trainer_settings
from hanmo.training.streams import StreamTrainer
from hanmo.training.trainable import checkpoint_layers
from hanmo.training.trainer import RowTrainer


@dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """Settings of pretraining; see ``RunConfig`` for the others. ``data`` and ``valid`` may also be token stores.

    Attributes:
        shape: what of the size's configuration is different, for a new model.
        limit: tokens of a row; of a segment, for networks with memory; of the encoder's input, for encoder-decoders.
        plain: what a line of a plain file is.
        packing: let short documents share a row without seeing each other; null: where the network can.
        objectives: how often each of the family's objectives is drawn, where it has several; all that are not named are 0.
        published: the schedule as published, which with accumulation does not reach its end.
        tensor_parallel: as of ``SftConfig``.
        selective_checkpointing: as of ``SftConfig``.
    """

    out: str = "runs/pretrain"
    shape: dict[str, Any] = field(default_factory=dict)
    plain: Plain = "text"
    packing: bool | None = None
    objectives: dict[str, float] = field(default_factory=dict)
    published: bool = False
    tensor_parallel: int = 1
    selective_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            objectives=(all(share >= 0 for share in self.objectives.values()), "shares of 0 or more"),
            tensor_parallel=(self.tensor_parallel >= 1, "at least 1"),
        )
        one_checkpointing(self.selective_checkpointing, self.trainer)
        one_parallelism(self.tensor_parallel, self.trainer)


@exclusive_run
def pretrain(config: PretrainConfig, resume: bool = False, show: TrainerCallback | None = None) -> Outcome:
    """Pretrain a model; the run's folder is described in ``training/run_folder.py``.

    Args:
        show: shows the progress, in place of bars on standard error.

    Raises:
        HanmoError: a setting, a file or a record is wrong, or training diverged.
    """
    start = time.monotonic()
    config, ready = _prepare(config, bars=show is None)
    return lifecycle.train(config, ready, resume, show, start)


def dry_run(config: PretrainConfig) -> dict[str, Any]:
    """The resolved settings, what was read, and what a step needs on this machine; nothing is written."""
    return lifecycle.dry_run(*_prepare(config))


def _prepare(config: PretrainConfig, bars: bool = True) -> tuple[PretrainConfig, lifecycle.Prepared]:
    """Everything that can be wrong, before anything is written."""
    if (Path(config.data) / ABOUT).is_file():
        train_file, valid_file = Path(config.data), Path(config.valid) if config.valid else None
    else:
        train_file, valid_file = data_files(config.data, config.valid)
    seed = config.trainer.get("seed", 42)
    config = replace(config, trainer=trainer_settings(config.trainer, valid_file is not None))
    set_seed(seed)
    opened = open_for_training(
        config.model, config.size, config.original_config, config.vocab, config.rules, config.shape,
        config.tensor_parallel,
    )  # fmt: skip
    _check_objectives(config, opened.family)
    if config.selective_checkpointing:
        checkpoint_layers(opened.network, selective=True)
    rows, valid, rejects = read_once("rows", lambda: _read(train_file, valid_file, opened, config, seed, bars))
    if valid is not None and type(valid) is not type(rows):
        raise ConfigError(f"{valid_file}: not the kind of data that {train_file} holds")
    trainer = StreamTrainer if isinstance(rows, StreamRows) else RowTrainer
    return config, lifecycle.Prepared(opened, opened.network, rows, valid, rejects, trainer, "Pretraining")


def _read(
    train: Path, valid: Path | None, opened: OpenedModel, config: PretrainConfig, seed: int, bars: bool
) -> tuple[Rows, Rows | None, Rejects]:
    rejects = Rejects()
    rows = _rows(train, opened, config, seed, rejects, bars)
    return rows, _rows(valid, opened, config, seed, rejects, bars) if valid else None, rejects


def _check_objectives(config: PretrainConfig, family: Family) -> None:
    for name in config.objectives:
        if not family.objectives:
            raise ConfigError(f"objectives: {family.name} has a single one; leave them out")
        if name not in family.objectives:
            raise ConfigError(unknown("objective", name, family.objectives))
    if config.objectives and not sum(config.objectives.values()):
        raise ConfigError("objectives: all shares are 0")


def _rows(path: Path, opened: OpenedModel, config: PretrainConfig, seed: int, rejects: Rejects, bars: bool) -> Rows:
    family = opened.family
    documents: Documents
    if (path / ABOUT).is_file():
        documents = StoreDocuments(Store(path, opened.tokenizer), family)
    else:
        records = tokenising(
            iter_records(path, rejects if config.skip_bad else None, config.plain, "needed"), path.name, bars
        )
        rows, running = read_documents(records, family, config.limit, config.response_limit, rejects)
        if not running and len(rows):
            return _packed(rows, config, seed)
        documents = rows
    if not len(documents.lengths):
        reasons = f"; the first: {rejects.errors[0]}" if rejects else ""
        raise ConfigError(f"{path}: nothing to learn from{reasons}")
    if family.streams:
        if config.packing:
            raise ConfigError(f"packing: {family.name} is pretrained on streams, in which nothing is padding")
        return StreamRows(documents, family, config.limit, seed)
    pieces = Pieces(documents, family, config.limit, config.objectives or family.objectives, seed)
    pieces.row(max(range(len(pieces)), key=pieces.lengths.__getitem__))  # what a family cannot do shows now
    return _packed(pieces, config, seed)


def _packed(rows: Rows, config: PretrainConfig, seed: int) -> Rows:
    packing = rows.family.packs and not rows.drawn if config.packing is None else config.packing
    return PackedRows(rows, config.limit, config.response_limit, seed) if packing else rows
