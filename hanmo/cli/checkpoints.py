"""``hanmo convert`` and ``hanmo inspect``: the files of a model."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hanmo.cli.common import Adapter, ConfigFile, Json, Model, RulesFolder, Size, Vocab, emit

_COLOURS = {"ok": "green", "warning": "yellow", "fault": "red", "skipped": "dim"}


def convert(
    source: Annotated[str, typer.Argument(help="What to convert: a model folder, original checkpoint, or hub id.")],
    target: Annotated[Path, typer.Argument(help="The folder to write.")],
    to: Annotated[
        str,
        typer.Option(
            help="hanmo: our folder, complete; hf: for plain transformers without hanmo; original: the first programs' "
            "layout. Default: original with --tensor-parallel, else hanmo.",
            show_default=False,
        ),
    ] = "",
    tensor_parallel: Annotated[
        int | None, typer.Option(metavar="N", help="Split an original layout over N ranks (1 merges).")
    ] = None,
    size: Size = None,
    config: ConfigFile = None,
    vocab: Vocab = None,
    rules: RulesFolder = None,
    adapter: Adapter = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; default: the files'.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Read source and target again, the source with another reader, and compare every tensor."
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted conversion; if it stops, keep the finished files.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Convert a model. The source is never changed; the target is written whole or not at all.

    Example: hanmo convert eva2.0-base/ models/eva2-base --vocab vocab.txt
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from hanmo.checkpoints.convert import convert as run

    columns = (TextColumn("converting"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("converting", total=None)
        result = run(
            source, target, to=to or ("hanmo" if tensor_parallel is None else "original"), size=size, config=config,
            vocab=vocab, rules=rules, adapter=adapter, dtype=dtype, ranks=tensor_parallel, force=force, verify=verify, resume=resume,
            start=lambda total: bar.update(task, total=total), progress=lambda done: bar.advance(task, done),
        )  # fmt: skip
    emit(result, as_json, _show_converted)


def _show_converted(result: dict[str, Any]) -> None:
    print(f"{result['source']} -> {result['target']}")
    size = f"{result['bytes'] / 1e6:,.1f} MB" if result["bytes"] >= 1e5 else f"{result['bytes']:,} bytes"
    print(f"  {result['form']} form, {result['parameters']:,} parameters, {result['dtype']}, {size}")
    for name in result["files"]:
        print(f"  {name}")
    for note in result["notes"]:
        print(f"  note: {note}")
    if result["form"] == "hanmo":
        print(f"Try: hanmo chat {result['target']}")


def inspect(
    model: Model,
    deep: Annotated[
        bool | None,
        typer.Option("--deep/--quick", help="Read every weight; default: if they are small.", show_default=False),
    ] = None,
    size: Size = None,
    config: ConfigFile = None,
    vocab: Vocab = None,
    as_json: Json = False,
) -> None:
    """Describe a model and check its health. Exit code: 0 healthy, 1 a check found a fault, 2 wrong options.

    Example: hanmo inspect eva2.0-base/
    """
    from hanmo.checkpoints.inspect import inspect_model

    report = inspect_model(model, size=size, config=config, vocab=vocab, deep=deep)
    emit(report.as_dict(), as_json, _show_report)
    if not report.healthy:
        raise typer.Exit(1)


def _show_report(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    about = Table(show_header=False, box=None, padding=(0, 1))
    for label, value in _facts(report):
        about.add_row(Text(label, style="bold"), Text(value))
    console.print(about)
    checks = Table(box=None, padding=(0, 1), header_style="bold")
    for heading in ("check", "verdict", "detail"):
        checks.add_column(heading, overflow="fold")
    for check in report["checks"]:
        advice = f"\n→ {check['advice']}" if check["advice"] else ""
        verdict = Text(check["verdict"], style=_COLOURS[check["verdict"]])
        checks.add_row(check["name"], verdict, Text(check["detail"] + advice))
    console.print(checks)
    summary = "healthy" if report["healthy"] else "not healthy"
    if report["healthy"] and report["lacks"]:
        summary = f"the weights are healthy; the model does not open without its {' and '.join(report['lacks'])}"
    console.print(Text(summary, style="bold"))


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [("path", report["path"])]
    facts += [(key, str(report[key])) for key in ("family", "size", "layout", "iteration") if report[key] is not None]
    if report["parameters"] is not None:
        facts.append(("parameters", f"{report['parameters']:,}"))
    if report["dtypes"]:
        stored = ", ".join(f"{name} ({count:,})" for name, count in report["dtypes"].items())
        if report["parameters"] != sum(report["dtypes"].values()):
            stored += ": numbers in the files, with copies of parameters and constants"
        facts.append(("dtype", stored))
    if report["files"]:
        total = sum(file["bytes"] for file in report["files"])
        ranks = f" ({report['ranks']} ranks)" if report["ranks"] and report["ranks"] > 1 else ""
        facts.append(("weights", f"{len(report['files'])} files{ranks}, {total:,} bytes"))
    if report["vocabulary"]:
        facts.append(("vocabulary", f"{report['vocabulary']['tokens']:,} tokens"))
    if report["stops"]:
        facts.append(("stops", ", ".join(stop["token"] for stop in report["stops"])))
    return facts
