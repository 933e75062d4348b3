"""Results of an evaluation on tasks, as JSON and Markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hanmo.errors import HanmoError
from hanmo.evaluation.results.statistics import Comparison, compare, interval, interval_of_means
from hanmo.files import json_text, read_json, write_text

FORMAT = "hanmo-tasks-1"
ALL = "all"
GAP = "____"  # in place of a candidate where a question is shown


@dataclass(frozen=True)
class QuestionResult:
    """The scores or the answer of one question.

    Attributes:
        where: "file:line" of the record.
        text: the question, with a gap where the candidates go.
        options, gold: the candidates and the index of the right one; for generated answers the accepted ones, and 0.
        scores: by reading, one number per candidate, the highest wins; for generated answers their values by metric.
        generated: the model's answer, for tasks that generate it.
    """

    where: str
    text: str
    options: tuple[str, ...]
    gold: int
    scores: dict[str, list[float]]
    generated: str | None = None

    def choice(self, reading: str) -> int:
        """The candidate with the highest score, the first of equal ones."""
        scores = self.scores[reading]
        return scores.index(max(scores))

    def margin(self, reading: str) -> float:
        """Score of the best wrong candidate less that of the right one."""
        scores = self.scores[reading]
        return max((score for place, score in enumerate(scores) if place != self.gold), default=0.0) - scores[self.gold]


@dataclass(frozen=True)
class TaskResult:
    """One task.

    Attributes:
        metric: "accuracy" or "F1".
        reading: the key of ``right`` that is the result.
        right: by reading, the value of every group or question, 0 to 1.
        chance: accuracy of guessing; None for generated answers.
        labels: the candidates are the same labels in all items.
        about: task hash, data hash, numbers.
        groups: averages that it counts in, besides that of all tasks.
        place: position among the tasks.
    """

    name: str
    title: str
    metric: str
    reading: str
    right: dict[str, list[float]]
    chance: float | None
    labels: bool
    items: list[QuestionResult]
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

    def row(self) -> dict[str, Any]:
        """The result as one row of a table, see ``Result.rows``."""
        values = self.right[self.reading]
        low, high = interval(values)
        return {
            "title": self.title,
            "metric": f"{self.metric} ({self.reading})",
            "value": self.value,
            "low": low,
            "high": high,
            "chance": self.chance,
            "questions": len(values),
            "data": self.about["data"],
        }

    def confusion(self) -> dict[str, dict[str, int]]:
        """By right label, how often each label was chosen; empty for tasks without fixed labels."""
        if not self.labels:
            return {}
        table: dict[str, Counter[str]] = {}
        for item in self.items:
            chosen = item.options[item.choice(self.reading)]
            table.setdefault(item.options[item.gold], Counter())[chosen] += 1
        return {label: dict(row.most_common()) for label, row in table.items()}


@dataclass(frozen=True)
class Result:
    """All tasks of a run.

    Attributes:
        about: model, weights, protocol, shots, limit, version.
        tasks: empty where the right answers are not published.
        submission: by task and id of the question, the chosen option; empty for suites whose answers are not submitted.
    """

    title: str
    about: dict[str, Any]
    tasks: list[TaskResult]
    submission: dict[str, dict[str, str]] = field(default_factory=dict)

    def averages(self) -> list[dict[str, Any]]:
        """Of each group of tasks and of all, over tasks (as leaderboards have it) and over questions; none without groups.

        The 95 % bootstrap interval is over questions in both.
        """
        groups = dict.fromkeys(group for task in self.tasks for group in task.groups)
        named = {group: [task for task in self.tasks if group in task.groups] for group in groups}
        if groups:
            named[ALL] = self.tasks
        return [row for title, tasks in named.items() for row in _means(title, tasks)]

    def as_dict(self) -> dict[str, Any]:
        """All but the questions, for JSON; without right answers the submission."""
        if not self.tasks:
            return {"title": self.title, "about": self.about, "submission": self.submission}
        return {
            "format": FORMAT,
            "title": self.title,
            "about": self.about,
            "tasks": {task.name: task.as_dict() for task in self.tasks},
            "averages": self.averages(),
        }

    def write(self, folder: Path) -> list[str]:
        """Write results.json, results.md and items.jsonl if right answers are known, submission.json if there is one.

        Returns the names of the files.
        """
        files = {}
        if self.tasks:
            files["results.json"] = json_text(self.as_dict(), indent=1) + "\n"
            files["results.md"] = self.markdown()
            files["items.jsonl"] = "".join(_lines(self.tasks))
        if self.submission:
            files["submission.json"] = json_text(self.submission, indent=1) + "\n"
        for name, text in files.items():
            write_text(folder / name, text)
        return list(files)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each task and each average: title, metric, value, low, high, chance, questions, data."""
        averages = [row | {"metric": f"mean over {row['over']}", "data": ""} for row in self.averages()]
        return [*(task.row() for task in self.tasks), *averages]

    def summary(self) -> list[list[str]]:
        """``rows`` as text: title, metric, value, interval, chance, questions, data."""
        return [
            [
                row["title"],
                row["metric"],
                f"{row['value']:.4f}",
                f"{row['low']:.4f} to {row['high']:.4f}",
                "–" if row["chance"] is None else f"{row['chance']:.4f}",
                str(row["questions"]),
                row["data"],
            ]
            for row in self.rows()
        ]

    def markdown(self) -> str:
        rows = [["task", "metric", "result", "95 % interval", "chance", "questions"], ["---"] * 6]
        for number, (title, *cells, _) in enumerate(self.summary()):
            rows.append([title if number < len(self.tasks) else f"**{title}**", *cells])
        facts = [f"- {name}: {value}" for name, value in self.about.items()]
        facts += [f"- {task.title}: {name} {value}" for task in self.tasks for name, value in task.about.items()]
        notes = [f"- {task.title}: {note}" for task in self.tasks for note in task.notes]
        table = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([f"# {self.title}", "", *table, "", *facts, *([""] if notes else []), *notes, ""])


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
    """The contents of a results.json, given by its path or its folder.

    Raises:
        HanmoError: there is none, or it is another file.
    """
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else str(error).removeprefix(f"{path}: ")
        expected = "the results.json of `hanmo eval clue|exam|task --output`"
        raise HanmoError(f"{path}: {problem}; expected {expected}") from None
    if content.get("format") != FORMAT:
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
            ours, theirs = together.setdefault(title, ([], []))
            ours += one["right"]
            theirs += other["right"]
    return {name: compare(*together[name]) for name in dict.fromkeys((*shared, *together))}


def _lines(tasks: Sequence[TaskResult]) -> Iterator[str]:
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
            if item.generated is not None:
                value["generated"] = item.generated
            yield json_text(value) + "\n"
