"""Runs a recipe over files: clean records, rejects with their reasons, and a report of every step."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hanmo.data.parallel.blocks import block_job, record_blocks, run_blocks
from hanmo.data.prepare.cleaning.recipe import Recipe
from hanmo.data.prepare.cleaning.steps import Step
from hanmo.data.prepare.normalisation import text_hash
from hanmo.data.prepare.views import rebuilt, views, whole
from hanmo.errors import ConfigError, HanmoError
from hanmo.files import json_text, replacing
from hanmo.records import Plain, Record, Rejects, record_writer
from hanmo.report.page import Page

BLOCK = 2000  # records of one unit of work
FIT = 200_000  # records from which statistics are learned
EXAMPLES = 3

REJECT = ("step", "reason", "text", "where")
Reject = tuple[str, str, str, str]
CleanedRecord = tuple[Record | None, list[Reject]]  # what remains of it


@dataclass
class StepReport:
    """How many views of records a step changed and removed, and a few examples, chosen by their hashes."""

    changed: int = 0
    removed: int = 0
    examples: list[tuple[int, str, str]] = field(default_factory=list)  # rank, text, reason or text afterwards

    def example(self, text: str, reason: str) -> None:
        self.examples = sorted({*self.examples, (text_hash(text), text, reason)})[:EXAMPLES]

    def as_dict(self) -> dict[str, Any]:
        examples = [f"{_short(text)} ({_short(reason)})" for _, text, reason in self.examples]
        return {"changed": self.changed, "removed": self.removed, "examples": examples}

    def add(self, other: StepReport) -> None:
        self.changed += other.changed
        self.removed += other.removed
        self.examples = sorted({*self.examples, *other.examples})[:EXAMPLES]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:59] + "…"


@dataclass
class Cleaned:
    """Counts of records and of ``bad`` lines, and the report of each step."""

    read: int
    kept: int
    bad: int
    steps: dict[str, StepReport]

    def as_dict(self) -> dict[str, Any]:
        steps = [{"step": name, **step.as_dict()} for name, step in self.steps.items()]
        return {"read": self.read, "kept": self.kept, "bad": self.bad, "steps": steps}


def clean(
    recipe: Recipe,
    paths: Sequence[Path],
    out: Path,
    plain: Plain = "dialogue",
    workers: int = 1,
    rejects: Path | None = None,
    bad: Rejects | None = None,
    progress: Callable[[int], None] | None = None,
    share: tuple[int, int] | None = None,
) -> Cleaned | None:
    """Clean files into one, or compute a ``share``, (rank, world), for a later call without it, and return None.

    ``rejects``: file for what was removed, one JSON object a line: step, reason, text, where. ``bad`` takes lines that
    are no records; without it the first one stops the work. ConfigError if ``out`` is one of the files, InUseError if
    another run writes it.
    """
    targets = {os.path.realpath(path) for path in (out, rejects) if path}
    if targets & {os.path.realpath(path) for path in paths}:
        raise ConfigError(f"{out}: would be written over its own input")
    job = {"recipe": recipe.settings(), "plain": plain, "block": BLOCK, "form": "JSON 2"}
    with block_job(out, job, [*paths, *recipe.files()], share) as folder:
        _fit(recipe, paths, plain)
        blocks = record_blocks(paths, BLOCK, plain, bad)
        results = run_blocks(blocks, partial(_clean_block, recipe), folder, workers, progress, share, BLOCK)
        if share is not None:
            return None
        cleaned = _write(recipe, results, out, rejects)
        cleaned.bad = len(bad) if bad is not None else 0
    return cleaned


def _fit(recipe: Recipe, paths: Sequence[Path], plain: Plain) -> None:
    learning = [step for _, step in recipe.steps if step.needs_fit]
    if not learning:
        return
    for block in islice(record_blocks(paths, BLOCK, plain, Rejects()), FIT // BLOCK):
        for turns in chain.from_iterable(map(views, block)):
            for step in learning:
                step.fit(turns)


def _clean_block(recipe: Recipe, records: list[Record], path: Path) -> None:
    """Run each step that looks at single records over the whole block, so that a model scores many at once."""
    reports = {name: StepReport() for name, _ in recipe.steps}
    by_record = [[RecordView(turns, record.where) for turns in views(record)] for record in records]
    for name, step in recipe.steps:
        left = [view for view in chain.from_iterable(by_record) if view.reject is None]
        for view in left:
            view.turns = _edited(step, view.turns, reports[name])
        for view, reason in zip(left, step.faults([view.turns for view in left]), strict=True):
            if reason:
                text = "\t".join(view.turns)
                reports[name].removed += 1
                reports[name].example(text, reason)
                view.reject = name, reason, text, view.where
    cleaned = []
    for record, parts in zip(records, by_record, strict=True):
        kept = [None if view.reject else view.turns for view in parts]
        cleaned.append((rebuilt(record, kept), [view.reject for view in parts if view.reject]))
    write_block(path, cleaned, reports)


@dataclass
class RecordView:
    """A view of a record: its turns after the steps so far, and the reason if it was removed."""

    turns: list[str]
    where: str
    reject: Reject | None = None


def _edited(step: Step, turns: list[str], report: StepReport) -> list[str]:
    edited = step.edit(turns)
    if edited != turns:
        report.changed += 1
        before, after = next(pair for pair in zip(turns, edited, strict=True) if pair[0] != pair[1])
        report.example(before, f"→ {after}")
    return edited


def _duplicates(recipe: Recipe, results: Sequence[Path]) -> dict[int, tuple[str, str]]:
    """Step and reason for each record, by number, that is a duplicate among those that are left."""
    removed: dict[int, tuple[str, str]] = {}
    left: list[int] = []

    def records() -> Iterator[Record]:
        left.clear()
        for number, (record, _) in enumerate(chain.from_iterable(read_block(path)[0] for path in results)):
            if record is not None and number not in removed:
                left.append(number)
                yield record

    for name, step in recipe.duplicates:
        faults = list(step.faults(records()))
        removed.update((number, (name, fault)) for number, fault in zip(left, faults, strict=True) if fault)
    return removed


def _write(recipe: Recipe, results: Sequence[Path], out: Path, rejects: Path | None) -> Cleaned:
    cleaned, duplicates = Cleaned(0, 0, 0, {name: StepReport() for name in recipe.names}), _duplicates(recipe, results)
    with ExitStack() as stack:
        write = stack.enter_context(record_writer(out))
        written = stack.enter_context(replacing(rejects)) if rejects else None
        file = stack.enter_context(written.open("w", encoding="utf-8", newline="\n")) if written else None
        for records, reports in map(read_block, results):
            for name, report in reports.items():
                cleaned.steps[name].add(report)
            for number, (record, rejected) in enumerate(records, cleaned.read):
                if record is not None and number in duplicates:
                    name, reason = duplicates[number]
                    cleaned.steps[name].removed += 1
                    cleaned.steps[name].example(whole(record), reason)
                    rejected.append((name, reason, whole(record), record.where))
                elif record is not None:
                    write(record)
                    cleaned.kept += 1
                for entry in rejected if file else ():
                    print(json_text(dict(zip(REJECT, entry, strict=True))), file=file)
            cleaned.read += len(records)
    return cleaned


# JSON, because no file of a folder may execute anything when it is read
_BLOCK_FILE = TypeAdapter(tuple[list[CleanedRecord], dict[str, StepReport]])


def write_block(path: Path, cleaned: list[CleanedRecord], reports: dict[str, StepReport]) -> None:
    # pydantic's own JSON cannot hold a lone surrogate
    path.write_text(json.dumps(_BLOCK_FILE.dump_python((cleaned, reports)), allow_nan=False), encoding="ascii")


def read_block(path: Path) -> tuple[list[CleanedRecord], dict[str, StepReport]]:
    """The records of a block and the reports of all steps; HanmoError for a file of another form."""
    try:
        return _BLOCK_FILE.validate_python(json.loads(path.read_bytes()))
    except ValueError as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        problem = f"not the result of a block ({reason})"
        raise HanmoError(f"{path}: {problem}; remove {path.parent} and begin again") from None


def report(cleaned: Cleaned, recipe: str, inputs: Sequence[str]) -> Page:
    page = Page(f"Cleaning: {recipe}", subtitle=", ".join(inputs), language="zh-CN")
    page.facts({"records read": cleaned.read, "records kept": cleaned.kept, "bad lines": cleaned.bad})
    page.heading("Steps")
    header = ["step", "changed", "removed", *(f"example {number}" for number in range(1, EXAMPLES + 1))]
    rows = [[*step.values()] for step in cleaned.as_dict()["steps"]]
    page.table(header, [[*row, *examples, *[""] * (EXAMPLES - len(examples))] for *row, examples in rows])
    page.heading("Removed")
    page.bar_plot({name: {"removed": step.removed} for name, step in cleaned.steps.items()})
    return page
