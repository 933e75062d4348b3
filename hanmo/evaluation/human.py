"""Human evaluation as 文汇's authors did it: blind sheets of answers, four ratings each, means and agreement.

Every rater gets another order. The HTML page keeps ratings in the browser and saves them as the CSV sheet.
docs/published.md has the authors' figures.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random

from hanmo.data.prepare.sources.reader import SourceReader
from hanmo.errors import ConfigError, HanmoError, RecordError
from hanmo.evaluation.results.result import content_of
from hanmo.evaluation.results.statistics import interval
from hanmo.files import json_text, package_yaml, write_text
from hanmo.records import PromptResponse, iter_records
from hanmo.report.page import render

SCALES = package_yaml("hanmo.evaluation", "human.yaml")
RATINGS: dict[str, int] = {name: scale["top"] for name, scale in SCALES.items()}
COLUMNS = ("item", "question", "answer", *RATINGS)
KEY = "key.json"
# Spreadsheets evaluate cells that begin like this. They get an apostrophe in front, even if they have one already.
FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")


@dataclass(frozen=True)
class Rating:
    """A mean with its 95 % bootstrap interval over answers."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class HumanResult:
    systems: dict[str, dict[str, Rating]]  # by system and rating
    agreement: dict[str, float | None]  # Krippendorff's alpha (1: all alike, 0: as by chance); None with a single rater
    raters: list[str]  # names of the sheets
    answers: int  # number of rated answers


def read_answers(given: Sequence[str]) -> dict[str, dict[str, str]]:
    """The answer to each question, by system, from NAME=FILE of each: records with prompt and response."""
    found: dict[str, dict[str, str]] = {}
    for entry in given:
        name, equals, path = entry.partition("=")
        if not equals or name in found:
            raise ConfigError(f"{entry!r}: expected NAME=FILE, every name once")
        answers = found[name] = {}
        places: dict[str, str] = {}
        for record in iter_records(path):
            if not isinstance(record, PromptResponse):
                raise HanmoError(f'{record.where}: expected {{"prompt": …, "response": …}}')
            if first := places.get(record.prompt):
                problem = f"the prompt {record.prompt[:40]!r} has an answer at {first}"
                raise RecordError.at(record.where, f"{problem}; give further answers under a name of their own")
            places[record.prompt], answers[record.prompt] = record.where, record.response
    return found


def prepare(answers: Mapping[str, Mapping[str, str]], folder: str | Path, raters: int = 3, seed: int = 0) -> list[Path]:
    """Write blind sheets (rater1.csv, rater1.html, …) and key.json, which raters must not see.

    HanmoError if systems have different questions, or the folder already holds sheets.
    """
    folder = Path(folder)
    if (folder / KEY).exists():
        raise HanmoError(f"{folder / KEY} exists: its sheets may be with raters already; give another folder")
    first, *others = answers
    for other in others:
        differing = set(answers[first]) ^ set(answers[other])
        if differing:
            raise HanmoError(f"{first} and {other} do not answer the same questions, for instance: {min(differing)!r}")
    rng = Random(seed)
    pairs = [(system, question) for system in answers for question in answers[system]]
    rng.shuffle(pairs)
    items = {f"{number:04d}": pair for number, pair in enumerate(pairs, 1)}
    files = {}
    for rater in range(1, raters + 1):
        order = rng.sample(sorted(items), len(items))
        rows = [(item, items[item][1], answers[items[item][0]][items[item][1]]) for item in order]
        files[folder / f"rater{rater}.csv"] = _sheet(rows)
        files[folder / f"rater{rater}.html"] = _page(rows, f"rater{rater}")
    key = {item: {"system": system, "question": question} for item, (system, question) in items.items()}
    for path, text in {**files, folder / KEY: json_text(key, indent=1) + "\n"}.items():
        write_text(path, text)
    return list(files)


def score(sheets: Sequence[str | Path], key: str | Path) -> HumanResult:
    """Means and agreement of rated sheets.

    HanmoError if nothing is rated; RecordError for a rating out of its range, or of an item that is not in the key.
    """
    expected = "the key.json that `hanmo eval human-prepare` wrote"
    known: dict[str, dict[str, str]] = content_of(key, expected)
    named = [entry.get(name) for entry in known.values() if isinstance(entry, dict) for name in ("system", "question")]
    if len(named) < 2 * len(known) or not all(isinstance(name, str) for name in named):
        raise HanmoError(f"{key}: no items with their systems; expected {expected}")
    rated: dict[str, dict[str, list[float]]] = {name: {} for name in RATINGS}
    for sheet in map(Path, sheets):
        for line, row in SourceReader().csv_rows(sheet, "item", *RATINGS):
            if row["item"] not in known:
                raise RecordError(sheet, line, f"item {row['item']!r} is not in {key}; are these its sheets?")
            for name, top in RATINGS.items():
                if text := text_of(row[name]).strip():
                    rated[name].setdefault(row["item"], []).append(_rating(text, name, top, sheet, line))
    if not any(rated.values()):
        raise HanmoError(f"no rating in {', '.join(map(str, sheets))}; expected numbers in {', '.join(RATINGS)}")
    systems: dict[str, dict[str, Rating]] = {}
    for system in dict.fromkeys(entry["system"] for entry in known.values()):
        for name in RATINGS:
            means = [sum(got) / len(got) for item, got in rated[name].items() if known[item]["system"] == system]
            if means:
                systems.setdefault(system, {})[name] = Rating(sum(means) / len(means), *interval(means))
    agreement = {name: krippendorff(list(values.values())) for name, values in rated.items()}
    answered = len({item for values in rated.values() for item in values})
    return HumanResult(systems, agreement, [Path(sheet).stem for sheet in sheets], answered)


def krippendorff(items: Sequence[Sequence[float]]) -> float | None:
    """Krippendorff's alpha for interval data: 1 - observed / expected disagreement (Krippendorff 2011).

    Items with fewer than two ratings do not count; None if no others are left or all ratings are equal.

    >>> krippendorff([[1, 1], [5, 5]])
    1.0
    """
    items = [values for values in items if len(values) > 1]
    pooled = [value for values in items for value in values]
    count = len(pooled)
    if count < 2:
        return None
    observed = sum(_spread(values) / (len(values) - 1) for values in items) / count
    expected = _spread(pooled) / (count * (count - 1))
    return 1 - observed / expected if expected else None


def _spread(values: Sequence[float]) -> float:
    """Sum of squared differences over all ordered pairs."""
    return 2 * (len(values) * sum(value * value for value in values) - sum(values) ** 2)


def _sheet(rows: Sequence[tuple[str, str, str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([COLUMNS, *([*map(as_cell, row), *[""] * len(RATINGS)] for row in rows)])
    return "\ufeff" + text.getvalue()  # so that spreadsheets read it as UTF-8


def as_cell(text: str) -> str:
    """A text as a cell that no spreadsheet evaluates; ``text_of`` is the inverse."""
    return f"'{text}" if FORMULA.match(text) else text


def text_of(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def _page(rows: Sequence[tuple[str, str, str]], name: str) -> str:
    study = sha256(json_text(rows).encode()).hexdigest()[:16]  # browsers keep ratings by it
    answers = {"name": name, "study": study, "rows": rows}
    form = {"scales": SCALES, "columns": COLUMNS, "formula": f"^{FORMULA.pattern}"}
    return render("hanmo.evaluation", "human.html", content={**answers, **form})


def _rating(text: str, name: str, top: int, sheet: Path, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= top:
        raise RecordError(sheet, line, f"{name} is {text!r}; expected a number from 1 to {top}")
    return value
