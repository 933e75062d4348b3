"""The life cycle of a training run, the same for every stage: from settings to a model and a report, or to a dry run.

A stage is data: what its settings are, how it makes a data set and a Trainer from them, and what it reports.
``run_stage`` does everything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sized
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import TrainerCallback, set_seed

from hanmo.checkpoints import save_model
from hanmo.config import dump
from hanmo.families.base import OpenedModel
from hanmo.locks import holding_inside
from hanmo.nn.tensor_parallel import is_cut
from hanmo.records import Rejects
from hanmo.report.page import Page, Point
from hanmo.training.arguments import arguments, rate_factor
from hanmo.training.callbacks import Progress, read_metrics
from hanmo.training.config import RunConfig
from hanmo.training.data_files import DataFiles
from hanmo.training.estimate import estimate
from hanmo.training.opening import open_for_training
from hanmo.training.run_folder import METRICS, begin, callbacks
from hanmo.training.trainable import checkpoint_layers
from hanmo.training.trainer import RowTrainer


@dataclass(frozen=True)
class Ready:
    """A stage before its first step.

    Attributes:
        network: the network to train: the opened one, or adapters around it.
        trainer: makes the Trainer from network, arguments, training data, validation data, rate factor and callbacks.
        arguments: settings of the Trainer that follow from the data; they win over the user's.
        published: the schedule is the published one, see ``rate_factor``.
    """

    network: Any
    trainer: Callable[..., RowTrainer]
    train: Sized
    valid: Sized | None
    rejects: Rejects
    arguments: dict[str, Any] = field(default_factory=dict)
    published: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``signal`` stopped it before its end; there is then no model, and it can be resumed."""

    run: str
    steps: int
    rows: int
    rejected: int
    seconds: float
    signal: int | None = None
    model: str | None = None


@dataclass(frozen=True)
class Run:
    """A run after its last step, for the figures and the report of its stage.

    Attributes:
        stopped: by a signal, before its end.
    """

    folder: Path
    config: Any
    trainer: Any
    stopped: bool

    @cached_property
    def entries(self) -> list[dict[str, Any]]:
        """Everything that was logged."""
        return read_metrics(self.folder / METRICS)

    def curve(self, name: str, x: str = "step") -> list[Point]:
        """What was logged under a name, by step or round."""
        return [(entry[x], entry[name]) for entry in self.entries if name in entry and x in entry]


@dataclass(frozen=True)
class Results:
    """The figures that a stage shows during a run, at its end, and in its report.

    Attributes:
        outcome: the class of the result.
        figures: the fields of ``outcome`` that are the stage's own.
        sections: writes the stage's part of the report.
        learned: the figures printed at the end: (label, field of ``outcome`` before training or None, field after).
        shown: the logged figures that the progress shows.
        facts: the settings that stand at the head of the report.
    """

    outcome: type[Outcome]
    figures: Callable[[Run], dict[str, Any]]
    sections: Callable[[Run, Page], None]
    learned: tuple[tuple[str, str | None, str], ...]
    shown: tuple[str, ...]
    facts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """A stage of training. Called with its settings it runs; see ``run_stage``.

    Attributes:
        name: of the command and of the presets.
        title: of the report.
        config: the class of the settings.
        build: makes data sets and a Trainer from the opened model, the settings and the data files.
        results: the figures it shows and reports.
        then: commands that continue from the model, with {model} in place of its folder.
    """

    name: str
    title: str
    config: type[Any]
    build: Callable[..., Ready]
    results: Results
    then: tuple[str, ...] = ()

    def __call__(self, config: Any, resume: bool = False, show: TrainerCallback | None = None, **parts: Any) -> Any:
        return run_stage(self, config, resume, show, **parts)


def run_stage(
    stage: Stage, config: Any, resume: bool = False, show: TrainerCallback | None = None, **parts: Any
) -> Any:
    """Train to the end, or until a signal; ``training/run_folder.py`` describes the run's folder.

    Args:
        show: shows the progress, in place of bars on standard error.
        parts: passed on to the stage's ``build``, e.g. the engine that makes a policy's replies.

    Returns:
        The stage's outcome.

    Raises:
        HanmoError: a setting, a file or a record is wrong, another run uses the folder, or training diverged.
    """
    start = time.monotonic()
    with holding_inside(config.out):
        config, opened, ready = _prepare(stage, config, show is None, parts)
        folder = Path(config.out)
        checkpoint = begin(folder, config, resume)
        if ready.rejects:
            ready.rejects.write(folder / "rejects.jsonl")
        first = {"eval_on_start": ready.valid is not None and checkpoint is None, "disable_tqdm": True}
        args = arguments(folder, {**first, **config.trainer, **ready.arguments})
        extra, stop = callbacks(folder, show or Progress(stage.results.shown))
        factor = rate_factor(config.schedule, args, ready.published)
        trainer = ready.trainer(ready.network, args, ready.train, ready.valid, factor, extra)
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        finally:
            stop.restore()
        run = Run(folder, config, trainer, stopped=stop.signal is not None)
        outcome = stage.results.outcome(
            run=str(folder),
            steps=trainer.state.global_step,
            rows=len(ready.train),
            rejected=len(ready.rejects),
            seconds=round(time.monotonic() - start, 1),
            signal=stop.signal,
            **stage.results.figures(run),
        )
        if stop.signal is not None:
            return outcome
        trained, weights = trainer.final_model(ready.network)
        if trainer.is_world_process_zero() or is_cut(trained):
            save_model(replace(opened, network=trained), folder / "model", weights)
        if trainer.is_world_process_zero():
            write_report(stage, run, opened.source, outcome)
        return replace(outcome, model=str(folder / "model"))


def dry_run(stage: Stage, config: Any) -> dict[str, Any]:
    """The resolved settings, the size of the data, and what a step needs on this machine; nothing is written."""
    config, opened, ready = _prepare(stage, config, True, {})
    with TemporaryDirectory() as folder:  # transformers' Trainer makes its folder at once
        settings = {"disable_tqdm": True, **config.trainer, **ready.arguments, "report_to": "none"}
        args = arguments(Path(folder), settings)
        needs = estimate(ready.trainer(ready.network, args, ready.train, ready.valid, None, []))
    return {
        "config": dump(config),
        "model": opened.source,
        "rows": len(ready.train),
        "valid_rows": len(ready.valid) if ready.valid is not None else 0,
        "rejected": len(ready.rejects),
        **needs,
    }


def _prepare(
    stage: Stage, config: RunConfig, bars: bool, parts: dict[str, Any]
) -> tuple[RunConfig, OpenedModel, Ready]:
    """Everything that can be wrong, before anything is written."""
    train, valid = config.files()
    config = replace(config, trainer=config.trainer_settings(valid is not None))
    set_seed(config.trainer.get("seed", 42))
    opened = open_for_training(config)
    if config.selective_checkpointing:
        checkpoint_layers(opened.network, selective=True)
    return config, opened, stage.build(opened, config, DataFiles(train, valid, config.skip_bad, bars), **parts)


def write_report(stage: Stage, run: Run, model: str, outcome: Outcome) -> None:
    """RUN/report.html: facts, the stage's own sections, and the settings."""
    settings = {name: getattr(run.config, name) for name in stage.results.facts}
    page = Page(stage.title, model)
    page.facts(
        {
            "model": model,
            "data": run.config.data,
            **{name: ", ".join(value) if isinstance(value, tuple) else value for name, value in settings.items()},
            **{name: value for name, value in asdict(outcome).items() if value is not None},
        }
    )
    stage.results.sections(run, page)
    page.heading("Settings")
    with page.details("config.yaml"):
        page.paragraph((run.folder / "config.yaml").read_text(encoding="utf-8"))
    page.write(run.folder / "report.html")
