"""hanmo inspect: describe a model and check its health."""

from typing import Annotated, Any

import typer

from hanmo.cli.common import ConfigFile, Json, Model, Size, Vocab, emit

_COLOURS = {"ok": "green", "warning": "yellow", "fault": "red", "skipped": "dim"}


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
    emit(report.as_dict(), as_json, _show)
    if not report.healthy:
        raise typer.Exit(1)


def _show(report: dict[str, Any]) -> None:
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
    console.print(Text("healthy" if report["healthy"] else "not healthy", style="bold"))


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [("path", report["path"])]
    facts += [(key, str(report[key])) for key in ("family", "size", "layout", "iteration") if report[key] is not None]
    if report["parameters"] is not None:
        facts.append(("parameters", f"{report['parameters']:,}"))
    if report["dtypes"]:
        facts.append(("dtype", ", ".join(f"{name} ({count:,})" for name, count in report["dtypes"].items())))
    if report["files"]:
        total = sum(file["bytes"] for file in report["files"])
        ranks = f" ({report['ranks']} ranks)" if report["ranks"] and report["ranks"] > 1 else ""
        facts.append(("weights", f"{len(report['files'])} files{ranks}, {total:,} bytes"))
    if report["vocabulary"]:
        facts.append(("vocabulary", f"{report['vocabulary']['tokens']:,} tokens"))
    if report["stops"]:
        facts.append(("stops", ", ".join(stop["token"] for stop in report["stops"])))
    return facts
