"""``hanmo eval exam``: C-Eval, CMMLU and MMLU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hanmo.cli.clue import Budget, Output, show_result
from hanmo.cli.common import (
    Json,
    Model,
    Opening,
    Processes,
    Published,
    emit,
    exclusive_output,
    grouped,
    note,
    start_processes,
)
from hanmo.cli.eval import First, answers_folder, origin, progress_bar

if TYPE_CHECKING:
    from hanmo.evaluation.suites.exam.run import Sat

Kind = Annotated[str, typer.Option(help="ceval, cmmlu or mmlu.", show_default=False)]
Data = Annotated[Path, typer.Option(help="Folder of the CSV files, as the authors publish it.", show_default=False)]
Subjects = Annotated[str, typer.Option(help="Names of subjects, separated by commas; default: all.")]
Split = Annotated[str | None, typer.Option(help="val or test; default: val for C-Eval, test for the others.")]
Shots = Annotated[int, typer.Option(help="Examples in the prompt, the first of the dev split.", min=0, max=5)]
Chat = Annotated[bool, typer.Option("--chat", help="Ask in the model's chat template instead of running text.")]
Cot = Annotated[bool, typer.Option("--cot", help="With --published: examples explain their answers (C-Eval).")]
Limit = Annotated[
    int | None, typer.Option(help="Most tokens of a question; default 4096, or 1280 as published.", min=64)
]


@grouped
@exclusive_output
def exam(
    model: Model,
    opening: Opening,
    kind: Kind,
    data: Data,
    subjects: Subjects = "",
    split: Split = None,
    shots: Shots = 0,
    chat: Chat = False,
    published: Published = False,
    cot: Cot = False,
    output: Output = None,
    as_json: Json = False,
    first: First = None,
    limit: Limit = None,
    budget: Budget = None,
    nproc: Processes = 1,
) -> None:
    """Accuracy on C-Eval, CMMLU or MMLU: by subject, by domain and in all, or the answers to hand in.

    Answers are kept as they come, in the output folder or the user's cache: an interrupted run goes on where it was.
    With --nproc, or under torchrun, processes share the questions, each on a GPU of its own where there are any.

    \b
    Example:
      hanmo eval exam Qwen3-0.6B --kind ceval --data ceval --shots 5 --output results
      hanmo eval exam Qwen3-0.6B --kind mmlu --data mmlu --shots 5 --chat
      hanmo eval exam Qwen3-0.6B --kind ceval --data ceval --split test --output results
    """
    if nproc > 1:
        start_processes(nproc)
    from hanmo.evaluation.engine.distributed import joined, main_process
    from hanmo.evaluation.suites.exam.exams import find_exam
    from hanmo.evaluation.suites.exam.run import Setup, evaluate

    wanted = find_exam(kind)
    chosen = wanted.chosen(name.strip() for name in subjects.split(",") if name.strip())
    setup = Setup(shots, split, published, chat, cot, limit, first, budget)
    opened = opening.open(model)
    with joined():
        with progress_bar() as watch:
            sat = evaluate(opened, wanted, chosen, data, setup, answers_folder(output, "exam"), watch)
        if not main_process():
            return
    if output is not None:
        sat.write(output)
        names = "results.json, results.md, items.jsonl, report.html, " if sat.result else ""
        note(f"written to {output}: {names}submission.json")
    emit(sat.as_dict(), as_json, lambda _: _show(sat))


def _show(sat: Sat) -> None:
    if sat.result is not None:
        return show_result(sat.result)
    print(f"{sat.about['model']}\n{origin(sat.about)}\n")
    for subject, answers in sat.submission.items():
        print(f"{subject}: {len(answers)} answers")
    print(", ".join(f"{letter} {count}" for letter, count in sat.letters().items()))
    print("\nThe right answers are not published; submission.json in the --output folder is what is handed in.")
