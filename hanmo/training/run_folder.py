"""What all stages do around their Trainer: a run folder, settings for transformers' Trainer, and what is left at the end.

RUN/config.yaml      the resolved settings
RUN/metrics.jsonl    what was logged
RUN/tensorboard/     the same, if tensorboard is installed
RUN/rejects.jsonl    records that were not used, and why
RUN/checkpoints/     to resume from
RUN/model/           the model, opened by open_model
RUN/report.html
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hanmo import config as settings
from hanmo import families
from hanmo.checkpoints import open_model
from hanmo.checkpoints.locate import locate
from hanmo.errors import ConfigError, quoted, unknown
from hanmo.families.base import Family, OpenedModel
from hanmo.report.page import Page
from hanmo.training.callbacks import MetricsFile, Progress, StopOnSignal, read_metrics
from hanmo.training.launch import translate_deepspeed
from hanmo.training.schedules import Schedule, factor, published_warmup

NEW = "init:"  # a model of random weights: init:SIZE
DEFAULTS: dict[str, Any] = {
    "logging_steps": 10,
    "save_total_limit": 2,
    "train_sampling_strategy": "group_by_length",
    "report_to": "none",
}


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``signal`` stopped it before its end; there is then no model, and it can be resumed."""

    run: str
    steps: int
    train_loss: float | None
    eval_loss_before: float | None
    eval_loss: float | None
    kept_step: int | None
    rows: int
    rejected: int
    seconds: float
    signal: int | None = None
    model: str | None = None


def new_model(size: str, shape: dict[str, Any], vocab: str | None) -> OpenedModel:
    """A network of random weights.

    Args:
        size: a released size of any family.
        shape: what of the size's configuration is different, e.g. ``{"num_layers": 2}``.
        vocab: the vocabulary file.
    """
    family, name = find_size(size)
    if vocab is None:
        raise ConfigError(f"{NEW}{size}: a new model needs a vocabulary: vocab=FILE")
    if not Path(vocab).exists():
        raise ConfigError(f"vocab: no such file: {vocab}")
    tokenizer = family.tokenizer_class(vocab_file=vocab)
    released = family.original_format.SIZES[name].config
    for key in shape:
        if key not in released or key == "vocab_size":
            raise ConfigError(unknown("setting of shape", key, set(released) - {"vocab_size"}))
    config = family.config_class(**{**released, "vocab_size": len(tokenizer), **shape})
    opened = family(config, tokenizer)
    return OpenedModel(family.network_class(opened.config), opened, f"{name}, random weights")


def find_size(size: str) -> tuple[type[Family], str]:
    """The family and the released size of a name or alias."""
    names = {
        alias.lower(): (family, name)
        for family in families.ours()
        for name, released in family.original_format.SIZES.items()
        for alias in (name, *released.aliases)
    }
    if size.lower() not in names:
        raise ConfigError(unknown("size", size, names))
    return names[size.lower()]


def open_for_training(
    model: str, size: str | None, original_config: str | None, vocab: str | None, rules: str | None,
    shape: dict[str, Any], tensor_parallel: int = 1,
) -> OpenedModel:  # fmt: skip
    """A model with fp32 weights, which the optimizer needs, whatever its files hold."""
    if model.startswith(NEW):
        if tensor_parallel > 1:
            raise ConfigError(f"tensor_parallel: {model} has no files to cut; train it for a step in one process first")
        if given := [n for n, v in (("size", size), ("config", original_config), ("rules", rules)) if v]:
            raise ConfigError(f"{model}: {' and '.join(given)} cannot be given for a new model")
        return new_model(model.removeprefix(NEW), shape, vocab)
    if shape:
        raise ConfigError(f"shape: only a new model ({NEW}SIZE) can be given one; {model} has its own")
    # A model in parts goes where its parts are computed; a whole one waits on the CPU for the Trainer.
    return open_model(
        model, size=size, config=original_config, vocab=vocab, rules=rules, dtype="fp32",
        device=None if tensor_parallel > 1 else "cpu", tensor_parallel=tensor_parallel,
    )  # fmt: skip


def data_files(data: str, valid: str | None) -> tuple[Path, Path | None]:
    """Training and validation file of a folder with train.* and valid.* (or dev.*), or of two files."""
    path = Path(data)
    if not path.exists():
        raise ConfigError(f"data: no such file or folder: {path}")
    if path.is_file():
        return path, Path(valid) if valid else None
    train = _one(path, ("train",))
    if train is None:
        raise ConfigError(f"data: {path} has no train.txt or train.jsonl")
    return train, Path(valid) if valid else _one(path, ("valid", "dev"))


def _one(folder: Path, stems: tuple[str, ...]) -> Path | None:
    suffixes = [end + zipped for end in (".txt", ".jsonl", ".json") for zipped in ("", ".gz")]
    found = [
        folder / f"{stem}{suffix}" for stem in stems for suffix in suffixes if (folder / f"{stem}{suffix}").exists()
    ]
    if len(found) > 1:
        raise ConfigError(f"data: {folder} has {' and '.join(path.name for path in found)}; name the file you mean")
    return found[0] if found else None


def tokenising(records: Iterable[Any], what: str, bar: bool = True) -> Iterator[Any]:
    """The records, with a progress bar on a terminal."""
    return iter(tqdm(records, desc=f"tokenising {what}", unit="record", disable=not (bar and sys.stderr.isatty())))


def trainer_settings(given: dict[str, Any], has_valid: bool) -> dict[str, Any]:
    """The settings of transformers' Trainer with ours where none are given."""
    evaluates = given.get("eval_strategy", "epoch" if has_valid else "no")
    if evaluates != "no" and not has_valid:
        raise ConfigError("trainer.eval_strategy: there is no validation file; give valid=FILE")
    merged = {**DEFAULTS, "eval_strategy": evaluates, **_with_deepspeed(given)}
    merged.setdefault("save_strategy", evaluates if evaluates != "no" else "epoch")
    if "eval_steps" in merged and merged["save_strategy"] == "steps":
        merged.setdefault("save_steps", merged["eval_steps"])
    if evaluates != "no":
        merged.setdefault("load_best_model_at_end", merged["save_strategy"] != "no")
        merged.setdefault("metric_for_best_model", "eval_loss")
    return merged


def _with_deepspeed(given: dict[str, Any]) -> dict[str, Any]:
    """The settings with a DeepSpeed file read, brought up to date, and what it decides where nothing else is given."""
    file = given.get("deepspeed")
    if not isinstance(file, str):
        return given
    try:
        config, settings_of_file, notices = translate_deepspeed(json.loads(Path(file).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"trainer.deepspeed: {file}: {error}") from None
    if main_process():
        for notice in notices:
            print(f"hanmo: {file}: {notice}", file=sys.stderr)
    return {**settings_of_file, **given, "deepspeed": config}


def arguments(folder: Path, merged: dict[str, Any]) -> TrainingArguments:
    """transformers' own settings object."""
    try:
        return TrainingArguments(
            output_dir=str(folder / "checkpoints"),
            remove_unused_columns=False,
            label_names=["labels"],
            average_tokens_across_devices=True,
            logging_nan_inf_filter=False,
            **{"dataloader_pin_memory": torch.cuda.is_available(), "use_cpu": _only_cpu(), **_by_new_names(merged)},
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


def _only_cpu() -> bool:
    """Several processes without a device: unless told so, accelerate takes them for one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()


def rate_factor(
    schedule: Schedule | None, args: TrainingArguments, published: bool
) -> Callable[[int, int], float] | None:
    """The learning rate's factor for RowTrainer; None leaves it to transformers.

    Published, "linear" and "cosine" fall over the run's batches before accumulation, so that with accumulation they
    do not reach their end.
    """
    if schedule is None:
        return None

    def at(step: int, steps: int) -> float:
        warmup = args.warmup_steps if args.warmup_steps >= 1 else published_warmup(args.warmup_steps, steps)
        return factor(schedule, step, warmup, steps * args.gradient_accumulation_steps if published else steps)

    return at


def begin(folder: Path, config: Any, resume: bool) -> str | None:
    """Make the run's folder and write its settings; returns the checkpoint to resume from.

    Raises:
        ConfigError: there is a run already, or its settings are not these.
    """
    checkpoints = folder / "checkpoints"
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    if (folder / "model").exists():
        raise ConfigError(f"{folder}: holds a run that is over; give another folder, or remove it")
    if last and not resume:
        raise ConfigError(
            f"{folder}: holds a run that was stopped ({Path(last).name}); --resume it, or give another folder"
        )
    if resume and (folder / "config.yaml").is_file():
        before = settings.load(type(config), None, folder / "config.yaml")
        old, new = asdict(before), asdict(config)
        changed = [f"{key} was {old[key]!r} and is now {new[key]!r}" for key in new if old[key] != new[key]]
        if changed:
            raise ConfigError(f"{folder}: cannot resume with other settings: {'; '.join(changed)}")
    settings.save(config, folder / "config.yaml")
    return last


def callbacks(folder: Path, show: TrainerCallback | None = None) -> tuple[list[TrainerCallback], StopOnSignal]:
    """The run's own callbacks, and among them the one that knows of a signal; ``show`` takes the place of the bar."""
    stop = StopOnSignal()
    found: list[TrainerCallback] = [MetricsFile(folder / "metrics.jsonl"), show or Progress(), stop]
    if not main_process():
        return found, stop
    try:
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback
    except ImportError:
        return found, stop
    return [*found, TensorBoardCallback(SummaryWriter(str(folder / "tensorboard")))], stop


def main_process() -> bool:
    """Whether this is the process of several (started by torchrun) that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def kept_step(trainer: Trainer) -> int:
    """The step of the final weights: that of the best checkpoint if it was loaded at the end, else the last step."""
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    return int(best.rpartition("-")[2]) if best else trainer.state.global_step


def figures(folder: Path, kept: int) -> dict[str, float | int | None]:
    """The last training loss, and the validation losses before training and at the kept step, from the metrics file."""
    entries = read_metrics(folder / "metrics.jsonl")
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    evaluated = {entry["step"]: entry["eval_loss"] for entry in entries if "eval_loss" in entry}
    return {
        "train_loss": losses[-1] if losses else None,
        "eval_loss_before": evaluated.get(0),
        "eval_loss": evaluated.get(kept),
        "kept_step": kept,
    }


def write_report(folder: Path, title: str, subtitle: str, facts: dict[str, Any]) -> None:
    """RUN/report.html: what was trained, and its curves."""
    entries = read_metrics(folder / "metrics.jsonl")

    def curve(name: str) -> list[tuple[float, float]]:
        return [(entry["step"], entry[name]) for entry in entries if name in entry]

    page = Page(title, subtitle)
    page.facts(facts)
    page.heading("Loss")
    page.line_plot({"training": curve("loss"), "validation": curve("eval_loss")}, x="step", y="loss")
    page.heading("Learning rate and gradient")
    page.line_plot({"learning rate": curve("learning_rate")}, x="step", y="learning rate", from_zero=True)
    page.line_plot({"gradient norm": curve("grad_norm")}, x="step", y="norm before clipping", from_zero=True)
    page.heading("Validation")
    page.table(
        ["step", "epoch", "loss"], [[e["step"], e.get("epoch"), e["eval_loss"]] for e in entries if "eval_loss" in e]
    )
    page.heading("Settings")
    with page.details("config.yaml"):
        page.paragraph((folder / "config.yaml").read_text(encoding="utf-8"))
    page.write(folder / "report.html")


def family_name(model: str) -> str:
    """The family of a model, without opening it: that of its size, its folder, or its original files."""
    if model.startswith(NEW):
        return find_size(model.removeprefix(NEW))[0].name
    return locate(model).family.name
