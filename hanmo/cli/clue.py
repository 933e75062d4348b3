"""``hanmo eval clue``, ``compare`` and ``table``: the ten CLUE tasks, and what several runs found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
from hanmo.cli.eval import First, answers_folder, origin, print_table, progress_bar

if TYPE_CHECKING:
    from hanmo.evaluation.results.result import Result

Data = Annotated[Path, typer.Option(help="Folder of CLUE's files: one folder per task, as CLUE publishes them.")]
Tasks = Annotated[str, typer.Option(help="Names of tasks, separated by commas; default: all ten.")]
Shots = Annotated[int, typer.Option(help="Examples in the prompt, from the training split.", min=0)]
Limit = Annotated[
    int | None, typer.Option(help="Most tokens of a question; default 1024, or 512 as published.", min=64)
]
Choices = Annotated[
    int | None, typer.Option(help="Offer so many candidates where there are more (the original: 4).", min=2)
]
Candidates = Annotated[
    Path | None, typer.Option(help="With --published: JSON file of the original's wrong labels for IFLYTEK and TNEWS.")
]
Seed = Annotated[int | None, typer.Option(help="Of the draw of examples and candidates; default: 0.")]
Budget = Annotated[
    int | None, typer.Option(help="Tokens in memory at the same time; halved when memory runs out.", min=1)
]
Output = Annotated[Path | None, typer.Option(help="Folder for results, the report, and the answers so far.")]
Written = Annotated[
    Path, typer.Argument(help="results.json of hanmo eval clue, exam or task, or its folder.", show_default=False)
]


@grouped
@exclusive_output
def clue(
    model: Model,
    opening: Opening,
    data: Data = Path("clue"),
    tasks: Tasks = "",
    shots: Shots = 0,
    published: Published = False,
    candidates: Candidates = None,
    choices: Choices = None,
    output: Output = None,
    as_json: Json = False,
    first: First = None,
    limit: Limit = None,
    seed: Seed = None,
    budget: Budget = None,
    nproc: Processes = 1,
) -> None:
    """Accuracy (F1 for CMRC2018) on CLUE, by the corrected protocol or the published one.

    Answers are kept as they come, in the output folder or the user's cache: an interrupted run goes on where it was.
    With --nproc, or under torchrun, processes share the questions, each on a GPU of its own where there are any.

    \b
    Example:
      hanmo eval clue PanGu-350M --data clue --tasks tnews,c3 --output results
      hanmo eval clue GLM-335M --data clue --shots 5
      hanmo eval clue PanGu-350M --data clue --published --shots 15
    """
    if nproc > 1:
        start_processes(nproc)
    from hanmo.evaluation.engine.distributed import joined, main_process
    from hanmo.evaluation.suites.clue.run import Setup, evaluate
    from hanmo.evaluation.suites.clue.tasks import chosen_tasks

    chosen = chosen_tasks([name.strip() for name in tasks.split(",") if name.strip()])
    setup = Setup(shots, published, limit, seed, choices, first, budget, candidates)
    opened = opening.open(model)
    with joined():
        with progress_bar() as watch:
            result = evaluate(opened, chosen, data, setup, answers_folder(output, "clue"), watch)
        if not main_process():
            return
    if output is not None:
        result.write(output)
        note(f"written to {output}: results.json, results.md, items.jsonl, report.html")
    emit(result.as_dict(), as_json, lambda _: show_result(result))


def compare(first: Written, second: Written, as_json: Json = False) -> None:
    """Whether two results of hanmo eval clue, exam or task differ by more than chance, task by task on the same questions.

    \b
    Example:
      hanmo eval compare before/results.json after/results.json
    """
    from dataclasses import asdict

    from hanmo.evaluation.results.result import compare_results, read_result

    one, other = read_result(first), read_result(second)
    found = compare_results(one, other)
    about = {"first": one["about"], "second": other["about"]}
    emit({"about": about, "tasks": {name: asdict(value) for name, value in found.items()}}, as_json, _show_comparison)


def table(
    results: Annotated[list[Path], typer.Argument(help="results.json of each run, or its folder.", show_default=False)],
    output: Annotated[Path | None, typer.Option(help="File to write: a page where it ends in .html.")] = None,
) -> None:
    """Several results of hanmo eval clue, exam or task side by side, as the published table: zero-shot | few-shot x models.

    \b
    Example:
      hanmo eval table pangu/results.json glm/results.json glm-5-shot/results.json --output table.html
    """
    from hanmo.evaluation.results.result import read_result
    from hanmo.evaluation.results.table import Table

    made = Table([read_result(path) for path in results])
    if output is None:
        print(made.markdown(), end="")
    else:
        made.write(output)
        note(f"written to {output}")


def show_result(result: Result) -> None:
    """Every task, the averages, and remarks."""
    from hanmo.evaluation.results.statistics import interval

    about = result.about
    print(f"{about['model']}\n{origin(about)}\n")
    rows = []
    for task in result.tasks:
        low, high = interval(task.right[task.reading])
        chance = "–" if task.chance is None else f"{task.chance:.4f}"
        values = (
            f"{task.value:.4f}",
            f"{low:.4f} to {high:.4f}",
            chance,
            len(task.right[task.reading]),
            task.about["data"],
        )
        rows.append([task.title, f"{task.metric} ({task.reading})", *values])
    for row in result.averages():
        values = (
            f"{row['value']:.4f}",
            f"{row['low']:.4f} to {row['high']:.4f}",
            f"{row['chance']:.4f}",
            row["questions"],
            "",
        )
        rows.append([row["title"], f"mean over {row['over']}", *values])
    print_table(["", "metric", "result", "95 % interval", "chance", "questions", "data"], rows)
    for task in result.tasks:
        for remark in task.notes:
            print(f"\n{task.title}: {remark}")


def _show_comparison(result: dict[str, Any]) -> None:
    for which in ("first", "second"):
        about = result["about"][which]
        print(f"{which}: {about['model']}, {origin(about)}")
    print()
    rows = []
    for name, found in result["tasks"].items():
        low, high = found["interval"]
        values = f"{found['difference']:+.4f}", f"{low:+.4f} to {high:+.4f}", f"{found['p']:.4g}"
        rows.append([name, *values, found["better"], found["worse"]])
    print_table(["", "difference", "95 % interval", "p", "better", "worse"], rows)
