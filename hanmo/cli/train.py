"""hanmo train: one command for each stage of training."""

from __future__ import annotations

import ast
import shlex
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hanmo.cli.common import Command, Json, emit, note, results_only, split_settings
from hanmo.cli.ranks import Processes, TensorParallel, ranks_of_this_run, start_processes, without
from hanmo.files import package_yaml
from hanmo.processes import main_process

if TYPE_CHECKING:
    from hanmo.training.lifecycle import Stage


QUOTED = '"'  # YAML's style that can hold any text


class StageCommand(Command):
    """A command whose help ends with the settings of the stage of its name, as ``tools/settings_docs.py`` wrote them."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        super().format_epilog(ctx, formatter)
        settings = package_yaml("hanmo.cli", "settings.yaml")[self.name]
        with formatter.section("Settings (KEY=VALUE; docs/settings.md has them in tables)"):
            formatter.write_dl(list(settings.items()))


def stage_command(name: str) -> Callable[..., None]:
    """The command of a stage; its help is the docstring of the stage's module, which is read without an import."""

    def command(
        model: Annotated[str, typer.Argument(help="A model, or init:SIZE for random weights.", show_default=False)],
        data: Annotated[
            str, typer.Argument(help="Folder, file, or a list of them: [a.jsonl:0.7,b.jsonl:0.3].", show_default=False)
        ],
        rest: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="[OUT] [KEY=VALUE]...", help="The run's folder, and settings to change.", show_default=False
            ),
        ] = None,
        config: Annotated[Path | None, typer.Option("--config", help="Settings as YAML.")] = None,
        preset: Annotated[
            str | None,
            typer.Option(
                help="Preset of the stage or the model's family; none for none. [default: published, if there is one]"
            ),
        ] = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Print the settings and what a step needs on this machine, and stop.")
        ] = False,
        resume: Annotated[bool, typer.Option("--resume", help="Resume a run that was stopped.")] = False,
        nproc: Processes = 1,
        hostfile: Annotated[
            Path | None,
            typer.Option("--hostfile", help="Print the command for each machine of a DeepSpeed hostfile, and stop."),
        ] = None,
        tensor_parallel: TensorParallel = None,
        as_json: Json = False,
    ) -> None:
        if hostfile is not None:
            _print_launch_lines(hostfile)
            return
        if nproc > 1:
            start_processes(nproc)
        given = list(rest or [])
        if tensor_parallel is not None:
            ranks_of_this_run(tensor_parallel)
            given.append(f"tensor_parallel={tensor_parallel}")
        from hanmo.training.stages import load_stage

        stage = load_stage(name)
        settings = read_settings(stage, model, data, given, config, preset)
        if dry_run:
            from hanmo.training.lifecycle import dry_run as measure

            with results_only():
                needs = measure(stage, settings)
            if main_process():
                emit(needs, as_json, _show_dry_run)
        else:
            _run(stage, settings, resume, as_json)

    spec = find_spec(f"hanmo.training.stages.{name}")
    assert spec is not None and spec.origin is not None
    command.__doc__ = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    return command


def _print_launch_lines(hostfile: Path) -> None:
    from hanmo.training.launch import launch_lines, read_hostfile

    arguments = without(sys.argv[1:], "--nproc", "--hostfile")
    for host, line in launch_lines(read_hostfile(hostfile), arguments).items():
        print(f"{host}: {shlex.join(line)}")


def _run(stage: Stage, settings: Any, resume: bool, as_json: bool) -> None:
    with results_only():
        outcome = stage(settings, resume)
    if main_process():
        emit(outcome.__dict__, as_json, lambda result: _show_outcome(stage, result))
    if outcome.signal is not None:
        note(f"stopped after step {outcome.steps}; --resume continues from there")
        sys.exit(128 + outcome.signal)


def read_settings(stage: Stage, model: str, data: str, rest: list[str], file: Path | None, preset: str | None) -> Any:
    """The settings of a stage: its defaults, changed by the preset, then the file, then the command's words, ``rest``."""
    import yaml

    from hanmo.config import load

    out, overrides = split_settings(rest)
    if len(out) > 1:
        raise typer.BadParameter(f"one folder for the run, not {', '.join(out)}; settings are key=value")
    data = data.removeprefix("data=")
    listed = data.startswith("[") and data.endswith("]") and not Path(data).exists()
    places = [("model", model), *([] if listed else [("data", data)]), *(("out", item) for item in out)]
    given = [f"{name}={yaml.safe_dump(place, default_style=QUOTED)}" for name, place in places]
    given += [f"data={data}"] if listed else []
    return load(stage.config, _preset(model, stage.name, preset), file, given + overrides)


def _preset(model: str, stage: str, name: str | None) -> dict[str, Any]:
    """The settings of a preset of the stage or of the model's family; of "published" if none is named and the family has it."""
    from hanmo.errors import ConfigError, unknown
    from hanmo.families import presets
    from hanmo.training.opening import family_name
    from hanmo.training.stages import presets as methods

    if name == "none":
        return {}
    found = {**methods(stage), **presets(family_name(model)).get(stage, {})}
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
    parts = ", ".join(f"{name} {_size(size)}" for name, size in memory.items() if name not in ("total", "sharded"))
    print(f"memory       {_size(memory['total'])} at its peak: {parts}")
    print(
        f"             {_size(memory['sharded'])} in each of 8 processes that trainer.fsdp=full_shard divides it among"
    )
    seconds, operations = result["seconds_per_step"], result["operations"]
    print(
        f"time         at least {seconds:.3g} s a step for {operations:.3g} operations at this machine's speed, "
        f"{result['steps']:,} steps: {result['steps'] * seconds / 60:.1f} minutes"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def _show_outcome(stage: Stage, result: dict[str, Any]) -> None:
    print(f"{stage.name}: {result['steps']:,} steps on {result['rows']:,} rows in {result['seconds']:.0f} s")
    if result["rejected"]:
        print(f"{result['rejected']:,} records were not used: {result['run']}/rejects.jsonl")
    for label, before, after in stage.results.learned:
        if result[after] is not None:
            first = f"{result[before]:.4f} -> " if before and result[before] is not None else ""
            print(f"learned  {label} {first}{result[after]:.4f}")
    if result.get("kept_step", result["steps"]) != result["steps"]:
        print(f"kept     the weights of step {result['kept_step']}, which were the best on the validation file")
    if result["adapter"]:
        print(f"adapter  {result['adapter']} (open it beside its model: --adapter {result['adapter']})")
    if result["model"]:
        print(f"model    {result['model']}")
    if result["model"] or result["adapter"]:
        print(f"report   {result['run']}/report.html")
    if result["model"]:
        for command in stage.then:
            print(f"next     {command.format(model=result['model'])}")
