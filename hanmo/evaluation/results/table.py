"""Results of several runs side by side, in the layout of CLUE's published table: tasks by zero-shot | few-shot x models."""

from collections.abc import Sequence
from typing import Any

from hanmo.errors import HanmoError

Result = dict[str, Any]  # as ``result.read_result`` returns it


class Table:
    """Runs as columns, zero-shot ones first, tasks as rows; then the averages of runs that have the same tasks.

    A value has its 95 % interval; it is None where the run lacks the task. ``facts``: what each run's values depend on.

    Raises:
        HanmoError: runs are of different evaluations or questions, or one is given twice.
    """

    def __init__(self, results: Sequence[Result]):
        runs = sorted(results, key=lambda run: run["about"]["shots"])
        names = [_name(run, runs) for run in runs]
        if twice := {name for name in names if names.count(name) > 1}:
            raise HanmoError(f"{', '.join(sorted(twice))}: given twice; every run makes one column")
        self.header = ["task", "metric", "chance", *names, "data"]
        self.rows: list[list[str | float | None]] = []
        titles = list(dict.fromkeys(run["title"] for run in runs))
        if len(titles) > 1:
            raise HanmoError(f"{' and '.join(titles)}: only results of one evaluation stand side by side")
        self.title = titles[0]
        places = {name: task["place"] for run in runs for name, task in run["tasks"].items()}
        for task in sorted(places, key=places.__getitem__):
            found = [run["tasks"].get(task) for run in runs]
            having = [one for one in found if one]
            first = having[0]
            for name, one in zip(names, found, strict=True):
                if one and one["about"]["data"] != first["about"]["data"]:
                    raise HanmoError(
                        f"{task}: {name} answered other questions (data {one['about']['data']}) than the first run "
                        f"({first['about']['data']}); evaluate all on the same files"
                    )
            metric = ", ".join(dict.fromkeys(f"{one['metric']} ({one['reading']})" for one in having))
            chance = min((one["chance"] for one in having if one["chance"] is not None), default=None)
            cells = [one and _cell(one) for one in found]
            self.rows.append([first["title"], metric, chance, *cells, first["about"]["data"]])
        averages = {tuple((row["title"], row["over"]) for row in run["averages"]) for run in runs}
        if len({tuple(run["tasks"]) for run in runs}) == len(averages) == 1:
            for same in zip(*(run["averages"] for run in runs), strict=True):
                metric = f"mean over {same[0]['over']}"
                self.rows.append([same[0]["title"], metric, same[0]["chance"], *map(_cell, same), None])
        self.facts = {name: _origin(run) for name, run in zip(names, runs, strict=True)}

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *([cell_text(value) for value in row] for row in self.rows)]
        facts = [f"- {name}: {fact}" for name, fact in self.facts.items()]
        return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *facts, ""])


def _name(run: Result, runs: Sequence[Result]) -> str:
    """Shots and model; the protocol if the runs differ in it, the weights if the model's name is ambiguous."""
    about = run["about"]
    shots = f"{about['shots']}-shot" if about["shots"] else "zero-shot"
    protocol = f", {about['protocol']}" if len({one["about"]["protocol"] for one in runs}) > 1 else ""
    weights = {one["about"]["weights"] for one in runs if one["about"]["model"] == about["model"]}
    return f"{shots}{protocol}: {about['model']}" + (f" {about['weights'][:8]}" if len(weights) > 1 else "")


def _cell(task: dict[str, Any]) -> str:
    return f"{task['value']:.4f} ({task['low']:.4f} – {task['high']:.4f})"


def cell_text(value: str | float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else value


def _origin(run: Result) -> str:
    about = run["about"]
    parts = [f"{about['protocol']} protocol", f"at most {about['limit']} tokens", f"weights {about['weights']}"]
    parts.append(f"hanmo {about['hanmo']}" + (f" of commit {about['commit']}" if "commit" in about else ""))
    return "; ".join(parts)
