"""Runs a recipe over files: clean records, rejects with their reasons, and a report of every step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from hanmo.data.parallel.blocks import block_job, record_blocks, run_blocks
from hanmo.data.prepare.cleaning.block_files import (
    EXAMPLES,
    FORM,
    CleanedRecord,
    Reject,
    StepReport,
    read_cleaned,
    read_reports,
    write_block,
)
from hanmo.data.prepare.cleaning.recipe import Recipe
from hanmo.data.prepare.cleaning.steps import Step
from hanmo.data.prepare.views import rebuilt, views, whole
from hanmo.errors import ConfigError
from hanmo.files import json_text, replacing
from hanmo.records import Plain, Record, Rejects, record_writer
from hanmo.report.page import Page

BLOCK = 2000  # records of one unit of work
FIT = 200_000  # records that statistics are learnt from


@dataclass
class Cleaned:
    """The number of records read and kept, of lines that were no records (``bad``), and the report of each step."""

    read: int
    kept: int
    bad: int
    steps: dict[str, StepReport]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        steps = [
            {"step": name, "changed": step.changed, "removed": step.removed, "examples": step.example_texts()}
            for name, step in self.steps.items()
        ]
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
        share: (rank, world): only process this share of the records, which a later call without it finishes;
            returns None.

    Raises:
        ConfigError: ``out`` is one of the inputs.
        InUseError: another run writes ``out``, or the same share of it.
    """
    targets = {os.path.realpath(path) for path in (out, rejects) if path}
    if targets & {os.path.realpath(path) for path in paths}:
        raise ConfigError(f"{out}: would be written over its own input")
    job = {"recipe": recipe.settings(), "plain": plain, "block": BLOCK, "form": FORM}
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
    blocks = record_blocks(paths, BLOCK, plain, Rejects())
    for _ in range(FIT // BLOCK):
        for record in next(blocks, []):
            for turns in views(record):
                for step in learning:
                    step.fit(turns)


def _clean_block(recipe: Recipe, block: list[Record], path: Path) -> None:
    reports = {name: StepReport() for name, _ in recipe.steps}
    write_block(path, run_steps(recipe, block, reports), reports)


def run_steps(recipe: Recipe, records: Sequence[Record], reports: dict[str, StepReport]) -> list[CleanedRecord]:
    """Run the steps that need no other record, each over all that the earlier ones have left: a model scores many at once."""
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
    return cleaned


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


def _cleaned_records(results: Sequence[Path]) -> Iterator[CleanedRecord]:
    for path in results:
        yield from read_cleaned(path)


def _duplicates(recipe: Recipe, results: Sequence[Path]) -> dict[int, tuple[str, str]]:
    """Step and reason for each record, by number, that is a duplicate among those that are left."""
    removed: dict[int, tuple[str, str]] = {}
    left: list[int] = []

    def records() -> Iterator[Record]:
        left.clear()
        for number, (record, _) in enumerate(_cleaned_records(results)):
            if record is not None and number not in removed:
                left.append(number)
                yield record

    for name, step in recipe.duplicates:
        faults = list(step.faults(records()))
        removed.update((number, (name, fault)) for number, fault in zip(left, faults, strict=True) if fault)
    return removed


def _write(recipe: Recipe, results: Sequence[Path], out: Path, rejects: Path | None) -> Cleaned:
    cleaned = Cleaned(0, 0, 0, {name: StepReport() for name in recipe.names})
    for path in results:
        for name, report in read_reports(path).items():
            cleaned.steps[name].add(report)
    duplicates = _duplicates(recipe, results)
    with ExitStack() as stack:
        write = stack.enter_context(record_writer(out))
        reject = _reject_writer(stack, rejects)
        for number, (record, rejected) in enumerate(_cleaned_records(results)):
            cleaned.read += 1
            for entry in rejected:
                reject(entry)
            if record is None:
                continue
            if number not in duplicates:
                write(record)
                cleaned.kept += 1
                continue
            name, reason = duplicates[number]
            text = whole(record)
            cleaned.steps[name].removed += 1
            cleaned.steps[name].example(text, reason)
            reject((name, reason, text, record.where))
    return cleaned


def _reject_writer(stack: ExitStack, path: Path | None) -> Callable[[Reject], None]:
    if path is None:
        return lambda reject: None
    file = stack.enter_context(stack.enter_context(replacing(path)).open("w", encoding="utf-8", newline="\n"))
    keys = ("step", "reason", "text", "where")
    return lambda reject: print(json_text(dict(zip(keys, reject, strict=True))), file=file)


def report(cleaned: Cleaned, recipe: str, inputs: Sequence[str]) -> Page:
    """An HTML page about every step."""
    page = Page(f"Cleaning: {recipe}", subtitle=", ".join(inputs), language="zh-CN")
    page.facts({"records read": cleaned.read, "records kept": cleaned.kept, "bad lines": cleaned.bad})
    page.heading("Steps")
    header = ["step", "changed", "removed", *(f"example {number}" for number in range(1, EXAMPLES + 1))]
    rows = [[*step.values()] for step in cleaned.as_dict()["steps"]]
    page.table(header, [[*row, *examples, *[""] * (EXAMPLES - len(examples))] for *row, examples in rows])
    page.heading("Removed")
    page.bar_plot({name: {"removed": float(step.removed)} for name, step in cleaned.steps.items()})
    return page
