"""The examinations as suites: every subject is a task, its first dev questions are the few-shot examples."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from hanmo.evaluation.suites.exam import published
from hanmo.evaluation.suites.exam.exams import find_exam, read_subject
from hanmo.evaluation.suites.suite import Protocol, Suite
from hanmo.evaluation.suites.task import choose_tasks

LIMIT = 4096
DEV = "dev"  # the split whose questions are the few-shot examples


def exam_suite(kind: str, data: str | Path, subjects: Iterable[str] = ()) -> Suite:
    """An examination by name, its files in the folder ``data``, with all subjects or those that are named.

    Raises:
        ConfigError: there is no such examination or subject.
    """
    exam = find_exam(kind)
    corrected = Protocol(
        limit=LIMIT,
        pool=DEV,
        options=("budget", "split", "chat"),
        refused={"cot": "--cot is a form of the published prompts; give it with --published"},
    )
    as_published = Protocol(
        evaluate=partial(published.evaluate_task, exam, data),
        limit=published.MAX_LENGTH,
        pool=DEV,
        options=("budget", "split", "cot"),
        refused={"chat": "--published asks every model in a form of its own; leave --chat out"},
    )
    return Suite(
        name="exam",
        title=exam.title,
        tasks=choose_tasks(f"subject of {exam.title}", exam.subjects, subjects),
        read=lambda task, split, first: read_subject(exam, task, data, split, first),
        splits=exam.splits,
        corrected=corrected,
        published=as_published if exam.published else None,
        first_shots=True,
        id_field="id",
    )
