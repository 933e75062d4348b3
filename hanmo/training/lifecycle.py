"""What the stages that learn from rows have in common: from everything made ready to a model, or to a dry run."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hanmo.checkpoints import save_model
from hanmo.config import dump
from hanmo.data.rows.dataset import Rows
from hanmo.families.base import OpenedModel
from hanmo.nn.tensor_parallel import is_cut
from hanmo.records import Rejects
from hanmo.training.estimate import estimate
from hanmo.training.run_folder import (
    Outcome,
    arguments,
    begin,
    callbacks,
    figures,
    kept_step,
    rate_factor,
    write_report,
)
from hanmo.training.trainer import RowTrainer


@dataclass(frozen=True)
class Prepared:
    """A stage before its first step.

    Attributes:
        network: what is trained; the opened network itself, or adapters around it.
        title: of the report.
    """

    opened: OpenedModel
    network: Any
    rows: Rows
    valid: Rows | None
    rejects: Rejects
    trainer_class: type[RowTrainer]
    title: str

    def trainer(self, args: TrainingArguments, factor: Any, extra: list[TrainerCallback]) -> RowTrainer:
        """The trainer, which prints nothing on standard output."""
        trainer = self.trainer_class(self.network, args, self.rows, self.valid, factor, extra)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        return trainer


def train(config: Any, ready: Prepared, resume: bool, show: TrainerCallback | None, start: float) -> Outcome:
    """Train to the end, or until a signal; the run's folder is described in ``training/run_folder.py``.

    Args:
        show: shows the progress, in place of bars on standard error.
        start: when the stage began, by ``time.monotonic``.
    """
    folder = Path(config.out)
    checkpoint = begin(folder, config, resume)
    if ready.rejects:
        ready.rejects.write(folder / "rejects.jsonl")
    first = {"eval_on_start": ready.valid is not None and checkpoint is None, "disable_tqdm": True}
    args = arguments(folder, {**first, **config.trainer})
    extra, stop = callbacks(folder, show)
    trainer = ready.trainer(args, rate_factor(config.schedule, args, config.published), extra)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        stop.restore()
    outcome = Outcome(
        run=str(folder),
        steps=trainer.state.global_step,
        rows=len(ready.rows),
        rejected=len(ready.rejects),
        seconds=round(time.monotonic() - start, 1),
        signal=stop.signal,
        **figures(folder, kept_step(trainer)),  # type: ignore[arg-type]
    )
    if stop.signal is not None:
        return outcome
    trained, weights = trainer.finished(ready.network)
    if trainer.is_world_process_zero() or is_cut(trained):
        save_model(replace(ready.opened, network=trained), folder / "model", weights)
    if trainer.is_world_process_zero():
        known = {name: value for name, value in asdict(outcome).items() if value is not None}
        facts = {"model": ready.opened.source, "data": config.data, **known}
        write_report(folder, ready.title, ready.opened.source, facts)
    return replace(outcome, model=str(folder / "model"))


def dry_run(config: Any, ready: Prepared) -> dict[str, Any]:
    """The resolved settings, what was read, and what a step needs on this machine; nothing is written."""
    with TemporaryDirectory() as folder:  # transformers' Trainer makes its folder at once
        args = arguments(Path(folder), {"disable_tqdm": True, **config.trainer, "report_to": "none"})
        needs = estimate(ready.trainer(args, None, []))
    return {
        "config": dump(config),
        "model": ready.opened.source,
        "rows": len(ready.rows),
        "valid_rows": len(ready.valid) if ready.valid is not None else 0,
        "rejected": len(ready.rejects),
        **needs,
    }
