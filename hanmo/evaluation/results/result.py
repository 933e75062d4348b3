"""Results of an evaluation on tasks, as JSON and Markdown."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from hanmo.errors import HanmoError
from hanmo.evaluation.results.statistics import Comparison, compare, interval, interval_of_means
from hanmo.files import json_text, read_json, write_text

FORMAT = "hanmo-tasks-1"
ALL = "all"
GAP = "____"  # in place of a candidate where a question is shown
Row = dict[str, Any]


@dataclass(frozen=True)
class QuestionResult:
    """The scores or the answer of one question."""

    where: str  # "file:line" of the record
    text: str  # the question, with a gap where the candidates go
    options: tuple[str, ...]  # the candidates; the accepted answers, where the model generates one
    gold: int  # index of the right one; 0 for generated answers
    scores: dict[
        str, list[float]
    ]  # by reading, that of each candidate, the highest wins; of a generated answer by metric
    generated: str | None = None  # the model's answer, for tasks that generate it

    def choice(self, reading: str) -> int:
        """The candidate with the highest score, the first of equal ones."""
        scores = self.scores[reading]
        return scores.index(max(scores))

    def value(self, reading: str) -> float:
        """The value of the model's answer; without one, whether the right candidate is chosen."""
        if self.generated is not None:
            return self.scores[reading][0]
        return float(self.options[self.choice(reading)] == self.options[self.gold])  # candidates may be the same text

    def margin(self, reading: str) -> float:
        """Score of the best wrong candidate minus that of the right one."""
        scores = self.scores[reading]
        wrong = (score for score, option in zip(scores, self.options, strict=True) if option != self.options[self.gold])
        return max(wrong, default=0.0) - scores[self.gold]

    def as_dict(self) -> dict[str, Any]:
        """All but the text, for JSON."""
        scores = {name: [round(value, 6) for value in values] for name, values in self.scores.items()}
        shown = {"where": self.where, "options": self.options, "gold": self.gold, "scores": scores}
        return shown if self.generated is None else shown | {"generated": self.generated}


@dataclass(frozen=True)
class TaskResult:
    name: str
    title: str
    metric: str  # "accuracy" or "F1"
    reading: str  # the key of ``right`` that is the result
    right: dict[str, list[float]]  # by reading, the value of every group or question, 0 to 1
    chance: float | None  # accuracy of guessing; None for generated answers
    labels: bool  # the candidates are the same labels in all items
    items: list[QuestionResult]
    about: dict[str, Any]  # task hash, data hash, numbers
    notes: list[str] = field(default_factory=list)
    groups: tuple[str, ...] = ()  # the averages that it is part of, besides that of all tasks
    place: int = 0  # position among the tasks

    @property
    def value(self) -> float:
        return fmean(self.right[self.reading])

    def readings(self) -> dict[str, dict[str, float]]:
        return {name: _measured(values) for name, values in self.right.items()}

    def as_dict(self) -> dict[str, Any]:
        readings = self.readings()
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

    def row(self) -> Row:
        values = self.right[self.reading]
        row = {"title": self.title, "metric": f"{self.metric} ({self.reading})", **_measured(values)}
        return row | {"chance": self.chance, "questions": len(values), "data": self.about["data"]}

    def confusion(self) -> dict[str, dict[str, int]]:
        """By right label, how often each label was chosen; empty for tasks without fixed labels."""
        table: dict[str, Counter[str]] = {}
        for item in self.items if self.labels else ():
            chosen = item.options[item.choice(self.reading)]
            table.setdefault(item.options[item.gold], Counter())[chosen] += 1
        return {label: dict(row.most_common()) for label, row in table.items()}


@dataclass(frozen=True)
class Result:
    title: str
    about: dict[str, Any]  # model, weights, protocol, shots, limit, version
    tasks: list[TaskResult]  # none where the right answers are not published
    # The chosen option, by task and id of the question.
    submission: dict[str, dict[str, str]] = field(default_factory=dict)

    def averages(self) -> list[Row]:
        """Of each group of tasks and of all, over tasks (as leaderboards have it) and over questions.

        The 95 % bootstrap interval is over questions in both.
        """
        groups = dict.fromkeys(group for task in self.tasks for group in task.groups)
        named = {group: [task for task in self.tasks if group in task.groups] for group in groups}
        if groups:
            named[ALL] = self.tasks
        return [row for title, tasks in named.items() for row in _means(title, tasks)]

    def as_dict(self) -> dict[str, Any]:
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
        """Write results.json, results.md and items.jsonl, or submission.json; returns the names."""
        files = {}
        if self.tasks:
            files["results.json"] = json_text(self.as_dict(), indent=1) + "\n"
            files["results.md"] = self.markdown()
            items = [{"task": task.name, **item.as_dict()} for task in self.tasks for item in task.items]
            files["items.jsonl"] = "".join(f"{json_text(item)}\n" for item in items)
        if self.submission:
            files["submission.json"] = json_text(self.submission, indent=1) + "\n"
        for name, text in files.items():
            write_text(folder / name, text)
        return list(files)

    def rows(self) -> list[Row]:
        """One row for each task and each average: title, metric, value, low, high, chance, questions, data."""
        averages = [row | {"metric": f"mean over {row['over']}", "data": ""} for row in self.averages()]
        return [*(task.row() for task in self.tasks), *averages]

    def summary(self) -> list[list[str]]:
        """``rows`` as text, low and high as one interval."""
        summary = []
        for row in self.rows():
            chance = "–" if row["chance"] is None else f"{row['chance']:.4f}"
            values = f"{row['value']:.4f}", f"{row['low']:.4f} to {row['high']:.4f}"
            summary.append([row["title"], row["metric"], *values, chance, str(row["questions"]), row["data"]])
        return summary

    def markdown(self) -> str:
        rows = [["task", "metric", "result", "95 % interval", "chance", "questions"], ["---"] * 6]
        for number, (title, *cells, _) in enumerate(self.summary()):
            rows.append([title if number < len(self.tasks) else f"**{title}**", *cells])
        facts = [f"- {name}: {value}" for name, value in self.about.items()]
        facts += [f"- {task.title}: {name} {value}" for task in self.tasks for name, value in task.about.items()]
        notes = [f"- {task.title}: {note}" for task in self.tasks for note in task.notes]
        table = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([f"# {self.title}", "", *table, "", *facts, *([""] if notes else []), *notes, ""])


def _measured(values: Sequence[float]) -> dict[str, float]:
    """The mean with its 95 % bootstrap interval."""
    low, high = interval(values)
    return {"value": fmean(values), "low": low, "high": high}


def _means(title: str, tasks: Sequence[TaskResult]) -> list[Row]:
    values = [task.right[task.reading] for task in tasks]
    together = [value for one in values for value in one]
    chances = [task.chance or 0.0 for task in tasks]
    by_question = [chance for chance, one in zip(chances, values, strict=True) for _ in one]
    low, high = interval_of_means(values)
    over_tasks = {"value": fmean(map(fmean, values)), "low": low, "high": high, "chance": fmean(chances)}
    over_questions = {**_measured(together), "chance": fmean(by_question)}
    return [
        {"title": title, "over": over, "tasks": len(tasks), "questions": len(together), **measured}
        for over, measured in (("tasks", over_tasks), ("questions", over_questions))
    ]


def content_of(path: str | Path, expected: str) -> dict[str, Any]:
    try:
        return read_json(Path(path))
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else str(error).removeprefix(f"{path}: ")
        raise HanmoError(f"{path}: {problem}; expected {expected}") from None


def read_result(path: str | Path) -> dict[str, Any]:
    """The contents of a results.json, given by its path or its folder; HanmoError if it is not one of a suite."""
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    content = content_of(path, "the results.json of `hanmo eval clue|exam|task --output`")
    if content.get("format") != FORMAT:
        raise HanmoError(f"{path}: not a result of `hanmo eval clue|exam|task` (format {FORMAT})")
    try:
        TypeAdapter(_Written).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, wrong["loc"]))
        raise HanmoError(f"{path}: {place:.200}: {wrong['msg']}; give the file as hanmo wrote it") from None
    return content


_Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class _About:
    """What ``compare`` and ``table`` read of the origin of a written result, and so on below."""

    model: str
    weights: str
    protocol: str
    shots: int
    limit: int
    hanmo: str
    commit: str = ""


@dataclass(frozen=True)
class _Questions:
    data: str


@dataclass(frozen=True)
class _Measured:
    title: str
    value: _Share
    low: _Share
    high: _Share
    chance: _Share | None


@dataclass(frozen=True)
class _Task(_Measured):
    place: int
    groups: list[str]
    metric: str
    reading: str
    about: _Questions
    right: Annotated[list[_Share], Field(min_length=1)]


@dataclass(frozen=True)
class _Average(_Measured):
    over: str


@dataclass(frozen=True)
class _Written:
    title: str
    about: _About
    tasks: dict[str, _Task]
    averages: list[_Average]


def compare_results(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Comparison]:
    """The tasks that two runs have in common, question by question, and where they have averages, all questions of each.

    HanmoError if they have no task in common, or different questions.
    """
    shared = [name for name in first["tasks"] if name in second["tasks"]]
    if not shared or first["title"] != second["title"]:
        had = [f"{run['title']}: {', '.join(run['tasks'])}" for run in (first, second)]
        raise HanmoError(f"no task in common: the first has {had[0]}; the second {had[1]}")
    together: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in shared}
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
    return {name: compare(*values) for name, values in together.items()}
