"""hanmo train: train a model."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from hanmo.cli.common import Json, Processes, emit, note, results_only, start_processes, without
from hanmo.cli.ranks import TensorParallel, ranks_of_this_run

C = TypeVar("C")
Model = Annotated[str, typer.Argument(help="A model, or init:SIZE for random weights.", show_default=False)]
Data = Annotated[str, typer.Argument(help="Folder with train.* and valid.*, or a training file.", show_default=False)]
Rest = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[OUT] [KEY=VALUE]...", help="The run's folder, and settings to change.", show_default=False
    ),
]
File = Annotated[Path | None, typer.Option("--config", help="Settings as YAML.")]
Preset = Annotated[
    str | None, typer.Option(help="Preset of the model's family; none for none. [default: published, if there is one]")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the settings and what a step needs on this machine, and stop.")
]
Hosts = Annotated[
    Path | None,
    typer.Option("--hostfile", help="Print the command for each machine of a DeepSpeed hostfile, and stop."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")]


def sft(
    model: Model,
    data: Data,
    rest: Rest = None,
    config: File = None,
    preset: Preset = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    nproc: Processes = 1,
    hostfile: Hosts = None,
    tensor_parallel: TensorParallel = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a model on dialogues, or on prompts and responses.

    Data is tab-separated turns, one dialogue a line (train.txt), or JSON lines: {"turns": [...]}, messages with roles,
    {"prompt", "response"}, {"instruction", "input", "output"}. The run's folder holds the model at the end; Ctrl-C
    saves and stops.

    Example: hanmo train sft models/eva2.0-base data/kdconv runs/kdconv limit=256 trainer.num_train_epochs=5
    """
    if _several(nproc, hostfile):
        return
    _run("sft", model, data, _in_parts(tensor_parallel, rest), config, preset, dry_run, resume, as_json)


def pretrain(
    model: Model,
    data: Data,
    rest: Rest = None,
    config: File = None,
    preset: Preset = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    nproc: Processes = 1,
    hostfile: Hosts = None,
    tensor_parallel: TensorParallel = None,
    as_json: Json = False,
) -> None:
    """Pretrain a model on running text, or EVA on dialogues.

    Data is text, a document a line, or JSON lines {"text": ...}; or a token store. Each family has its own objective:
    the next token (PanGu, transformers models), streams with memory (Transformer-XL), blank filling (GLM), every reply
    of a dialogue (EVA).

    Example: hanmo train pretrain init:glm-335m-chinese data/corpus.jsonl runs/glm vocab=cog-pretrain.model
    """
    if _several(nproc, hostfile):
        return
    _run("pretrain", model, data, _in_parts(tensor_parallel, rest), config, preset, dry_run, resume, as_json)


def _in_parts(tensor_parallel: int | None, rest: list[str] | None) -> list[str]:
    """The settings, in each of the processes that share a model; the other processes than the first say nothing."""
    if tensor_parallel is None:
        return rest or []
    ranks_of_this_run(tensor_parallel)
    return [*(rest or []), f"tensor_parallel={tensor_parallel}"]


def _several(processes: int, hostfile: Path | None) -> bool:
    """Start this command in several processes, or print how; False where this is the process that is to train."""
    if processes == 1 and hostfile is None:
        return False
    if hostfile is None:
        start_processes(processes)
    else:
        from hanmo.training.launch import launch_lines, read_hostfile

        arguments = without(sys.argv[1:], "--nproc", "--hostfile")
        for host, line in launch_lines(read_hostfile(hostfile), arguments).items():
            print(f"{host}: {shlex.join(line)}")
    return True


def _run(
    name: str, model: str, data: str, rest: list[str], file: Path | None, preset: str | None, dry: bool, resume: bool,
    as_json: bool,
) -> None:  # fmt: skip
    stage: Any
    if name == "sft":
        from hanmo.training.stages import sft as stage

        kind, train = stage.SftConfig, stage.sft
    else:
        from hanmo.training.stages import pretrain as stage

        kind, train = stage.PretrainConfig, stage.pretrain
    settings = read_settings(name, kind, model, data, rest, file, preset)
    if dry:
        with results_only():
            needs = stage.dry_run(settings)
        emit(needs, as_json, _show_dry_run)
    else:
        run(train, settings, resume, as_json, _show_outcome)


def read_settings(
    stage: str, kind: type[C], model: str, data: str, rest: list[str], file: Path | None, preset: str | None
) -> C:
    """The settings of a stage: its defaults, changed by the preset, then the file, then the command line.

    Args:
        kind: the class of the settings.
        rest: at most one folder for the run, and settings as KEY=VALUE.
    """
    from hanmo.config import load

    overrides = [item for item in rest if _OVERRIDE.match(item)]
    out = [item for item in rest if not _OVERRIDE.match(item)]
    if len(out) > 1:
        raise typer.BadParameter(f"one folder for the run, not {', '.join(out)}; settings are key=value")
    given = [f"model={json.dumps(model)}", f"data={json.dumps(data)}", *(f"out={json.dumps(item)}" for item in out)]
    return load(kind, _preset(model, stage, preset), file, given + overrides)


def run(
    train: Callable[[Any, bool], Any], settings: Any, resume: bool, as_json: bool, show: Callable[[dict[str, Any]], None]
) -> None:  # fmt: skip
    """Run a stage; print what it has come to, from one of its processes; exit as a signal asks where one stopped it."""
    from hanmo.training.run_folder import main_process

    with results_only():
        outcome = train(settings, resume)
    if main_process():
        emit(outcome.__dict__, as_json, show)
    if outcome.signal is not None:
        note(f"stopped after step {outcome.steps}; --resume goes on from there")
        sys.exit(128 + outcome.signal)


_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


def _preset(model: str, stage: str, name: str | None) -> dict[str, Any]:
    """The settings of a preset of the model's family; of "published" if none is named and the family has it."""
    from hanmo.errors import ConfigError, unknown
    from hanmo.families.presets import presets
    from hanmo.training.run_folder import family_name

    if name == "none":
        return {}
    found = presets(family_name(model)).get(stage, {})
    if name is None:
        return found.get("published", {})
    if name not in found:
        raise ConfigError(unknown("preset", name, [*found, "none"]))
    return found[name]


def _show_dry_run(result: dict[str, Any]) -> None:
    memory = result["memory"]
    print(result["config"])
    print(f"model        {result['model']}")
    print(
        f"rows         {result['rows']:,} to train on, {result['valid_rows']:,} to validate, {result['rejected']:,} not used"
    )
    print(f"parameters   {result['parameters']:,}, of which {result['trained_parameters']:,} are trained")
    parts = " + ".join(f"{name} {_size(size)}" for name, size in memory.items() if name != "total")
    print(f"memory       {_size(memory['total'])} = {parts}")
    total = result["steps"] * result["seconds_per_step"]
    print(
        f"time         {result['seconds_per_step']:.3g} s a step at most, {result['steps']:,} steps: {total / 60:.1f} minutes"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def _show_outcome(result: dict[str, Any]) -> None:
    print(f"{result['steps']:,} steps on {result['rows']:,} rows in {result['seconds']:.0f} s")
    if result["rejected"]:
        print(f"{result['rejected']:,} records were not used: {result['run']}/rejects.jsonl")
    if result["eval_loss"] is not None:
        before = f"{result['eval_loss_before']:.4f} before, " if result["eval_loss_before"] is not None else ""
        print(
            f"validation loss {before}{result['eval_loss']:.4f} after step {result['kept_step']}, whose weights are kept"
        )
    if result["model"]:
        print(f"report  {result['run']}/report.html")
        print(f"talk to it: hanmo chat {result['model']}")
