"""``hanmo eval human-prepare`` and ``human-score``: blind rating sheets and what came back."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from hanmo.cli.common import Json, emit, note
from hanmo.cli.eval import print_table


def human_prepare(
    answers: Annotated[
        list[str],
        typer.Argument(
            help='NAME=FILE of each model or person: JSON lines {"prompt": …, "response": …}.', show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the sheets and the key.")] = Path("human"),
    raters: Annotated[int, typer.Option(help="How many people rate.", min=1)] = 3,
    seed: Annotated[int, typer.Option(help="Of the order.")] = 0,
) -> None:
    """Write blind, shuffled rating sheets (CSV, and a page that saves its ratings) for several models and references.

    \b
    Example:
      hanmo eval human-prepare model=replies.jsonl person=references.jsonl --output human
    """
    from hanmo.evaluation.human import prepare, read_answers

    for path in prepare(read_answers(answers), output, raters, seed):
        print(path)
    note(f"{output / 'key.json'} says which answer is whose: keep it from the raters")


def human_score(
    sheets: Annotated[list[Path], typer.Argument(help="Rated sheets.", show_default=False)],
    key: Annotated[Path | None, typer.Option(help="The key; default: key.json beside the first sheet.")] = None,
    as_json: Json = False,
) -> None:
    """Means with intervals, and how far the raters agree.

    \b
    Example:
      hanmo eval human-score human/rater1.csv human/rater2.csv
    """
    from hanmo.evaluation.human import KEY, score

    result = score(sheets, key or sheets[0].parent / KEY)
    emit(asdict(result), as_json, _show)


def _show(result: dict[str, Any]) -> None:
    ratings = list(result["agreement"])
    rows = []
    for name, found in result["systems"].items():
        cells = (found.get(rating) for rating in ratings)
        rows.append([name, *(c and f"{c['mean']:.2f} ({c['low']:.2f} to {c['high']:.2f})" for c in cells)])
    rows.append(["agreement (alpha)", *result["agreement"].values()])
    print_table(["", *ratings], rows)
    print(f"\n{result['answers']} answers, rated by {', '.join(result['raters'])}")
