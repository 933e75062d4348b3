"""What an evaluation on CLUE found, as JSON and Markdown; report.py beside it makes the page."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hanmo.errors import HanmoError
from hanmo.evaluation.statistics import Comparison, compare, interval
from hanmo.files import write_text

FORMAT = "hanmo-clue-1"


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
class ClueResult:
    """All tasks of a run. ``about``: model, weights, protocol, shots, limit, version."""

    about: dict[str, Any]
    tasks: list[TaskResult]

    def as_dict(self) -> dict[str, Any]:
        """All but the items, for JSON."""
        return {"format": FORMAT, "about": self.about, "tasks": {task.name: task.as_dict() for task in self.tasks}}

    def write(self, folder: str | Path) -> None:
        """Write results.json, results.md, items.jsonl and report.html."""
        from hanmo.evaluation.clue.report import page

        folder = Path(folder)
        write_text(folder / "results.json", json.dumps(self.as_dict(), ensure_ascii=False, indent=1) + "\n")
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
        facts = [f"- {name}: {value}" for name, value in self.about.items()]
        facts += [f"- {task.title}: {name} {value}" for task in self.tasks for name, value in task.about.items()]
        notes = [f"- {task.title}: {note}" for task in self.tasks for note in task.notes]
        return "\n".join(["# CLUE", "", *rows, "", *facts, *([""] if notes else []), *notes, ""])


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
        raise HanmoError(f"{path}: {problem}; expected the results.json of `hanmo eval clue --output`") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise HanmoError(f"{path}: not a result of `hanmo eval clue` (format {FORMAT})")
    return content


def compare_results(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Comparison]:
    """The tasks that two runs have in common, question by question.

    Raises:
        HanmoError: nothing in common, or a task's questions are not the same.
    """
    shared = [name for name in first["tasks"] if name in second["tasks"]]
    if not shared:
        raise HanmoError(
            f"no task in common: the first has {', '.join(first['tasks'])}, the second {', '.join(second['tasks'])}"
        )
    found = {}
    for name in shared:
        one, other = first["tasks"][name], second["tasks"][name]
        if one["about"]["data"] != other["about"]["data"] or len(one["right"]) != len(other["right"]):
            raise HanmoError(
                f"{name}: not the same questions ({len(one['right'])} of data {one['about']['data']}, "
                f"{len(other['right'])} of data {other['about']['data']}); evaluate both on the same files"
            )
        found[name] = compare(one["right"], other["right"])
    return found


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
            lines.append(json.dumps(value, ensure_ascii=False) + "\n")
    return lines
