"""``hanmo data``: make and look at data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hanmo.cli.common import Json, emit


def corpus(
    out: Annotated[Path, typer.Argument(help="Folder to write to.", show_default=False)],
    size: Annotated[int, typer.Option(help="Composed dialogues for training.", min=1)] = 50_000,
    seed: Annotated[int, typer.Option(help="Of what is drawn; what is held out never changes.", min=0)] = 0,
    per_topic: Annotated[int, typer.Option(help="Held-out dialogues of each topic.", min=1)] = 24,
    as_json: Json = False,
) -> None:
    """Write the built-in Chinese dialogues: train.jsonl, and valid.jsonl of combinations that train.jsonl never has.

    \b
    Examples:
      hanmo data corpus runs/corpus
      hanmo data corpus runs/corpus --size 5000 --seed 1
      hanmo train sft --data runs/corpus --model runs/demo
    """
    from hanmo.data.corpus import build
    from hanmo.records import write_records

    found = build(size, seed, per_topic)
    held_out = [dialogue for dialogues in found.held_out.values() for dialogue in dialogues]
    result = {
        "train": str(out / "train.jsonl"),
        "train_dialogues": write_records(out / "train.jsonl", found.train),
        "valid": str(out / "valid.jsonl"),
        "valid_dialogues": write_records(out / "valid.jsonl", held_out),
        "topics": {topic: len(dialogues) for topic, dialogues in found.held_out.items()},
    }
    emit(result, as_json, _show)


def _show(result: dict[str, Any]) -> None:
    print(f"{result['train']}: {result['train_dialogues']:,} dialogues")
    print(f"{result['valid']}: {result['valid_dialogues']:,} held-out dialogues of {len(result['topics'])} topics")
