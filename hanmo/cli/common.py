"""What the commands share: option types with one wording each, and how results and mistakes are printed."""

from __future__ import annotations

import json
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
Dtype = Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; default: what suits the device.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: the fastest there is.")]
Published = Annotated[bool, typer.Option("--published", help="Reproduce the published behaviour, flaws included.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one decoding setting.")]


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
