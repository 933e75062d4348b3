"""``hanmo eval task``: tasks of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hanmo.cli.clue import Budget, Output, Seed, show_result
from hanmo.cli.common import Json, Model, Opening, Processes, emit, exclusive_output, grouped, note, start_processes
from hanmo.cli.eval import First, answers_folder, progress_bar
from hanmo.cli.exam import Chat

Files = Annotated[list[Path], typer.Argument(help="YAML files, one for each task.", show_default=False)]
Shots = Annotated[int, typer.Option(help="Examples in the prompt, from the task's train file.", min=0)]
Choices = Annotated[int | None, typer.Option(help="Offer so many candidates where there are more.", min=2)]
Limit = Annotated[int | None, typer.Option(help="Most tokens of a question; default 1024.", min=64)]


@grouped
@exclusive_output
def task(
    model: Model,
    files: Files,
    opening: Opening,
    shots: Shots = 0,
    chat: Chat = False,
    choices: Choices = None,
    output: Output = None,
    as_json: Json = False,
    first: First = None,
    limit: Limit = None,
    seed: Seed = None,
    budget: Budget = None,
    nproc: Processes = 1,
) -> None:
    """Accuracy on classification, multiple choice or cloze tasks of your own: data, template and candidates in a YAML file.

    Answers are kept as they come, in the output folder or the user's cache: an interrupted run goes on where it was.

    \b
    Example:
      hanmo eval task PanGu-350M reviews.yaml --output results
      hanmo eval task Qwen3-0.6B reviews.yaml quiz.yaml --shots 4 --chat
    """
    if nproc > 1:
        start_processes(nproc)
    from hanmo.evaluation.engine.distributed import joined, main_process
    from hanmo.evaluation.suites.custom import Setup, evaluate, read_task

    tasks = [read_task(path, place) for place, path in enumerate(files)]
    setup = Setup(shots, chat, limit, seed, choices, first, budget)
    opened = opening.open(model)
    with joined():
        with progress_bar() as watch:
            result = evaluate(opened, tasks, setup, answers_folder(output, "task"), watch)
        if not main_process():
            return
    if output is not None:
        result.write(output)
        note(f"written to {output}: results.json, results.md, items.jsonl, report.html")
    emit(result.as_dict(), as_json, lambda _: show_result(result))
