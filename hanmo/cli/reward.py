"""hanmo reward: use a reward model."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from hanmo.cli.common import Adapter, Device, Dtype, Model, Template, note, template_arguments
from hanmo.errors import RecordError
from hanmo.files import json_text, write_text
from hanmo.records import Dialogue, iter_records


def score(
    model: Model,
    file: Annotated[Path, typer.Argument(help="Records with responses, or with several answers.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="File for the results; default: standard output.")] = None,
    limit: Annotated[int, typer.Option(help="Tokens of a row.", min=2)] = 512,
    batch_size: Annotated[int, typer.Option(help="Answers scored at a time.", min=1)] = 8,
    adapter: Adapter = None,
    dtype: Dtype = None,
    device: Device = None,
    template: Template = None,
) -> None:
    """Score every answer of a file: one JSON object a line with the answer, its reward, and where it came from.

    An answer that does not fit has the reward null.

    Example: hanmo reward score runs/reward/model data/replies.jsonl --out scores.jsonl
    """
    from hanmo.checkpoints import open_model
    from hanmo.training.rl.rewards import score_records, with_answers

    answers = [answer for record in iter_records(file) for answer in with_answers(record)]
    if not answers:
        raise RecordError(file, 0, "no records with answers to score")
    arguments = template_arguments(template or ())
    opened = open_model(model, adapter=adapter, dtype=dtype, device=device, template=arguments)
    lines = []
    for answer, reward in zip(answers, score_records(opened, answers, limit, None, batch_size), strict=True):
        text = answer.turns[-1] if isinstance(answer, Dialogue) else answer.response
        lines.append(json_text({"answer": text, "reward": reward, "where": answer.where}) + "\n")
    if out is None:
        sys.stdout.write("".join(lines))
    else:
        write_text(out, "".join(lines))
        note(f"{len(lines)} scores in {out}")
