"""Settings of transformers' Trainer: our defaults, and DeepSpeed configurations of any age brought up to date."""

import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from hanmo.errors import ConfigError, quoted
from hanmo.files import package_yaml, read_json
from hanmo.nn.gpu import multiplies_in_bf16
from hanmo.processes import main_process, process_count

TRAINER = package_yaml("hanmo.training", "trainer.yaml")

SEEDS = 2**32 - 1
RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {  # transformers and torch do not check them, or fail late
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
        ("1 or more", lambda value: value >= 1),
    ),
    **dict.fromkeys(("seed", "data_seed"), (f"from 0 to {SEEDS}", lambda value: 0 <= value <= SEEDS)),
    "dataloader_num_workers": ("0 or more", lambda value: value >= 0),
    "num_train_epochs": ("above 0", lambda value: value > 0),
    "max_steps": ("1 or more, or -1 for whole epochs", lambda value: value >= 1 or value == -1),
}


def check_ranges(trainer: Mapping[str, Any]) -> None:
    """Raise ConfigError for the first setting of the Trainer that is out of its range."""
    for name, (expected, good) in RANGES.items():
        value = trainer.get(name)
        if value is not None and not good(value):
            raise ConfigError(f"trainer.{name}={value}: must be {expected}")


def default_settings(given: dict[str, Any], has_valid: bool) -> dict[str, Any]:
    """The settings of transformers' Trainer, with our defaults for those that are not given."""
    evaluates = given.get("eval_strategy", "epoch" if has_valid else "no")
    if evaluates != "no" and not has_valid:
        raise ConfigError("trainer.eval_strategy: there is no validation file; give valid=FILE")
    merged = with_precision({**TRAINER["defaults"], "eval_strategy": evaluates, **read_deepspeed(given)})
    merged.setdefault("save_strategy", evaluates if evaluates != "no" else "epoch")
    if "eval_steps" in merged and merged["save_strategy"] == "steps":
        merged.setdefault("save_steps", merged["eval_steps"])
    if evaluates != "no":
        merged.setdefault("load_best_model_at_end", merged["save_strategy"] != "no")
        merged.setdefault("metric_for_best_model", "eval_loss")
    return merged


def with_precision(given: dict[str, Any]) -> dict[str, Any]:
    """The settings with bf16 where none names a precision and the GPU multiplies in it, several times as fast as in fp32.

    The weights and the optimizer's state stay in fp32.
    """
    chosen = "bf16" in given or given.get("fp16") or given.get("use_cpu")
    return given if chosen or not multiplies_in_bf16() else {**given, "bf16": True}


def arguments(folder: Path, merged: dict[str, Any]) -> TrainingArguments:
    """transformers' settings object of a run in this folder."""
    # accelerate treats several processes without a device as a single one, unless told to use the CPU.
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
    new = {key: key.replace("gradient_checkpointing", "activation_checkpointing") for key in merged}
    return {new[key] if new[key] in known else key: value for key, value in merged.items()}


# DeepSpeed


def read_deepspeed(given: dict[str, Any]) -> dict[str, Any]:
    """The settings with a DeepSpeed file read and brought up to date; it supplies what no other setting gives."""
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


def translate_deepspeed(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """A DeepSpeed configuration as today's, the settings of the trainer that it decides, a notice for each change."""
    config: dict[str, Any] = deepcopy(dict(given))
    notices, settings, changes = [], {}, TRAINER["deepspeed"]
    zero = config.get("zero_optimization", {})
    if isinstance(zero, bool):
        zero = config["zero_optimization"] = {"stage": int(zero)}
        notices.append(f"zero_optimization: {str(bool(zero['stage'])).lower()} is now a stage: {zero['stage']}")
    for old, device in (("cpu_offload", "offload_optimizer"), ("cpu_offload_params", "offload_param")):
        if old in zero:
            wanted = zero.pop(old)
            if wanted and device not in zero:
                zero[device] = {"device": "cpu", "pin_memory": bool(zero.get("cpu_offload_use_pin_memory", False))}
            notices.append(f"zero_optimization.{old} is now {device}" + ("" if wanted else ", which is left out"))
    zero.pop("cpu_offload_use_pin_memory", None)
    for old, new in changes["renamed"].items():
        if old in zero:
            zero.setdefault(new, zero.pop(old))
            notices.append(f"zero_optimization.{old} is now {new}")
    for old in changes["dropped"]:
        if old in zero:
            del zero[old]
            notices.append(f"zero_optimization.{old} no longer has a meaning and is left out")
    for theirs, ours in changes["ours"].items():
        config.setdefault(theirs, "auto")  # DeepSpeed's own defaults are none, 1 and no clipping
        if config[theirs] != "auto":
            settings[ours] = config[theirs]
            config[theirs] = "auto"
            notices.append(f"{theirs} is given by trainer.{ours}={settings[ours]}")
    if config.get("train_batch_size", "auto") != "auto":
        config["train_batch_size"] = "auto"
        notices.append("train_batch_size follows from batch per process, accumulation and number of processes")
    for precision in ("fp16", "bf16"):
        if (section := config.get(precision)) and section.get("enabled", "auto") != "auto":
            settings[precision] = bool(section["enabled"])
    return config, settings, notices
