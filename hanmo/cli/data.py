"""``hanmo data``: make, clean and inspect data."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hanmo.cli.common import Json, Published, emit, grouped
from hanmo.errors import ConfigError, HanmoError, unknown
from hanmo.records import Rejects, write_records

Inputs = Annotated[list[Path], typer.Argument(help="Files of records; .gz as well.", show_default=False)]
PlainLines = Annotated[str, typer.Option("--plain", help="Whether a line of a plain file is a dialogue or text.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Set bad records aside and count them.")]
Family = Annotated[str, typer.Option(help="The family of the vocabulary file.")]


@dataclass(frozen=True)
class Work:
    """How a large input is shared between processes or machines; see ``grouped``."""

    workers: Annotated[int, typer.Option(help="Processes. Their number never changes the result.", min=1)] = 1
    tasks: Annotated[int, typer.Option(help="Split the work into so many tasks of datatrove.", min=0)] = 0
    slurm: Annotated[str | None, typer.Option(help="Submit the tasks to this Slurm partition.")] = None

    def run(self, job: Callable[..., Any], out: Path) -> Any:
        """The result of the job; exits if its tasks now wait in Slurm's queue."""
        if self.tasks:
            self._run_tasks(job, out)
        elif self.slurm:
            raise ConfigError("--slurm needs --tasks: the number of shares, e.g. --tasks 200")
        result = job(workers=self.workers)
        assert result is not None
        return result

    def _run_tasks(self, job: Callable[..., Any], out: Path) -> None:
        try:
            from hanmo.data.parallel.cluster import run_local, run_slurm
        except ImportError:
            raise HanmoError("--tasks needs the package datatrove: pip install 'hanmo[data]'") from None
        logs = out.with_name(f"{out.name}.logs")
        if self.slurm is None:
            run_local(job, self.tasks, self.workers, logs)
            return
        try:
            number = run_slurm(job, self.tasks, logs, self.slurm)
        except FileNotFoundError as error:
            raise HanmoError(f"{error.filename}: no such command; run this where Slurm is installed") from None
        print(f"submitted; job {number} writes {out}; scripts and logs: {logs}")
        raise typer.Exit


def corpus(
    out: Annotated[Path, typer.Argument(help="Folder to write to.", show_default=False)],
    size: Annotated[int, typer.Option(help="Composed dialogues for training.", min=1)] = 50_000,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn; what is held out never changes.", min=0)] = 0,
    per_topic: Annotated[int, typer.Option(help="Held-out dialogues of each topic.", min=1)] = 24,
    as_json: Json = False,
) -> None:
    """Write the built-in Chinese dialogues: train.jsonl, and valid.jsonl of combinations that train.jsonl never has.

    \b
    Examples:
      hanmo data corpus runs/corpus
      hanmo data corpus runs/corpus --size 5000 --seed 1
      hanmo train sft runs/demo runs/corpus runs/more
    """
    from hanmo.demo.corpus.build import build

    found = build(size, seed, per_topic)
    held_out = [dialogue for dialogues in found.held_out.values() for dialogue in dialogues]
    result = {
        "train": str(out / "train.jsonl"),
        "train_dialogues": write_records(out / "train.jsonl", found.train),
        "valid": str(out / "valid.jsonl"),
        "valid_dialogues": write_records(out / "valid.jsonl", held_out),
        "topics": {topic: len(dialogues) for topic, dialogues in found.held_out.items()},
    }
    emit(result, as_json, _show_corpus)


def _show_corpus(result: dict[str, Any]) -> None:
    print(f"{result['train']}: {result['train_dialogues']:,} dialogues")
    print(f"{result['valid']}: {result['valid_dialogues']:,} held-out dialogues of {len(result['topics'])} topics")


def prepare(
    source: Annotated[str, typer.Argument(help="One of those below.", show_default=False)],
    place: Annotated[Path, typer.Argument(metavar="IN", help="File or folder as downloaded.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder, or one file (.jsonl, .txt, with .gz).", show_default=False)],
    dev: Annotated[float, typer.Option(help="Share for development; needs a folder.", min=0, max=1)] = 0.0,
    test: Annotated[float, typer.Option(help="Share for the test; needs a folder.", min=0, max=1)] = 0.0,
    suffix: Annotated[
        str, typer.Option(help="Of the files in a folder: .jsonl, .txt (tabs), each with .gz.")
    ] = ".jsonl",
    every_reply: Annotated[
        bool, typer.Option("--every-reply", help="One record for each reply of a dialogue.")
    ] = False,
    sep: Annotated[bool, typer.Option("--sep", help="Prompts of before 2023-03-20, with <sep>.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of wrong answers and directions.")] = 42,
    published: Published = False,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Make records of a published data set: dialogues, prompts and responses, scored answers, running text.

    \b
    Sources:
      weibo baike zhidao couplets classical poetry   prompts with scored answers (SFT and reward)
      kdconv lccc crosswoz sharegpt                  dialogues
      alpaca dpo                                     instructions, preferences
      zhihu zhidao-threads encyclopedia wikipedia wikipedia-sections news wudao   texts and prompts for pretraining

    \b
    Examples:
      hanmo data prepare couplets couplet/ data/couplets --dev 0.01 --test 0.01
      hanmo data prepare kdconv KdConv/data/film data/film --suffix .txt --every-reply
    """
    from hanmo.data.prepare.from_source import prepare as run
    from hanmo.data.prepare.sources.reader import SourceReader
    from hanmo.data.prepare.splits import Shares

    reader = SourceReader(published, sep, seed, Shares(dev, test), Rejects() if skip_bad else None)
    emit(asdict(run(source, place, out, reader, suffix, every_reply)), as_json, _show_prepared)


def _show_prepared(result: dict[str, Any]) -> None:
    if result["published"]:
        print("as published, flaws included")
    for split, path in result["files"].items():
        print(f"{path}: {result['records'][split]:,} records")
    for reason, count in result["dropped"].items():
        print(f"left out: {count:,} x {reason}")
    if result["bad"]:
        print(f"bad records set aside: {result['bad']:,}")


def contamination(
    train: Annotated[Path, typer.Argument(help="Training file.", show_default=False)],
    held_out: Annotated[list[Path], typer.Argument(help="Files for development and test.", show_default=False)],
    near: Annotated[
        float, typer.Option(help="Similarity of whole records that counts; 1: only equal texts.", min=0.5, max=1)
    ] = 0.8,
    long: Annotated[int, typer.Option(help="Characters from which a text counts wherever it stands.", min=1)] = 12,
    as_json: Json = False,
) -> None:
    """Check that the training file holds nothing of a test or development file; exit code 1 if it does.

    A question is found in every form of record: as a prompt, a turn of a dialogue, an answer, or inside a text.

    \b
    Example:
      hanmo data contamination data/couplets/train.jsonl data/couplets/dev.jsonl data/couplets/test.jsonl
    """
    from hanmo.data.prepare.contamination import find_contamination

    found = find_contamination([train], held_out, near if near < 1 else None, long)
    emit({**asdict(found), "contaminated_records": found.records}, as_json, _show_contamination)
    if found.found:
        raise typer.Exit(1)


def _show_contamination(result: dict[str, Any]) -> None:
    print(f"{result['held_out']:,} held-out records compared with {result['train']:,} training records")
    for overlap in result["found"][:20]:
        kind = overlap["kind"] + (f" ({overlap['form']})" if overlap["form"] else "")
        text, similarity = overlap["text"][:60], overlap["similarity"]
        print(f"{overlap['where']}: {kind} in {overlap['train']} ({similarity:.2f}): {text!r}")
    print(f"contaminated records: {result['contaminated_records']:,}")


@grouped
def clean(
    inputs: Inputs,
    work: Work,
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the records that are kept.", show_default=False)],
    recipe: Annotated[str, typer.Option(help="eva, assistant, text, or a YAML file.")] = "eva",
    rejects: Annotated[Path | None, typer.Option(help="File for the records that were removed, with reasons.")] = None,
    page: Annotated[Path | None, typer.Option(help="HTML page with the effect of every step.")] = None,
    scorer: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Judge by a model too: the step model_relevance.")
    ] = None,
    scorer_least: Annotated[
        float | None, typer.Option(help="Least mean score of a record's replies; default 0.")
    ] = None,
    plain: PlainLines = "dialogue",
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Clean dialogues or text: every step named, with its own threshold, counts and examples of what it removed.

    An interrupted run goes on where it was when started again in the same way.

    \b
    Examples:
      hanmo data clean lccc.jsonl --out clean.jsonl --rejects rejects.jsonl --page clean.html
      hanmo data clean wiki.jsonl.gz --recipe text --out clean.jsonl.gz --workers 8
      hanmo data recipe eva > mine.yaml   # then change it and give --recipe mine.yaml
    """
    from hanmo.data.prepare.cleaning.clean import clean as run
    from hanmo.data.prepare.cleaning.clean import report
    from hanmo.data.prepare.cleaning.recipe import load

    inputs, out, bad = [path.absolute() for path in inputs], out.absolute(), Rejects() if skip_bad else None
    chosen = load(recipe)
    if scorer is not None:
        chosen.add("model_relevance", {"model": _place(scorer), "least": scorer_least or 0.0}, "--scorer")
    elif scorer_least is not None:
        raise ConfigError("--scorer-least needs --scorer MODEL")
    removed = rejects and rejects.absolute()
    cleaned = work.run(partial(run, chosen, inputs, out, _plain(plain), rejects=removed, bad=bad), out)
    if page is not None:
        report(cleaned, recipe, [str(path) for path in inputs]).write(page)
    emit({**cleaned.as_dict(), "out": str(out)}, as_json, _show_cleaned)


def _place(model: str) -> str:
    """A path made absolute for other processes; a hub id unchanged."""
    return str(Path(model).absolute()) if Path(model).exists() else model


def recipe(name: Annotated[str, typer.Argument(help="eva, assistant, text, or a YAML file.")] = "eva") -> None:
    """Print a cleaning recipe with all its settings, to be changed.

    \b
    Example:
      hanmo data recipe eva > mine.yaml
    """
    import yaml

    from hanmo.data.prepare.cleaning.recipe import load

    print(yaml.safe_dump(load(name).settings(), allow_unicode=True, sort_keys=False), end="")


def _plain(name: str) -> Any:
    if name not in ("dialogue", "text"):
        raise ConfigError(unknown("form of plain lines", name, ("dialogue", "text")))
    return name


def _show_cleaned(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "changed", "removed", "examples")
    for step in result["steps"]:
        table.add_row(step["step"], f"{step['changed']:,}", f"{step['removed']:,}", "\n".join(step["examples"]))
    Console().print(table)
    print(f"{result['out']}: {result['kept']:,} of {result['read']:,} records kept, {result['bad']:,} bad")


@grouped
def tokenize(
    inputs: Inputs,
    work: Work,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the store.", show_default=False)],
    tokenizer: Annotated[str, typer.Option(help="Model folder, or vocabulary file with --family.", show_default=False)],
    family: Family = "",
    plain: PlainLines = "text",
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Write the store of token ids that pretraining reads: memory-mapped, documents kept apart, vocabulary recorded.

    An interrupted run goes on where it was when started again in the same way.

    \b
    Example:
      hanmo data tokenize wiki.jsonl.gz news.jsonl.gz --tokenizer models/wenhui --out store --workers 8
    """
    from hanmo.data.store.tokenize import TokenizerPlace
    from hanmo.data.store.tokenize import tokenize as run

    bad, inputs = Rejects() if skip_bad else None, [path.absolute() for path in inputs]
    place, target = TokenizerPlace(_place(tokenizer), family), out.absolute()
    about = work.run(partial(run, place, inputs, target, _plain(plain), bad=bad), target)
    result = {"out": str(out), **asdict(about), "bad": len(bad) if bad is not None else 0}
    emit(result, as_json, _show_store)


def _show_store(result: dict[str, Any]) -> None:
    print(f"{result['out']}: {result['documents']:,} documents, {result['tokens']:,} tokens, {result['bad']} bad")


def inspect(
    file: Annotated[Path, typer.Argument(help="File of records; .gz as well.", show_default=False)],
    page: Annotated[Path | None, typer.Option(help="HTML page to write.")] = None,
    tokenizer: Annotated[str, typer.Option(help="Count its tokens: model folder, or file with --family.")] = "",
    family: Family = "",
    plain: PlainLines = "dialogue",
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    as_json: Json = False,
) -> None:
    """Show what is in a file: form, counts, lengths, language, duplicates, first problems, ten random samples.

    \b
    Example:
      hanmo data inspect train.jsonl --page inspect.html
    """
    from hanmo.data.prepare.inspection import inspect_file
    from hanmo.data.prepare.inspection import page as as_page

    lengths = None
    if tokenizer:
        from hanmo.data.store.token_store import encode
        from hanmo.data.store.tokenize import TokenizerPlace

        opened = TokenizerPlace(tokenizer, family).open()

        def lengths(texts: Any) -> list[int]:
            return [len(ids) for ids in encode(opened, texts, 1)]

    found = inspect_file(file, _plain(plain), lengths, seed)
    if page is not None:
        as_page(found).write(page)
    result = {
        "facts": found.facts(),
        "lengths": dict(found.histogram()),
        "problems": found.problems,
        "samples": found.samples,
    }
    emit(result, as_json, _show_inspection)


def _show_inspection(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console, facts = Console(), Table(show_header=False)
    for name, value in result["facts"].items():
        facts.add_row(name, value)
    console.print(facts)
    most = max(result["lengths"].values(), default=1)
    for name, count in result["lengths"].items():
        print(f"{name:>20} {count:>9,} {'█' * round(40 * count / most)}")
    for problem in result["problems"]:
        print(f"problem: {problem}")
    for number, texts in enumerate(result["samples"], 1):
        print(f"{number:>3}. {' ⇥ '.join(texts)[:200]}")
