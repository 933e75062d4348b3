"""What an evaluation on tasks found, as JSON and Markdown; report.py beside it makes the page."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hanmo.errors import HanmoError
from hanmo.evaluation.results.statistics import Comparison, compare, interval, interval_of_means
from hanmo.files import json_text, write_text

FORMAT = "hanmo-tasks-1"
ALL = "all"
GAP = "____"  # what stands for a candidate where a question is shown


@dataclass(frozen=True)
class Item:
    """One question and what the model made of it.

    Attributes:
        where: "file:line" of the record.
        text: the question, with a gap where the candidates go.
        options, gold: the candidates and which is right; for generated answers the accepted ones, and 0.
        scores: by reading, one number per candidate, the highest wins; for generated answers their values by metric.
        said: a generated answer.
    """

    where: str
    text: str
    options: tuple[str, ...]
    gold: int
    scores: dict[str, list[float]]
    said: str | None = None

    def choice(self, reading: str) -> int:
        """The candidate with the highest score, the first of equal ones."""
        scores = self.scores[reading]
        return scores.index(max(scores))

    def margin(self, reading: str) -> float:
        """How far the best wrong candidate is ahead of the right one; negative where the right one wins."""
        scores = self.scores[reading]
        return max((score for place, score in enumerate(scores) if place != self.gold), default=0.0) - scores[self.gold]


@dataclass(frozen=True)
class TaskResult:
    """One task.

    Attributes:
        metric: "accuracy" or "F1".
        reading: which of ``right`` is the result.
        right: by reading, the value of every group or question, 0 to 1.
        chance: accuracy of guessing; None for generated answers.
        labels: the candidates are the same labels in all items.
        about: task hash, data hash, numbers.
        groups: what it is averaged into, besides all tasks together.
        place: in the order in which tasks are shown.
    """

    name: str
    title: str
    metric: str
    reading: str
    right: dict[str, list[float]]
    chance: float | None
    labels: bool
    items: list[Item]
    about: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    groups: tuple[str, ...] = ()
    place: int = 0

    @property
    def value(self) -> float:
        return mean(self.right[self.reading])

    def as_dict(self) -> dict[str, Any]:
        readings = {}
        for name, values in self.right.items():
            low, high = interval(values)
            readings[name] = {"value": mean(values), "low": low, "high": high}
        return {
            "title": self.title,
            "place": self.place,
            "groups": self.groups,
            "metric": self.metric,
            "reading": self.reading,
            **readings[self.reading],
            "chance": self.chance,
            "readings": readings,
            "about": self.about,
            "notes": self.notes,
            "confusion": self.confusion(),
            "right": [round(value, 6) for value in self.right[self.reading]],
        }

    def confusion(self) -> dict[str, dict[str, int]]:
        """How often each label was taken for which; empty for tasks without fixed labels."""
        if not self.labels:
            return {}
        table: dict[str, Counter[str]] = {}
        for item in self.items:
            chosen = item.options[item.choice(self.reading)]
            table.setdefault(item.options[item.gold], Counter())[chosen] += 1
        return {label: dict(row.most_common()) for label, row in table.items()}


@dataclass(frozen=True)
class Result:
    """All tasks of a run. ``title``: of what; ``about``: model, weights, protocol, shots, limit, version."""

    title: str
    about: dict[str, Any]
    tasks: list[TaskResult]

    def averages(self) -> list[dict[str, Any]]:
        """Of each group of tasks and of all, over tasks (as leaderboards have it) and over questions; none without groups.

        The 95 % bootstrap interval is over questions in both.
        """
        groups = list(dict.fromkeys(group for task in self.tasks for group in task.groups))
        named = [(group, [task for task in self.tasks if group in task.groups]) for group in groups]
        return [
            row for title, tasks in [*named, *([(ALL, self.tasks)] if groups else [])] for row in _means(title, tasks)
        ]

    def as_dict(self) -> dict[str, Any]:
        """All but the items, for JSON."""
        return {
            "format": FORMAT,
            "title": self.title,
            "about": self.about,
            "tasks": {task.name: task.as_dict() for task in self.tasks},
            "averages": self.averages(),
        }

    def write(self, folder: str | Path) -> None:
        """Write results.json, results.md, items.jsonl and report.html."""
        from hanmo.evaluation.results.page import page

        folder = Path(folder)
        write_text(folder / "results.json", json_text(self.as_dict(), indent=1) + "\n")
        write_text(folder / "results.md", self.markdown())
        write_text(folder / "items.jsonl", "".join(_lines(self.tasks)))
        page(self).write(folder / "report.html")

    def markdown(self) -> str:
        rows = [
            "| task | metric | result | 95 % interval | chance | questions |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for task in self.tasks:
            low, high = interval(task.right[task.reading])
            chance = "–" if task.chance is None else f"{task.chance:.4f}"
            rows.append(
                f"| {task.title} | {task.metric} ({task.reading}) | {task.value:.4f} | {low:.4f} to {high:.4f} | {chance} | "
                f"{len(task.right[task.reading])} |"
            )
        for row in self.averages():
            rows.append(
                f"| **{row['title']}** | mean over {row['over']} | {row['value']:.4f} | {row['low']:.4f} to {row['high']:.4f} | "
                f"{row['chance']:.4f} | {row['questions']} |"
            )
        facts = [f"- {name}: {value}" for name, value in self.about.items()]
        facts += [f"- {task.title}: {name} {value}" for task in self.tasks for name, value in task.about.items()]
        notes = [f"- {task.title}: {note}" for task in self.tasks for note in task.notes]
        return "\n".join([f"# {self.title}", "", *rows, "", *facts, *([""] if notes else []), *notes, ""])


def _means(title: str, tasks: Sequence[TaskResult]) -> list[dict[str, Any]]:
    values = [task.right[task.reading] for task in tasks]
    together = [value for one in values for value in one]
    chances = [task.chance or 0.0 for task in tasks]
    by_question = [chance for chance, one in zip(chances, values, strict=True) for _ in one]
    rows = (
        ("tasks", mean([mean(one) for one in values]), interval_of_means(values), mean(chances)),
        ("questions", mean(together), interval(together), mean(by_question)),
    )
    return [
        {"title": title, "over": over, "tasks": len(tasks), "questions": len(together)}
        | {"value": value, "low": low, "high": high, "chance": chance}
        for over, value, (low, high), chance in rows
    ]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def read_result(path: str | Path) -> dict[str, Any]:
    """A results.json, or the folder it lies in.

    Raises:
        HanmoError: there is none, or it is something else.
    """
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        expected = "the results.json of `hanmo eval clue|exam|task --output`"
        raise HanmoError(f"{path}: {problem}; expected {expected}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise HanmoError(f"{path}: not a result of `hanmo eval clue|exam|task` (format {FORMAT})")
    return content


def compare_results(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Comparison]:
    """The tasks that two runs have in common, question by question, and where they have averages, all questions of each.

    Raises:
        HanmoError: nothing in common, or a task's questions are not the same.
    """
    shared = [name for name in first["tasks"] if name in second["tasks"]]
    if not shared or first["title"] != second["title"]:
        had = [f"{run['title']}: {', '.join(run['tasks'])}" for run in (first, second)]
        raise HanmoError(f"no task in common: the first has {had[0]}; the second {had[1]}")
    together: dict[str, tuple[list[float], list[float]]] = {}
    for name in shared:
        one, other = first["tasks"][name], second["tasks"][name]
        if one["about"]["data"] != other["about"]["data"] or len(one["right"]) != len(other["right"]):
            raise HanmoError(
                f"{name}: not the same questions ({len(one['right'])} of data {one['about']['data']}, "
                f"{len(other['right'])} of data {other['about']['data']}); evaluate both on the same files"
            )
        for title in (name, *((*one["groups"], ALL) if one["groups"] else ())):
            mine, theirs = together.setdefault(title, ([], []))
            mine += one["right"]
            theirs += other["right"]
    averages = [name for name in together if name not in shared]
    return {name: compare(*together[name]) for name in (*shared, *averages)}


def _lines(tasks: Sequence[TaskResult]) -> list[str]:
    lines = []
    for task in tasks:
        for item in task.items:
            scores = {name: [round(value, 6) for value in values] for name, values in item.scores.items()}
            value = {
                "task": task.name,
                "where": item.where,
                "options": item.options,
                "gold": item.gold,
                "scores": scores,
            }
            if item.said is not None:
                value["said"] = item.said
            lines.append(json_text(value) + "\n")
    return lines
