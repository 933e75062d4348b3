"""Run a recipe over files: clean records, rejects with their reasons, and what every step did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from hanmo.data.parallel.blocks import forget, job_folder, record_blocks, run_blocks, share_place
from hanmo.data.prepare.cleaning.block_files import (
    EXAMPLES,
    FORM,
    Judged,
    Reject,
    StepReport,
    read_judged,
    read_reports,
    write_block,
)
from hanmo.data.prepare.cleaning.recipe import Recipe
from hanmo.data.prepare.cleaning.steps import Step
from hanmo.data.prepare.views import rebuilt, views, whole
from hanmo.errors import ConfigError
from hanmo.files import json_text, replacing
from hanmo.locks import holding
from hanmo.records import Plain, Record, Rejects, record_writer
from hanmo.report.page import Page

BLOCK = 2000  # records of one unit of work
FIT = 200_000  # records that statistics are learnt from


@dataclass
class Cleaned:
    """The result: records read and kept, and what each step did. ``bad``: lines that were no records."""

    read: int
    kept: int
    bad: int
    steps: dict[str, StepReport]

    def rows(self) -> list[list[Any]]:
        """Step, changed, removed, examples."""
        return [
            [name, step.changed, step.removed, *_examples(step), *[""] * (EXAMPLES - len(step.examples))]
            for name, step in self.steps.items()
        ]

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        steps = [
            {"step": name, "changed": step.changed, "removed": step.removed, "examples": _examples(step)}
            for name, step in self.steps.items()
        ]
        return {"read": self.read, "kept": self.kept, "bad": self.bad, "steps": steps}


def _examples(step: StepReport) -> list[str]:
    return [f"{_short(text)} ({_short(reason)})" for _, text, reason in step.examples]


def _short(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


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
        progress: told how many records have been looked at.
        share: (rank, world): only look at this share of the records, for a later call without it that then only has
            to finish; returns None.

    Raises:
        ConfigError: ``out`` is one of the inputs.
        InUseError: another run writes ``out``, or the same share of it.
    """
    targets = {path.resolve() for path in (out, rejects) if path}
    if targets & {path.resolve() for path in paths}:
        raise ConfigError(f"{out}: would be written over its own input")
    with holding(share_place(out, share)):
        _fit(recipe, paths, plain)
        job = {"recipe": recipe.settings(), "plain": plain, "block": BLOCK, "form": FORM}
        folder = job_folder(out, job, [*paths, *recipe.files()])
        blocks = record_blocks(paths, BLOCK, plain, bad)
        told = (lambda done: progress(done * BLOCK)) if progress else None
        results = run_blocks(blocks, partial(_judge_block, recipe), folder, workers, told, share or (0, 1))
        if share is not None:
            return None
        cleaned = _write(recipe, results, out, rejects)
        cleaned.bad = len(bad) if bad is not None else 0
        forget(folder)
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


def _judge_block(recipe: Recipe, block: list[Record], path: Path) -> None:
    """The result of a block: for each record what is left and what was removed, and what the steps did."""
    reports = {name: StepReport() for name, _ in recipe.steps}
    judged = judge(recipe, block, reports)
    write_block(path, judged, reports)


def judge(recipe: Recipe, records: Sequence[Record], reports: dict[str, StepReport]) -> list[Judged]:
    """Run the steps that need no other record, each over all that the ones before have left: a model judges many at once."""
    seen = [_View(number, turns) for number, record in enumerate(records) for turns in views(record)]
    for name, step in recipe.steps:
        left = [view for view in seen if view.reject is None]
        for view in left:
            view.turns = _edited(step, view.turns, reports[name])
        for view, reason in zip(left, step.faults([view.turns for view in left]), strict=True):
            if reason:
                text = "\t".join(view.turns)
                reports[name].removed += 1
                reports[name].example(text, reason)
                view.reject = name, reason, text, records[view.number].where
    judged = []
    for number, of_record in groupby(seen, key=lambda view: view.number):
        parts = list(of_record)
        kept = [None if view.reject else view.turns for view in parts]
        judged.append((rebuilt(records[number], kept), [view.reject for view in parts if view.reject]))
    return judged


@dataclass
class _View:
    """A view of record ``number`` of a block: its turns as they are by now, and why it was removed."""

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


def _judged(results: Sequence[Path]) -> Iterator[Judged]:
    for path in results:
        yield from read_judged(path)


def _duplicates(recipe: Recipe, results: Sequence[Path]) -> dict[int, tuple[str, str]]:
    """Step and reason for each record, by number, that is a duplicate among those that are left."""
    removed: dict[int, tuple[str, str]] = {}
    for name, step in recipe.duplicates:
        passed = []
        for number, (record, _) in enumerate(_judged(results)):
            if record is None or number in removed:
                continue
            if reason := step.fault(record):
                removed[number] = (name, reason)
            else:
                passed.append(number)
        late = zip(passed, step.late_faults(), strict=False)
        removed.update((number, (name, reason)) for number, reason in late if reason)
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
        for number, (record, rejected) in enumerate(_judged(results)):
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
    """What was done, as an HTML page."""
    page = Page(f"Cleaning: {recipe}", subtitle=", ".join(inputs), language="zh-CN")
    page.facts({"records read": cleaned.read, "records kept": cleaned.kept, "bad lines": cleaned.bad})
    page.heading("Steps")
    header = ["step", "changed", "removed", *(f"example {number}" for number in range(1, EXAMPLES + 1))]
    page.table(header, cleaned.rows())
    page.heading("Removed")
    page.bar_plot({name: {"removed": float(step.removed)} for name, step in cleaned.steps.items()})
    return page
