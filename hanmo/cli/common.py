"""What the commands share: option types with one wording each, and how results and mistakes are printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Argument(help="A model: folder, original checkpoint, or hub id.", show_default=False)]
Size = Annotated[
    str | None, typer.Option(help="Released size, where the files alone do not tell it, e.g. eva2.0-base.")
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="The original's model configuration (JSON).")]
Vocab = Annotated[Path | None, typer.Option(help="Vocabulary file, where none lies beside the weights.")]
RulesFolder = Annotated[Path | None, typer.Option("--rules", help="Folder of score rules (antonyms) to decode with.")]
Dtype = Annotated[
    str | None, typer.Option(help="fp32, bf16, fp16, or int8 (CPU only); default: what suits the device.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: the fastest there is.")]
Published = Annotated[bool, typer.Option("--published", help="Reproduce the published behaviour, flaws included.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one decoding setting.")]

Processes = Annotated[int, typer.Option("--nproc", help="Processes on this machine, e.g. one for each GPU.", min=1)]


def start_processes(count: int) -> None:
    """Run this command once more in ``count`` processes instead of this one."""
    from hanmo.training.parallel import torchrun

    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // count, 1)))
    command = torchrun(count, without(sys.argv[1:], "--nproc"))
    os.execv(command[0], command)


def without(arguments: list[str], *options: str) -> list[str]:
    """Arguments less some options and their values."""
    kept, skip = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if skip:
            skip = False
        elif name in options:
            skip = not equals
        else:
            kept.append(argument)
    return kept


def emit(result: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    """Print a result: as one JSON document for machines, or with ``show`` for people."""
    if as_json:
        json.dump(result, sys.stdout, ensure_ascii=False, indent=2)
        sys.stdout.write("\n")
    else:
        show(result)


def note(message: str) -> None:
    """A remark for people on standard error, so that it never mixes with results."""
    print(message, file=sys.stderr)
