"""Supervised fine-tuning: learning the last turn of dialogues, or the response to a prompt."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import TrainerCallback, set_seed

from hanmo.checkpoints import save_model
from hanmo.config import dump
from hanmo.data.rows import RowDataset, make_rows
from hanmo.errors import ConfigError
from hanmo.families.base import OpenedModel
from hanmo.records import Rejects, iter_records
from hanmo.training.adapt import add_lora, freeze_layers
from hanmo.training.estimate import estimate
from hanmo.training.run import (
    TRAINER,
    Outcome,
    arguments,
    begin,
    callbacks,
    data_files,
    figures,
    make_trainer,
    open_for_training,
    rate_factor,
    tokenising,
    trainer_settings,
    write_report,
)
from hanmo.training.schedules import Schedule


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
        schedule: learning-rate schedule of the originals; null: trainer.lr_scheduler_type.
        published: the schedule as published, which with accumulation does not reach its end.
        skip_bad: pass over bad records instead of stopping; they are named in rejects.jsonl.
        freeze: the share of the layers, from the first, that are not trained.
        lora_rank: train LoRA adapters of this rank instead of the weights; 0 is off. They are merged at the end.
        lora_alpha, lora_dropout: of the adapters.
        lora_targets: names of the linear modules to adapt; the family's own if empty.
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
    schedule: Schedule | None = None
    published: bool = False
    skip_bad: bool = False
    freeze: float = 0.0
    lora_rank: int = 0
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ()
    trainer: dict[str, Any] = field(default_factory=dict, metadata=TRAINER)

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("limit", self.limit >= 2, "at least 2"),
            ("response_limit", self.response_limit is None or self.response_limit >= 2, "at least 2"),
            ("freeze", 0 <= self.freeze < 1, "from 0 to below 1, e.g. 0.7"),
            ("lora_rank", self.lora_rank >= 0, "0 (off) or more"),
        ):
            if not good:
                raise ConfigError(f"{name}={getattr(self, name)}: must be {expected}")
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
    config, opened, rows, valid, rejects = _prepare(config, bars=show is None)
    folder = Path(config.out)
    checkpoint = begin(folder, config, resume)
    if rejects:
        rejects.write(folder / "rejects.jsonl")
    args = arguments(folder, {"eval_on_start": valid is not None and checkpoint is None, **_quiet(config.trainer)})
    network = _adapted(opened, config)
    extra, stop = callbacks(folder, show)
    trainer = make_trainer(network, args, rows, valid, rate_factor(config.schedule, args, config.published), extra)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        stop.restore()
    outcome = Outcome(
        run=str(folder),
        steps=trainer.state.global_step,
        rows=len(rows),
        rejected=len(rejects),
        seconds=round(time.monotonic() - start, 1),
        signal=stop.signal,
        **figures(folder),  # type: ignore[arg-type]
    )
    if stop.signal is not None:
        return outcome
    if trainer.is_world_process_zero():
        trained = network.merge_and_unload() if config.lora_rank else network
        save_model(replace(opened, network=trained), folder / "model")
        facts = {
            "model": opened.source,
            "data": config.data,
            **{k: v for k, v in asdict(outcome).items() if v is not None},
        }
        write_report(folder, "Supervised fine-tuning", opened.source, facts)
    return replace(outcome, model=str(folder / "model"))


def dry_run(config: SftConfig) -> dict[str, Any]:
    """The resolved settings, what was read, and what a step needs on this machine; nothing is written."""
    config, opened, rows, valid, rejects = _prepare(config)
    with TemporaryDirectory() as folder:  # transformers' Trainer makes its folder at once
        args = arguments(Path(folder), {**_quiet(config.trainer), "report_to": "none"})
        needs = estimate(make_trainer(_adapted(opened, config), args, rows, valid, None, []))
    return {
        "config": dump(config),
        "model": opened.source,
        "rows": len(rows),
        "valid_rows": len(valid) if valid is not None else 0,
        "rejected": len(rejects),
        **needs,
    }


def _prepare(
    config: SftConfig, bars: bool = True
) -> tuple[SftConfig, OpenedModel, RowDataset, RowDataset | None, Rejects]:
    """Everything that can be wrong, before anything is written."""
    train_file, valid_file = data_files(config.data, config.valid)
    config = replace(config, trainer=trainer_settings(config.trainer, valid_file is not None))
    set_seed(config.trainer.get("seed", 42))
    opened = open_for_training(
        config.model, config.size, config.original_config, config.vocab, config.rules, config.shape
    )
    rejects = Rejects()
    rows = _rows(train_file, opened, config, rejects, bars)
    valid = _rows(valid_file, opened, config, rejects, bars) if valid_file else None
    return config, opened, rows, valid, rejects


def _rows(file: Path, opened: OpenedModel, config: SftConfig, rejects: Rejects, bars: bool) -> RowDataset:
    records = iter_records(file, rejects if config.skip_bad else None)
    rows = make_rows(tokenising(records, file.name, bars), opened.family, config.limit, config.response_limit, rejects)
    if not len(rows):
        reasons = f"; the first: {rejects.errors[0]}" if rejects else ""
        raise ConfigError(f"{file}: nothing to learn from{reasons}")
    return rows


def _adapted(opened: OpenedModel, config: SftConfig) -> Any:
    network = opened.network
    if config.freeze:
        freeze_layers(network, config.freeze)
    if config.lora_rank:
        targets = config.lora_targets or opened.family.lora_targets
        network = add_lora(network, targets, config.lora_rank, config.lora_alpha, config.lora_dropout)
    return network


def _quiet(trainer: dict[str, Any]) -> dict[str, Any]:
    return {"disable_tqdm": True, **trainer}
