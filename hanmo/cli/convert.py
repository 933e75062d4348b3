"""hanmo convert: from any form of a model to any other."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hanmo.cli.common import ConfigFile, Json, RulesFolder, Size, Vocab, emit


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
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; default: the files'.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Read source and target again, the source with another reader, and compare every tensor."
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted conversion; keep what is finished if it stops.")
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
            vocab=vocab, rules=rules, dtype=dtype, ranks=tensor_parallel, force=force, verify=verify, resume=resume,
            start=lambda total: bar.update(task, total=total), progress=lambda done: bar.advance(task, done),
        )  # fmt: skip
    emit(result, as_json, _show)


def _show(result: dict[str, Any]) -> None:
    print(f"{result['source']} -> {result['target']}")
    size = f"{result['bytes'] / 1e6:,.1f} MB" if result["bytes"] >= 1e5 else f"{result['bytes']:,} bytes"
    print(f"  {result['form']} form, {result['parameters']:,} parameters, {result['dtype']}, {size}")
    for name in result["files"]:
        print(f"  {name}")
    for note in result["notes"]:
        print(f"  note: {note}")
    if result["form"] == "hanmo":
        print(f"Try: hanmo chat {result['target']}")
