"""Settings of transformers' Trainer: our defaults, DeepSpeed files, and the learning rate's schedule."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from hanmo.errors import ConfigError, quoted
from hanmo.files import read_json
from hanmo.processes import main_process, process_count
from hanmo.training.deepspeed import translate_deepspeed
from hanmo.training.schedules import Schedule, factor, published_warmup

RateFactor = Callable[[int, int], float]  # (step, steps) -> factor of the peak learning rate
DEFAULTS: dict[str, Any] = {
    "logging_steps": 10,
    "save_total_limit": 2,
    "train_sampling_strategy": "group_by_length",
    "report_to": "none",
}


def default_settings(given: dict[str, Any], has_valid: bool) -> dict[str, Any]:
    """The settings of transformers' Trainer, with our defaults for those that are not given."""
    evaluates = given.get("eval_strategy", "epoch" if has_valid else "no")
    if evaluates != "no" and not has_valid:
        raise ConfigError("trainer.eval_strategy: there is no validation file; give valid=FILE")
    merged = {**DEFAULTS, "eval_strategy": evaluates, **read_deepspeed(given)}
    merged.setdefault("save_strategy", evaluates if evaluates != "no" else "epoch")
    if "eval_steps" in merged and merged["save_strategy"] == "steps":
        merged.setdefault("save_steps", merged["eval_steps"])
    if evaluates != "no":
        merged.setdefault("load_best_model_at_end", merged["save_strategy"] != "no")
        merged.setdefault("metric_for_best_model", "eval_loss")
    return merged


def read_deepspeed(given: dict[str, Any]) -> dict[str, Any]:
    """The settings with a DeepSpeed file read and brought up to date; it decides what no other setting gives."""
    file = given.get("deepspeed")
    if not isinstance(file, str):
        return given
    try:
        config, decided, notices = translate_deepspeed(read_json(Path(file)))
    except (OSError, ValueError) as error:
        raise ConfigError(f"trainer.deepspeed: {file}: {error}") from None
    if main_process():
        for notice in notices:
            print(f"hanmo: {file}: {notice}", file=sys.stderr)
    return {**decided, **given, "deepspeed": config}


def arguments(folder: Path, merged: dict[str, Any]) -> TrainingArguments:
    """transformers' settings object of a run in this folder."""
    # accelerate takes several processes without a device for a single one, unless it is told to use the CPU.
    only_cpu = process_count() > 1 and not torch.accelerator.is_available()
    try:
        return TrainingArguments(
            output_dir=str(folder / "checkpoints"),
            remove_unused_columns=False,
            label_names=["labels"],
            average_tokens_across_devices=True,
            logging_nan_inf_filter=False,
            **{"dataloader_pin_memory": torch.cuda.is_available(), "use_cpu": only_cpu, **_by_new_names(merged)},
        )
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"trainer: {quoted(error)}") from error


def _by_new_names(merged: dict[str, Any]) -> dict[str, Any]:
    """Activation checkpointing under the name that the installed transformers wants; up to 5.22 it was "gradient_"."""
    known = {field.name for field in fields(TrainingArguments)}
    named = {}
    for key, value in merged.items():
        new = key.replace("gradient_checkpointing", "activation_checkpointing")
        named[new if new in known else key] = value
    return named


def rate_factor(schedule: Schedule | None, args: TrainingArguments, published: bool) -> RateFactor | None:
    """The learning rate's factor; None leaves it to transformers.

    Published, "linear" and "cosine" fall over the run's batches before accumulation, so that with accumulation they
    do not reach their end.
    """
    if schedule is None:
        return None

    def at(step: int, steps: int) -> float:
        warmup = args.warmup_steps if args.warmup_steps >= 1 else published_warmup(args.warmup_steps, steps)
        return factor(schedule, step, warmup, steps * args.gradient_accumulation_steps if published else steps)

    return at
