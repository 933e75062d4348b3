"""The life cycle of a training run, the same for every stage: from settings to a model and a report, or to a dry run."""

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
from hanmo.files import json_text
from hanmo.locks import holding_inside
from hanmo.nn.shapes import Shapes
from hanmo.nn.tensor_parallel import is_cut
from hanmo.records import Rejects
from hanmo.report.page import Page, Point
from hanmo.training.arguments import arguments, check_ranges
from hanmo.training.callbacks import Progress, read_metrics
from hanmo.training.config import ADAPTER, MERGED
from hanmo.training.needs import needs
from hanmo.training.opening import open_for_training
from hanmo.training.run_folder import METRICS, begin, callbacks
from hanmo.training.schedules import rate_factor
from hanmo.training.trainable import checkpoint_layers, save_adapter
from hanmo.training.trainer import RowTrainer


@dataclass(frozen=True)
class Ready:
    """A stage that is ready for its first step.

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
    adapter: str | None = None


@dataclass(frozen=True)
class Run:
    """A run after its last step, for the figures and the report of its stage; a signal may have ``stopped`` it."""

    folder: Path
    config: Any
    trainer: Any
    stopped: bool

    @cached_property
    def entries(self) -> list[dict[str, Any]]:
        """Everything that was logged."""
        return read_metrics(self.folder / METRICS)

    def curve(self, name: str, x: str = "step") -> list[Point]:
        """The values logged under a name, by step or round."""
        return [(entry[x], entry[name]) for entry in self.entries if name in entry and x in entry]


@dataclass(frozen=True)
class Results:
    """The figures that a stage shows during a run, at its end and in its report.

    Attributes:
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
    """A stage of training, which runs when it is called with its settings.

    Attributes:
        name: name of the command and of the presets.
        title: title of the report.
        build: makes data sets and a Trainer from the opened model, the settings and the data files.
        then: suggested next commands, with {model} for the model's folder.
    """

    name: str
    title: str
    config: type[Any]
    build: Callable[..., Ready]
    results: Results
    then: tuple[str, ...] = ()

    def __call__(self, config: Any, resume: bool = False, show: TrainerCallback | None = None, **parts: Any) -> Any:
        """Train to the end, or until a signal; returns the outcome. ``run_folder.py`` describes the run's folder.

        Args:
            show: shows the progress, in place of bars on standard error.
            parts: passed on to the stage's ``build``, e.g. the engine that makes a policy's replies.

        Raises:
            HanmoError: a setting, a file or a record is wrong, another run uses the folder, or training diverged.
        """
        start = time.monotonic()
        with holding_inside(config.out):
            config, opened, ready = _prepare(self, config, bars=show is None, **parts)
            folder = Path(config.out)
            checkpoint = begin(folder, config, resume)
            if ready.rejects:
                ready.rejects.write(folder / "rejects.jsonl")
            first = {"eval_on_start": ready.valid is not None and checkpoint is None, "disable_tqdm": True}
            args = arguments(folder, {**first, **config.trainer, **ready.arguments})
            extra, stop = callbacks(folder, show or Progress(self.results.shown))
            factor = rate_factor(config.schedule, args, ready.published)
            trainer = ready.trainer(ready.network, args, ready.train, ready.valid, factor, extra)
            try:
                trainer.train(resume_from_checkpoint=checkpoint)
            finally:
                stop.restore()
            run = Run(folder, config, trainer, stopped=stop.signal is not None)
            seconds, figures = round(time.monotonic() - start, 1), self.results.figures(run)
            counts = trainer.state.global_step, len(ready.train), len(ready.rejects)
            outcome = self.results.outcome(str(folder), *counts, seconds, stop.signal, **figures)
            if run.stopped:
                return outcome
            saved = _save(config, opened, ready.network, trainer)
            if trainer.is_world_process_zero():
                write_report(self, run, opened.source, outcome)
            return replace(outcome, **saved)


def _save(config: Any, opened: OpenedModel, network: Any, trainer: Any) -> dict[str, Any]:
    """Write what a run has learned; the folders by their names. All processes call this."""
    folder, saved = Path(config.out), dict[str, Any]()
    if (wanted := getattr(config, "save", MERGED)) != MERGED:
        tensors, saved["adapter"] = trainer.final_adapter(network), str(folder / ADAPTER)
        if trainer.is_world_process_zero():
            save_adapter(network, tensors, folder / ADAPTER, config.model)
    if wanted != ADAPTER:
        trained, weights = trainer.final_model(network)
        saved["model"] = str(folder / "model")
        if trainer.is_world_process_zero() or is_cut(trained):
            save_model(replace(opened, network=trained), folder / "model", weights)
    return saved


def dry_run(stage: Stage, config: Any) -> dict[str, Any]:
    """The resolved settings, the size of the data, and what a step needs; no weight is read, and nothing is written."""
    config, opened, ready = _prepare(stage, config, bars=True, blank=True)
    with TemporaryDirectory() as folder:  # transformers' Trainer creates its folder at once
        settings = {"disable_tqdm": True, **config.trainer, **ready.arguments, "report_to": "none"}
        args = arguments(Path(folder), settings)
        shapes = Shapes()
        shapes.shaped(ready.network, args.device)
        trainer = ready.trainer(ready.network, args, ready.train, ready.valid, None, [])
        found = needs(trainer, shapes, config.tensor_parallel)
    return {
        "config": dump(config),
        "model": opened.source,
        "rows": len(ready.train),
        "valid_rows": len(ready.valid) if ready.valid is not None else 0,
        "rejected": len(ready.rejects),
        **found,
    }


def _prepare(
    stage: Stage, config: Any, bars: bool, blank: bool = False, **parts: Any
) -> tuple[Any, OpenedModel, Ready]:
    """Do everything that can fail on wrong input before anything is written; ``blank``: without reading weights."""
    files = replace(config.files(), bars=bars)
    config = replace(config, trainer=config.trainer_settings(bool(files.valid)))
    check_ranges(config.trainer)
    set_seed(config.trainer.get("seed", 42))
    opened = open_for_training(config, blank)
    if config.selective_checkpointing:
        checkpoint_layers(opened.network, selective=True)
    return config, opened, stage.build(opened, config, files, **parts)


def write_report(stage: Stage, run: Run, model: str, outcome: Outcome) -> None:
    """RUN/report.html: facts, the stage's own sections, and the settings."""
    settings = {name: getattr(run.config, name) for name in ("data", *stage.results.facts)}
    shown = {name: _listed(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    reached = {name.replace("_", " "): value for name, value in asdict(outcome).items() if value is not None}
    page = Page(stage.title, model)
    page.facts({"model": model, **shown, **reached})
    stage.results.sections(run, page)
    page.heading("Settings")
    with page.details("config.yaml"):
        page.code((run.folder / "config.yaml").read_text(encoding="utf-8"))
    page.write(run.folder / "report.html")


def _listed(values: tuple[Any, ...]) -> str:
    return ", ".join(value if isinstance(value, str) else json_text(value) for value in values)
