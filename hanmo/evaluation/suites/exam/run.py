"""Evaluate a model on an examination: every subject is a task, its first dev questions are the examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanmo.errors import ConfigError, RecordError, unknown
from hanmo.evaluation.results.result import GAP, Item, Result
from hanmo.evaluation.suites import prompting
from hanmo.evaluation.suites.exam import published
from hanmo.evaluation.suites.exam.exams import LETTERS, Exam
from hanmo.evaluation.suites.exam.reading import read_subject, subject_file
from hanmo.evaluation.suites.runner import Run, Watch, about_run, among_the_examples, check_chat, limit_of, values_of
from hanmo.evaluation.suites.task import Example, Task, data_hash
from hanmo.families.base import OpenedModel
from hanmo.files import json_text, write_text

LIMIT = 4096
DEV = "dev"  # the split whose questions are the examples


@dataclass(frozen=True)
class Setup:
    """How to evaluate.

    Attributes:
        shots: examples in the prompt, the first of the subject's dev split.
        split: what is asked; None is the examination's own.
        published: the published protocol, flaws included.
        chat: in the model's chat template.
        explain: the examples' answers explain themselves; published only.
        limit: most tokens of a question; None is 4096 or what the model can read, and 1280 as published.
        first: only the first questions of every subject.
        budget: tokens in memory at the same time; None suits the device.
    """

    shots: int = 0
    split: str | None = None
    published: bool = False
    chat: bool = False
    explain: bool = False
    limit: int | None = None
    first: int | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.explain and not self.published:
            raise ConfigError("--cot is a form of the published prompts; give it with --published")


@dataclass(frozen=True)
class Sat:
    """An examination that a model has sat.

    Attributes:
        result: how it went; None where the right answers are not published.
        submission: by subject and id of the question, the letter.
    """

    title: str
    about: dict[str, Any]
    result: Result | None
    submission: dict[str, dict[str, str]]

    def as_dict(self) -> dict[str, Any]:
        if self.result is not None:
            return self.result.as_dict()
        return {"title": self.title, "about": self.about, "submission": self.submission}

    def letters(self) -> dict[str, int]:
        """How often each was chosen."""
        counts = Counter(letter for answers in self.submission.values() for letter in answers.values())
        return {letter: counts[letter] for letter in LETTERS}

    def write(self, folder: Path) -> None:
        """Write the result, where there is one, and submission.json."""
        if self.result is not None:
            self.result.write(folder)
        write_text(folder / "submission.json", json_text(self.submission, indent=1) + "\n")


def evaluate(
    opened: OpenedModel,
    exam: Exam,
    tasks: Sequence[Task],
    data: str | Path,
    setup: Setup,
    cache: str | Path,
    watch: Watch,
) -> Sat:
    """Sit the subjects one after the other.

    Args:
        data: folder of the examination's files. All are read before the first question is asked.
        cache: folder in which answers are kept; what is in it is not asked again.
        watch: told what is going on.
    """
    if setup.published:
        published.check(exam, setup.chat)
    if setup.chat:
        check_chat(opened, tasks[0])
    split = setup.split or exam.splits[0]
    if split not in exam.splits:
        raise ConfigError(unknown(f"split of {exam.title}", split, exam.splits))
    examples = {task.name: read_subject(exam, task, data, split, setup.first) for task in tasks}
    answered = [bool(found[0].label) for found in examples.values()]
    if any(answered) and not all(answered):
        without = tasks[answered.index(False)].name
        raise ConfigError(
            f"{without} has no answers, but other subjects have; choose with --subjects what belongs together"
        )
    dev = {task.name: read_subject(exam, task, data, DEV) for task in tasks} if setup.shots else {}
    if setup.published:
        protocol, limit = "published", setup.limit or published.MAX_LENGTH
    else:
        protocol, limit = "corrected", limit_of(opened, setup.limit, LIMIT)
    about = about_run(opened, protocol, setup.shots, limit, split=split, chat=setup.chat, cot=setup.explain)
    results, submission = [], {}
    for task in tasks:
        run = _ExamRun(
            opened, task, limit, Path(cache), about, watch(task.title), setup.budget, exam, setup, Path(data)
        )
        found, shots = examples[task.name], dev.get(task.name, [])
        if setup.published:
            items, notes = run.ask_as_published(found)
            reading, right = "published", {"published": [float(one.choice("published") == one.gold) for one in items]}
        else:
            fronts, itself = prompting.fronts_of(task, found, shots, lambda pool: list(pool[: setup.shots]), setup.chat)
            items, notes = run.ask(found, [front.shorter() for front in fronts])
            notes += among_the_examples(itself)
            reading, right = task.reading, values_of(task, items)
        if len(shots) < setup.shots:
            notes.append(f"only {len(shots)} questions in the dev split")
        submission[task.name] = {
            example.fields["id"]: LETTERS[item.choice(reading)] for example, item in zip(found, items, strict=True)
        }
        hashes = {"data": data_hash(found), "task": task.hash(), "shots": [shot.where for shot in shots[: setup.shots]]}
        if found[0].label:
            results.append(run.result(reading, right, items, hashes, notes, [len(LETTERS)] * len(items)))
    return Sat(exam.title, about, Result(exam.title, about, results) if results else None, submission)


@dataclass
class _ExamRun(Run):
    """One subject being sat."""

    exam: Exam
    setup: Setup
    data: Path

    def ask_as_published(self, examples: Sequence[Example]) -> tuple[list[Item], list[str]]:
        opened, task, setup = self.opened, self.task, self.setup
        form, limit = published.form_of(opened.source), self.limit - published.GENERATED
        files = [subject_file(self.exam, task, self.data, split) for split in (self.about["split"], DEV)]
        solved = published.read_rows(files[1], setup.shots) if setup.shots else []
        if setup.explain and any(published.EXPLANATION not in row for row in solved):
            raise RecordError(files[1], 1, f"no column {published.EXPLANATION!r}; ask without --cot")

        def fits(text: str) -> bool:
            return len(published.ids_of(opened, text)) <= limit

        rows = published.read_rows(files[0], setup.first)
        made = [published.build_prompt(self.exam, task, form, solved, row, setup.explain, fits) for row in rows]
        with self.store([*self.asked(data_hash(examples)), made]) as store:
            self.score([published.candidates(opened, prompt, limit) for prompt, _ in made], store)
            scores = [[total for total, _ in store.values[number]] for number in range(len(made))]
        items = [
            Item(one.where, task.template.fill(one.fields, GAP), LETTERS, one.gold, {"published": values})
            for one, values in zip(examples, scores, strict=True)
        ]
        fewer = sum(count < len(solved) for _, count in made)
        notes = [f"{fewer} questions left no room for all examples"] if fewer else []
        if setup.explain:
            notes.append(
                "the first token is read as the answer, as published: no answer was ever taken from an explanation"
            )
        return items, notes
