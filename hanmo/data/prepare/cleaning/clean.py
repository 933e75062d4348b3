"""Runs a recipe over files: clean records, rejects with their reasons, and a report of every step.

The result of a block of records is a file of JSON, data that executes nothing when it is read: the reports of all steps
and, for each record, what is left of it, or null, and its rejects.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

from hanmo.data.parallel.blocks import block_job, record_blocks, run_blocks
from hanmo.data.prepare.cleaning.recipe import Recipe
from hanmo.data.prepare.cleaning.steps import Step
from hanmo.data.prepare.normalisation import text_hash
from hanmo.data.prepare.views import rebuilt, views, whole
from hanmo.errors import ConfigError, HanmoError
from hanmo.files import json_text, replacing
from hanmo.records import Dialogue, Plain, PromptResponse, Record, Rejects, ScoredAnswers, Text, record_writer
from hanmo.report.page import Page

BLOCK = 2000  # records of one unit of work
FIT = 200_000  # records that statistics are learnt from
EXAMPLES = 3
KINDS = {kind.__name__: kind for kind in (Text, Dialogue, PromptResponse, ScoredAnswers)}

REJECT = ("step", "reason", "text", "where")
Reject = tuple[str, str, str, str]
CleanedRecord = tuple[Record | None, list[Reject]]


@dataclass
class StepReport:
    """How many views of records a step changed and removed, and a few examples, chosen by hash."""

    changed: int = 0
    removed: int = 0
    examples: list[tuple[int, str, str]] = field(default_factory=list)  # rank, text, reason or text afterwards

    def example(self, text: str, reason: str) -> None:
        self.examples = sorted({*self.examples, (text_hash(text), text, reason)})[:EXAMPLES]

    def as_dict(self) -> dict[str, Any]:
        """The report for people, with short examples."""
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
    """Records read and kept, lines that were no records (``bad``), and the report of each step."""

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
    """Clean files into one.

    Args:
        rejects: file for what was removed, one JSON object a line: step, reason, text, where.
        bad: takes lines that are no records; without it the first one stops the work.
        progress: takes the number of records read so far.
        share: (rank, world): process only this share, which a later call without it finishes; returns None.

    Raises:
        ConfigError: ``out`` is one of the inputs.
        InUseError: another run writes ``out``, or the same share of it.
    """
    targets = {os.path.realpath(path) for path in (out, rejects) if path}
    if targets & {os.path.realpath(path) for path in paths}:
        raise ConfigError(f"{out}: would be written over its own input")
    job = {"recipe": recipe.settings(), "plain": plain, "block": BLOCK, "form": "JSON"}
    with block_job(out, job, [*paths, *recipe.files()], share) as folder:
        _fit(recipe, paths, plain)
        blocks = record_blocks(paths, BLOCK, plain, bad)
        report_records = (lambda done: progress(done * BLOCK)) if progress else None
        results = run_blocks(blocks, partial(_clean_block, recipe), folder, workers, report_records, share or (0, 1))
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
    """Run each step that needs no other record over all that earlier ones have left: a model scores many at once."""
    reports = {name: StepReport() for name, _ in recipe.steps}
    all_views = [RecordView(number, turns) for number, record in enumerate(records) for turns in views(record)]
    for name, step in recipe.steps:
        left = [view for view in all_views if view.reject is None]
        for view in left:
            view.turns = _edited(step, view.turns, reports[name])
        for view, reason in zip(left, step.faults([view.turns for view in left]), strict=True):
            if reason:
                text = "\t".join(view.turns)
                reports[name].removed += 1
                reports[name].example(text, reason)
                view.reject = name, reason, text, records[view.number].where
    cleaned = []
    for number, of_record in groupby(all_views, key=lambda view: view.number):
        parts = list(of_record)
        kept = [None if view.reject else view.turns for view in parts]
        cleaned.append((rebuilt(records[number], kept), [view.reject for view in parts if view.reject]))
    write_block(path, cleaned, reports)


@dataclass
class RecordView:
    """A view of record ``number`` of a block: its turns after the steps so far, and why it was removed."""

    number: int
    turns: list[str]
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


def write_block(path: Path, cleaned: Sequence[CleanedRecord], reports: dict[str, StepReport]) -> None:
    records = [[record and [type(record).__name__, asdict(record)], rejected] for record, rejected in cleaned]
    found = {"reports": {name: asdict(report) for name, report in reports.items()}, "records": records}
    path.write_text(json.dumps(found, allow_nan=False), encoding="ascii")


def read_block(path: Path) -> tuple[list[CleanedRecord], dict[str, StepReport]]:
    """The records of a block and the reports of all steps; raises HanmoError for a file of another form."""
    try:
        found = json.loads(path.read_bytes())
        cleaned = [
            (record and _record(*record), [(step, reason, text, where) for step, reason, text, where in rejected])
            for record, rejected in found["records"]
        ]
        reports = {name: StepReport(**report) for name, report in found["reports"].items()}
        for report in reports.values():
            report.examples = [(rank, text, reason) for rank, text, reason in report.examples]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        problem = f"not the result of a block ({error!r})"
        raise HanmoError(f"{path}: {problem}; remove {path.parent} and begin again") from None
    return cleaned, reports


def _record(kind: str, fields: dict[str, Any]) -> Record:
    return KINDS[kind](**{key: _tuples(value) for key, value in fields.items()})


def _tuples(value: Any) -> Any:
    """JSON has lists where records have tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def report(cleaned: Cleaned, recipe: str, inputs: Sequence[str]) -> Page:
    page = Page(f"Cleaning: {recipe}", subtitle=", ".join(inputs), language="zh-CN")
    page.facts({"records read": cleaned.read, "records kept": cleaned.kept, "bad lines": cleaned.bad})
    page.heading("Steps")
    header = ["step", "changed", "removed", *(f"example {number}" for number in range(1, EXAMPLES + 1))]
    rows = [[*step.values()] for step in cleaned.as_dict()["steps"]]
    page.table(header, [[*row, *examples, *[""] * (EXAMPLES - len(examples))] for *row, examples in rows])
    page.heading("Removed")
    page.bar_plot({name: {"removed": float(step.removed)} for name, step in cleaned.steps.items()})
    return page
