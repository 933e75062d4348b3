"""Pages of results: one run, and several side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hanmo.evaluation.results.result import QuestionResult, Result, TaskResult
from hanmo.evaluation.results.table import Table, cell_text
from hanmo.files import write_text
from hanmo.report.page import Page

SHOWN = 5  # items of each kind
TEXT = 160  # characters of a question that are shown
CANDIDATES = 5
WIDEST = 20  # labels of a confusion table


def write_result(result: Result, folder: Path) -> list[str]:
    """Write a result's files and, if right answers are known, report.html; returns their names."""
    names = result.write(folder)
    if result.tasks:
        result_page(result).write(folder / "report.html")
        names.append("report.html")
    return names


def write_table(table: Table, path: Path) -> None:
    """Write a Markdown file, or a page where the name ends in .html."""
    if path.suffix != ".html":
        write_text(path, table.markdown())
        return
    page = Page(table.title, subtitle=f"{len(table.facts)} runs side by side", language="zh-CN")
    note = "The interval is a 95 % bootstrap over questions; chance is the accuracy of guessing."
    page.table(table.header, [list(map(cell_text, row)) for row in table.rows], caption="Results", note=note)
    page.facts(table.facts, caption="How")
    page.write(path)


def result_page(result: Result) -> Page:
    """Results in the layout of the published table, then every task by itself."""
    about = result.about
    page = Page(result.title, subtitle=f"{about['model']}, {about['protocol']} protocol", language="zh-CN")
    shots = "zero-shot" if not about["shots"] else f"{about['shots']}-shot"
    rows = result.rows()
    averages = [row for row in rows if row.get("over") == "tasks"]  # a bar for each of many tasks is unreadable
    bars = {
        row["title"]: {"model": row["value"]} | ({} if row["chance"] is None else {"chance": row["chance"]})
        for row in averages or rows
    }
    page.table(
        ["task", shots, "chance", "95 % interval", "metric", "questions"],
        [[row["title"], row["value"], row["chance"], _interval(row), row["metric"], row["questions"]] for row in rows],
        caption="Results",
        note="The interval is a bootstrap over questions; chance is the accuracy of guessing.",
    )
    page.bar_plot(bars, caption="Above chance?", top=1.0)
    page.heading("How")
    page.facts(about)
    for task in result.tasks:
        _task(page, task)
    return page


def _interval(row: dict[str, Any]) -> str:
    return f"{row['low']:.4f} – {row['high']:.4f}"


def _task(page: Page, task: TaskResult) -> None:
    page.heading(task.title)
    for note in task.notes:
        page.paragraph(note)
    page.table(
        ["reading", "value", "95 % interval", ""],
        [
            [name, row["value"], _interval(row), "the result" * (name == task.reading)]
            for name, row in task.readings().items()
        ],
    )
    page.facts(task.about)
    if table := task.confusion():
        _confusion(page, table)
    if task.items and task.items[0].generated is None:
        asked = [item for item in task.items if len(item.options) > 1]
        wrong = [item for item in asked if item.margin(task.reading) > 0]
        wrong.sort(key=lambda item: -item.margin(task.reading))
        asked.sort(key=lambda item: abs(item.margin(task.reading)))
        _items(page, "Most confident wrong answers", wrong[:SHOWN], task.reading)
        _items(page, "Hardest questions", asked[:SHOWN], task.reading)
    else:
        worst = sorted(task.items, key=lambda item: item.scores[task.reading][0])[:SHOWN]
        with page.details("Worst answers"):
            rows = [[_end(item.text), item.generated, " / ".join(item.options), item.scores["f1"][0]] for item in worst]
            page.table(["question", "answer", "accepted", "F1"], rows)


def _confusion(page: Page, table: dict[str, dict[str, int]]) -> None:
    """All labels against all, or only the most frequent mistakes if there are many."""
    labels = list(dict.fromkeys([*table, *(name for row in table.values() for name in row)]))
    with page.details("Which label was taken for which"):
        if len(labels) <= WIDEST:
            counts = [[table.get(right, {}).get(name, 0) for name in labels] for right in labels]
            rows = [[right, *count] for right, count in zip(labels, counts, strict=True)]
            page.table(["right \\ chosen", *labels], rows)
            return
        pairs = [(count, right, chosen) for right, row in table.items() for chosen, count in row.items()]
        mistakes = sorted((pair for pair in pairs if pair[1] != pair[2]), reverse=True)
        page.table(["right", "chosen", "times"], [[right, chosen, count] for count, right, chosen in mistakes[:WIDEST]])


def _items(page: Page, title: str, items: Sequence[QuestionResult], reading: str) -> None:
    if not items:
        return
    with page.details(title):
        rows = [[item.where.rpartition("/")[2], _end(item.text), _candidates(item, reading)] for item in items]
        page.table(["record", "question", "candidates, best first (✓ is right)"], rows)


def _candidates(item: QuestionResult, reading: str) -> str:
    scores = item.scores[reading]
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    shown = order[:CANDIDATES] + [item.gold] * (item.gold not in order[:CANDIDATES])
    return ", ".join(f"{item.options[place]}{' ✓' * (place == item.gold)} {scores[place]:.2f}" for place in shown)


def _end(text: str) -> str:
    return text if len(text) <= TEXT else "…" + text[-TEXT:]
