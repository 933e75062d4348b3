"""The folder of a run: starts or resumes it, and makes the callbacks that write to it.

RUN/config.yaml      the resolved settings
RUN/metrics.jsonl    everything that was logged
RUN/tensorboard/     the same, if tensorboard is installed
RUN/rejects.jsonl    records that were not used, and why
RUN/checkpoints/     to resume from
RUN/model/           the model, opened by open_model
RUN/adapter/         the adapters alone, for save=adapter or both
RUN/report.html
"""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import get_last_checkpoint

from hanmo import config as settings
from hanmo.errors import ConfigError
from hanmo.processes import main_process
from hanmo.training.callbacks import MetricsFile, StopOnSignal

METRICS = "metrics.jsonl"


def begin(folder: Path, config: Any, resume: bool) -> str | None:
    """Write the settings to the run's folder, which may hold no other run; returns the checkpoint to resume from."""
    checkpoints = folder / "checkpoints"
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    last_written = "adapter" if getattr(config, "save", None) == "adapter" else "model"
    if (folder / last_written).exists():
        raise ConfigError(f"{folder}: holds a run that is over; give another folder, or remove it")
    if last and not resume:
        raise ConfigError(
            f"{folder}: holds a run that was stopped ({Path(last).name}); --resume it, or give another folder"
        )
    if resume and (folder / "config.yaml").is_file():
        before = settings.load(type(config), None, folder / "config.yaml")
        now = settings.load(type(config), yaml.safe_load(settings.dump(config)))  # a list may have become a tuple
        if changed := list(settings.differences(asdict(before), asdict(now))):
            raise ConfigError(f"{folder}: cannot resume with other settings: {'; '.join(changed)}")
    settings.save(config, folder / "config.yaml")
    return last


def callbacks(folder: Path, progress: TrainerCallback) -> tuple[list[TrainerCallback], StopOnSignal]:
    """The callbacks of every run, and the one of them that records whether a signal stopped it."""
    stop = StopOnSignal()
    found: list[TrainerCallback] = [MetricsFile(folder / METRICS), progress, stop]
    if main_process():
        with suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            found.append(TensorBoardCallback(SummaryWriter(str(folder / "tensorboard"))))
    return found, stop
