"""The life cycle of a training run, the same for every stage: from settings to a model and a report, or to a dry run."""

import time
from collections.abc import Callable, Sized
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import TrainerCallback, set_seed

from hanmo.checkpoints import save_model
from hanmo.config import dump
from hanmo.families.base import OpenedModel
from hanmo.files import json_text
from hanmo.locks import holding_inside
from hanmo.nn.tensor_parallel import is_cut
from hanmo.records import Rejects
from hanmo.report.page import Page, Point
from hanmo.training.arguments import arguments, check_ranges
from hanmo.training.callbacks import Progress, read_metrics
from hanmo.training.config import ADAPTER, MERGED
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
    """The resolved settings, the size of the data, and what a step needs on this machine; nothing is written."""
    config, opened, ready = _prepare(stage, config, bars=True)
    with TemporaryDirectory() as folder:  # transformers' Trainer creates its folder at once
        settings = {"disable_tqdm": True, **config.trainer, **ready.arguments, "report_to": "none"}
        args = arguments(Path(folder), settings)
        needs = _estimate(ready.trainer(ready.network, args, ready.train, ready.valid, None, []))
    return {
        "config": dump(config),
        "model": opened.source,
        "rows": len(ready.train),
        "valid_rows": len(ready.valid) if ready.valid is not None else 0,
        "rejected": len(ready.rejects),
        **needs,
    }


def _estimate(trainer: RowTrainer) -> dict[str, Any]:
    """Parameters, memory in bytes and seconds of one optimizer step on this machine, without changing a weight.

    ``activations`` are those that the largest batch keeps for its backward pass; the work space of operations is extra.
    ``optimizer`` assumes two fp32 values per trained parameter, as in Adam.
    """
    network, args = trainer.model, trainer.args
    assert isinstance(network, nn.Module)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    trained_count = sum(parameter.numel() for parameter in trained)
    sizes = {
        "weights": sum(parameter.nbytes for parameter in network.parameters()),
        "gradients": sum(parameter.nbytes for parameter in trained),
        "optimizer": 8 * trained_count,
    }
    batch, seconds_beside = trainer.measured_batch()
    batch = trainer._prepare_inputs(batch)
    if args.gradient_checkpointing:
        checkpoint_layers(network, selective=False)  # as the Trainer will before its first step
    sizes["activations"], _ = _measure(trainer, network, batch)
    _, seconds = _measure(trainer, network, batch)
    steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())[-1]
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "trained_parameters": trained_count,
        "memory": {**sizes, "total": sum(sizes.values())},
        "steps": steps,
        "seconds_per_step": round(seconds * args.gradient_accumulation_steps + seconds_beside, 4),
    }


def _measure(trainer: RowTrainer, network: nn.Module, batch: dict[str, Any]) -> tuple[int, float]:
    """Bytes kept for the backward pass, and seconds of both passes."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    network.train()
    items = trainer._get_num_items_in_batch([batch], trainer.args.device)
    start = time.perf_counter()
    with saved_tensors_hooks(pack, lambda tensor: tensor), trainer.accelerator.autocast():
        loss: Any = trainer.compute_loss(network, dict(batch), num_items_in_batch=items)
    loss.backward()
    seconds = time.perf_counter() - start + 0.0 * loss.item()  # item() waits for the device
    network.zero_grad()
    return sum(kept.values()), seconds


def _prepare(stage: Stage, config: Any, bars: bool, **parts: Any) -> tuple[Any, OpenedModel, Ready]:
    """Do everything that can fail on wrong input before anything is written."""
    files = replace(config.files(), bars=bars)
    config = replace(config, trainer=config.trainer_settings(bool(files.valid)))
    check_ranges(config.trainer)
    set_seed(config.trainer.get("seed", 42))
    opened = open_for_training(config)
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
