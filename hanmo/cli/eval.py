"""``hanmo eval``: measure a model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hanmo.cli.common import Json, Model, Opening, Published, RulesFolder, emit, grouped, note
from hanmo.cli.ranks import Processes, start_processes
from hanmo.errors import ConfigError, RecordError
from hanmo.locks import holding_inside
from hanmo.processes import main_process
from hanmo.records import Rejects, iter_records

if TYPE_CHECKING:
    from hanmo.families.base import OpenedModel
    from hanmo.records import Record

PRESET = "static"  # the name families give to the settings of their published evaluation

Data = Annotated[
    Path, typer.Argument(help="Dialogues: tab-separated turns a line, or JSON; may be .gz.", show_default=False)
]
Limit = Annotated[int, typer.Option(help="Most tokens of a row (of the context, for encoder-decoders).", min=2)]
First = Annotated[int | None, typer.Option(help="Evaluate only the first N records.", min=1)]


@dataclass(frozen=True)
class Run:
    """Where an evaluation writes, and in how many processes it runs; see ``grouped``."""

    output: Annotated[
        Path | None, typer.Option(help="Folder for results, every single answer and score, and the HTML report.")
    ] = None
    as_json: Json = False
    nproc: Processes = 1

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Start the processes, or as one of them join the others; no other run may write to the folder meanwhile."""
        if self.nproc > 1:
            start_processes(self.nproc)
        from hanmo.evaluation.engine.distributed import joined

        with holding_inside(self.output) if self.output else nullcontext(), joined():
            yield

    def answers(self, suite: str) -> Path | None:
        """The folder in which answers are saved as they come, if there is one."""
        from hanmo.evaluation.engine.cache import cache_folder

        return self.output / "answers" if self.output else cache_folder(suite)

    def finish(self, result: Any, write: Callable[[Path], list[str]], show: Callable[..., None]) -> None:
        """In the main process, write the result with ``write``, which returns the files' names, and print it."""
        if not main_process():
            return
        if self.output is not None:
            note(f"written to {self.output}: {', '.join(write(self.output))}")
        emit(result.as_dict(), self.as_json, show)


@dataclass(frozen=True)
class Records:
    """The records that are evaluated, their batches, and their limits."""

    batch_size: Annotated[int, typer.Option(help="Examples per batch.", min=1)] = 16
    limit: Limit = 512
    response_limit: Annotated[
        int | None, typer.Option(help="Most tokens of a response, for encoder-decoders; default: 512.", min=2)
    ] = None
    first: First = None
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip bad records instead of stopping; print their number.")
    ] = False

    def most_of_response(self, opened: OpenedModel) -> int:
        """The limit of a response in tokens; only encoder-decoders have one separate from ``limit``."""
        if self.response_limit is not None and not opened.network.config.is_encoder_decoder:
            raise ConfigError(
                f"--response-limit {self.response_limit}: in {opened.source} prompt and response share a row; give --limit"
            )
        return self.response_limit or 512

    def read(self, path: Path, output: Path | None, text: bool = False, published: bool = False) -> list[Record]:
        """The records of a file, as published also dialogues without a reply; skipped ones are listed in the folder."""
        rejects = Rejects() if self.skip_bad else None
        reply: Literal["any", "needed"] = "any" if published else "needed"
        records = list(islice(iter_records(path, rejects, "text" if text else "dialogue", reply), self.first))
        if rejects and main_process():
            kept = ""
            if output is not None:
                rejects.write(output / "rejects.jsonl")
                kept = f", listed in {output / 'rejects.jsonl'}"
            note(f"{path}: {len(rejects)} bad records passed over{kept}")
        if not records:
            raise RecordError(path, 0, "no records; expected a dialogue or a JSON object a line")
        return records


@grouped
def dialogue(
    model: Model,
    data: Data,
    which: Records,
    opening: Opening,
    run: Run,
    preset: Annotated[str | None, typer.Option(help="Decoding preset of the family; default: static.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Decoding settings (docs/settings.md).", show_default=False),
    ] = None,
    published: Published = False,
    rules: RulesFolder = None,
) -> None:
    """Loss, perplexity, BLEU, Dist-n, F1 and ROUGE of a model's replies, in the published and the corrected reading.

    The last turn of each dialogue is the reference. Score rules from files (antonyms) are off unless --rules names
    them, as in the published evaluation. --published also decodes as published; --batch-size matters to it. Scores and
    replies are kept as they come, in the output folder or the user's cache: an interrupted run goes on where it was.

    \b
    Example:
      hanmo eval dialogue runs/demo test.txt --output results
      hanmo eval dialogue EVA2.0-base test.txt --published --batch-size 4 --limit 128 --response-limit 128
    """
    with run.joined():
        from hanmo.config import load
        from hanmo.evaluation.dialogue import evaluate
        from hanmo.generation.defaults import decoding_presets
        from hanmo.generation.settings import Settings

        records = which.read(data, run.output, published=published)
        opened = opening.open(model, rules)
        known = decoding_presets(opened.family.name, preset)
        # Seed 0 unless another is given, so that results are reproducible.
        base = {"seed": 0, **known.get(preset or PRESET, {}), "rule_files": rules is not None}
        settings = load(Settings, base, overrides=sets or [])
        published, longest = published or settings.published, which.most_of_response(opened)
        with progress_bar() as watch:
            result = evaluate(
                opened, records, settings, which.limit, longest, which.batch_size, published, watch("replies"),
                run.answers("dialogue"),
            )  # fmt: skip
        run.finish(result, result.write, _show_dialogue)


@grouped
def perplexity(
    model: Model,
    data: Data,
    which: Records,
    opening: Opening,
    run: Run,
    text: Annotated[bool, typer.Option("--text", help="A plain line is running text, not a dialogue.")] = False,
) -> None:
    """Perplexity of texts, or of responses after their prompts, and bits per character and byte.

    \b
    Example:
      hanmo eval perplexity runs/demo test.txt
      hanmo eval perplexity PanGu-350M pages.jsonl --limit 1024 --json
    """
    with run.joined():
        from hanmo.evaluation.perplexity import evaluate

        records = which.read(data, run.output, text)
        opening.refuse_for_text(records)
        opened = opening.open(model)
        longest, answers = which.most_of_response(opened), run.answers("perplexity")
        with progress_bar() as watch:
            result = evaluate(opened, records, which.limit, longest, which.batch_size, watch("rows"), answers)
        run.finish(result, result.write, _show_perplexity)


def rouge(
    hypotheses: Annotated[Path, typer.Argument(help="Generated texts, one a line.", show_default=False)],
    references: Annotated[
        Path,
        typer.Argument(help="References: a line for each text, several of them separated by tabs.", show_default=False),
    ],
    words: Annotated[bool, typer.Option("--words", help="Compare jieba's words instead of characters.")] = False,
    as_json: Json = False,
) -> None:
    """BLEU, ROUGE, F1 and Dist-n of texts against references, by characters or words.

    \b
    Example:
      hanmo eval rouge replies.txt references.txt
    """
    from hanmo.evaluation.text_overlap import measure, origin, read_pairs

    generated, expected = read_pairs(hypotheses, references)
    emit({"about": origin(generated, expected), **measure(generated, expected, words)}, as_json, _show_texts)


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
    emit(asdict(result), as_json, _show_ratings)


def origin(about: dict[str, Any]) -> str:
    """Everything a value depends on, in one line."""
    known = {"protocol": "{} protocol", "shots": "{} shots", "limit": "at most {} tokens", "weights": "weights {}",
             "template": "template {}",
             "data": "data {}", "hanmo": "hanmo {}", "commit": "commit {}"}  # fmt: skip
    return ", ".join(text.format(about[name]) for name, text in known.items() if name in about)


@contextmanager
def progress_bar() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Progress bars on standard error, where that is a terminal: ``watch(title)`` returns a function of (done, total)."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not (main_process() and sys.stderr.isatty())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bar:

        def watch(what: str) -> Callable[[int, int], None]:
            task = bar.add_task(what, total=None)
            return lambda done, total: bar.update(task, completed=done, total=total)

        yield watch


def _show_dialogue(result: dict[str, Any]) -> None:
    from hanmo.evaluation.dialogue import PUBLISHED_TABLE, title

    about, published, corrected = result["about"], result["published"], result["corrected"]
    print(f"{about['model']}\n{origin(about)}\n{about['samples']} of {about['records']} records\n")
    rows = [[name, *map(result[name].get, PUBLISHED_TABLE)] for name in ("published", "corrected")]
    print_table(["", *map(title, PUBLISHED_TABLE)], rows)
    print()
    rows = [[title(name), published.get(name), value] for name, value in corrected.items()]
    print_table(["", "published", "corrected"], rows)
    for remark in result["notes"]:
        print(f"\n{remark}")


def _show_perplexity(result: dict[str, Any]) -> None:
    low, high = map(_cell, result["interval"])
    print(f"{result['about']['model']}\n{origin(result['about'])}\n")
    for name, value in (
        ("perplexity", f"{_cell(result['perplexity'])} (95 % interval {low} to {high})"),
        ("bits per character", _cell(result["bits_per_character"])),
        ("bits per byte", _cell(result["bits_per_byte"])),
        ("tokens", result["tokens"]),
        ("records", f"{result['records']} ({result['cut']} cut, {result['left_out']} left out)"),
    ):
        print(f"{name:<20}{value}")


def _show_texts(result: dict[str, Any]) -> None:
    from hanmo.evaluation.dialogue import title

    print(f"{origin(result['about'])}\n{result['texts']} texts, by {result['tokens']}\n")
    rows = [[title(name), f"{value:.4f}"] for name, value in result.items() if isinstance(value, float)]
    print_table(["", "value"], rows)


def _show_ratings(result: dict[str, Any]) -> None:
    ratings = list(result["agreement"])
    rows = []
    for name, found in result["systems"].items():
        cells = (found.get(rating) for rating in ratings)
        rows.append([name, *(c and f"{c['mean']:.2f} ({c['low']:.2f} to {c['high']:.2f})" for c in cells)])
    rows.append(["agreement (alpha)", *result["agreement"].values()])
    print_table(["", *ratings], rows)
    print(f"\n{result['answers']} answers, rated by {', '.join(result['raters'])}")


def print_table(header: list[str], rows: list[list[Any]]) -> None:
    """Columns of text; all but the first are right-aligned."""
    cells = [header, *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *others in cells:
        right = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        print(" | ".join([first.ljust(widths[0]), *right]))


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
