"""``hanmo eval clue``, ``exam`` and ``task``, which are one command; ``compare`` and ``table`` of their results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hanmo.cli.common import Json, Model, Opening, Published, emit, grouped, note
from hanmo.cli.eval import First, Run, origin, print_table, progress_bar
from hanmo.errors import ConfigError

if TYPE_CHECKING:
    from hanmo.evaluation.results.result import Result
    from hanmo.evaluation.suites.suite import Suite

ClueFolder = Annotated[Path, typer.Option(help="Folder of CLUE's files: one folder per task, as CLUE publishes them.")]
Chat = Annotated[bool, typer.Option("--chat", help="Ask in the model's chat template instead of running text.")]
Cot = Annotated[bool, typer.Option("--cot", help="With --published: examples explain their answers (C-Eval).")]
Seed = Annotated[int | None, typer.Option(help="Seed of the draw of examples and candidates; default: 0.")]
Budget = Annotated[
    int | None, typer.Option(help="Tokens in memory at the same time; halved when memory runs out.", min=1)
]
Written = Annotated[
    Path, typer.Argument(help="results.json of hanmo eval clue, exam or task, or its folder.", show_default=False)
]


@dataclass(frozen=True)
class Clue:
    """Accuracy (F1 for CMRC2018) on CLUE, by the corrected protocol or the published one.

    Answers are kept as they come, in the output folder or the user's cache: an interrupted run goes on where it was.
    With --nproc, or under torchrun, processes share the questions, each on a GPU of its own where there are any.

    \b
    Example:
      hanmo eval clue PanGu-350M --data clue --tasks tnews,c3 --output results
      hanmo eval clue GLM-335M --data clue --shots 5
      hanmo eval clue PanGu-350M --data clue --published --shots 15
    """

    data: ClueFolder = Path("clue")
    tasks: Annotated[str, typer.Option(help="Names of tasks, separated by commas; default: all ten.")] = ""
    shots: Annotated[int, typer.Option(help="Examples in the prompt, from the training split.", min=0)] = 0
    published: Published = False
    candidates: Annotated[
        Path | None,
        typer.Option(help="With --published: JSON file of the original's wrong labels for IFLYTEK and TNEWS."),
    ] = None
    choices: Annotated[
        int | None, typer.Option(help="Offer at most this many candidates (the original: 4).", min=2)
    ] = None
    first: First = None
    limit: Annotated[
        int | None, typer.Option(help="Most tokens of a question; default 1024, or 512 as published.", min=64)
    ] = None
    seed: Seed = None
    budget: Budget = None

    def suite(self) -> Suite:
        from hanmo.evaluation.suites.clue.suite import clue_suite

        return clue_suite(self.data, _split(self.tasks))


@dataclass(frozen=True)
class Exam:
    """Accuracy on C-Eval, CMMLU or MMLU: by subject, by domain and in all, or the answers to hand in.

    Answers are kept as they come, in the output folder or the user's cache: an interrupted run goes on where it was.
    With --nproc, or under torchrun, processes share the questions, each on a GPU of its own where there are any.

    \b
    Example:
      hanmo eval exam Qwen3-0.6B --kind ceval --data ceval --shots 5 --output results
      hanmo eval exam Qwen3-0.6B --kind mmlu --data mmlu --shots 5 --chat
      hanmo eval exam Qwen3-0.6B --kind ceval --data ceval --split test --output results
    """

    kind: Annotated[str, typer.Option(help="ceval, cmmlu or mmlu.", show_default=False)]
    data: Annotated[Path, typer.Option(help="Folder of the CSV files, as the authors publish it.", show_default=False)]
    subjects: Annotated[str, typer.Option(help="Names of subjects, separated by commas; default: all.")] = ""
    split: Annotated[str | None, typer.Option(help="val or test; default: val for C-Eval, test for the others.")] = None
    shots: Annotated[int, typer.Option(help="Examples in the prompt, the first of the dev split.", min=0, max=5)] = 0
    chat: Chat = False
    published: Published = False
    cot: Cot = False
    first: First = None
    limit: Annotated[
        int | None, typer.Option(help="Most tokens of a question; default 4096, or 1280 as published.", min=64)
    ] = None
    budget: Budget = None

    def suite(self) -> Suite:
        from hanmo.evaluation.suites.exam.suite import exam_suite

        return exam_suite(self.kind, self.data, _split(self.subjects))


@dataclass(frozen=True)
class Task:
    """Accuracy on classification, multiple choice or cloze tasks of your own: data, template and candidates in a YAML file.

    Answers are kept as they come, in the output folder or the user's cache: an interrupted run goes on where it was.

    \b
    Example:
      hanmo eval task PanGu-350M reviews.yaml --output results
      hanmo eval task Qwen3-0.6B reviews.yaml quiz.yaml --shots 4 --chat
    """

    files: Annotated[list[Path], typer.Argument(help="YAML files, one for each task.", show_default=False)]
    shots: Annotated[int, typer.Option(help="Examples in the prompt, from the task's train file.", min=0)] = 0
    chat: Chat = False
    choices: Annotated[int | None, typer.Option(help="Offer at most this many candidates.", min=2)] = None
    first: First = None
    limit: Annotated[int | None, typer.Option(help="Most tokens of a question; default 1024.", min=64)] = None
    seed: Seed = None
    budget: Budget = None

    def suite(self) -> Suite:
        from hanmo.evaluation.suites.custom import custom_suite, read_task

        return custom_suite([read_task(path, place) for place, path in enumerate(self.files)])


def _suite_command(kind: type[Clue] | type[Exam] | type[Task]) -> Callable[..., None]:
    """The command that evaluates a suite; the fields of ``kind`` are its arguments and options."""

    def command(model: Model, chosen: Any, opening: Opening, run: Run) -> None:
        with run.joined():
            from hanmo.evaluation.results.page import write_result
            from hanmo.evaluation.suites.runner import evaluate
            from hanmo.evaluation.suites.suite import Options

            suite = chosen.suite()
            given = {one.name: getattr(chosen, one.name) for one in fields(Options) if hasattr(chosen, one.name)}
            options = Options(**given)
            suite.protocol(options)  # a mistake is found before the model is opened
            if opening.template and not options.chat:
                raise ConfigError(
                    f"--template {opening.template[0]}: questions are running text, which no chat template renders; leave it out"
                    + (", or give --chat" if hasattr(chosen, "chat") else "")
                )
            opened = opening.open(model)
            with progress_bar() as watch:
                result = evaluate(opened, suite, options, run.answers(suite.name), watch)
            run.finish(result, lambda folder: write_result(result, folder), lambda _: _show_result(result))

    command.__doc__ = kind.__doc__
    command.__annotations__["chosen"] = kind
    return grouped(command)


clue = _suite_command(Clue)
exam = _suite_command(Exam)
task = _suite_command(Task)


def compare(first: Written, second: Written, as_json: Json = False) -> None:
    """Whether two results of hanmo eval clue, exam or task differ by more than chance, task by task on the same questions.

    \b
    Example:
      hanmo eval compare before/results.json after/results.json
    """
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
    from hanmo.evaluation.results.page import write_table
    from hanmo.evaluation.results.result import read_result
    from hanmo.evaluation.results.table import Table

    made = Table([read_result(path) for path in results])
    if output is None:
        print(made.markdown(), end="")
    else:
        write_table(made, output)
        note(f"written to {output}")


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _show_result(result: Result) -> None:
    """Every task, the averages, and notes; without right answers what is submitted."""
    print(f"{result.about['model']}\n{origin(result.about)}\n")
    if not result.tasks:
        for name, answers in result.submission.items():
            print(f"{name}: {len(answers)} answers")
        counts = Counter(option for answers in result.submission.values() for option in answers.values())
        print(", ".join(f"{option} {counts[option]}" for option in sorted(counts)))
        print("\nThe right answers are not published; submit submission.json from the --output folder.")
        return
    print_table(["", "metric", "result", "95 % interval", "chance", "questions", "data"], result.summary())
    for task in result.tasks:
        for remark in task.notes:
            print(f"\n{task.title}: {remark}")


def _show_comparison(result: dict[str, Any]) -> None:
    for name in ("first", "second"):
        about = result["about"][name]
        print(f"{name}: {about['model']}, {origin(about)}")
    print()
    rows = []
    for name, found in result["tasks"].items():
        low, high = found["interval"]
        values = f"{found['difference']:+.4f}", f"{low:+.4f} to {high:+.4f}", f"{found['p']:.4g}"
        rows.append([name, *values, found["better"], found["worse"]])
    print_table(["", "difference", "95 % interval", "p", "better", "worse"], rows)
