"""The CLUE suite."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hanmo.evaluation.suites.clue import published
from hanmo.evaluation.suites.clue.tasks import all_tasks, read_split
from hanmo.evaluation.suites.suite import Protocol, Suite
from hanmo.evaluation.suites.task import choose_tasks


def clue_suite(data: str | Path, names: Iterable[str] = ()) -> Suite:
    """CLUE's tasks by name, or all ten, of a folder of CLUE's files; see ``reading.read_split``.

    Raises:
        ConfigError: no task has such a name.
    """
    tasks = choose_tasks("CLUE task", all_tasks(), names)
    titles = ", ".join(task.title for task in tasks)
    corrected = Protocol(
        options=("budget", "seed", "choices"),
        refused={"candidates": "--candidates names the original's draws, which only the published protocol has"},
    )
    as_published = Protocol(
        evaluate=published.evaluate_task,
        limit=published.MAX_LENGTH,
        pool=None,
        seed=published.SEED,
        options=("candidates",) if any(task.published.drawn for task in tasks) else (),
        refused={
            "candidates": f"--candidates names wrong labels of IFLYTEK and TNEWS; chosen are {titles}",
            "choices": "--choices is for the corrected protocol; the published one always draws 3 wrong labels",
            "seed": f"--seed is for the corrected protocol; the published one always draws with {published.SEED}",
            "budget": "--budget is for the corrected protocol; the published one scores prompts one by one",
        },
    )
    return Suite(
        name="clue",
        title="CLUE",
        tasks=tasks,
        read=lambda task, split, first: read_split(task, data, split, first),
        corrected=corrected,
        published=as_published,
    )
