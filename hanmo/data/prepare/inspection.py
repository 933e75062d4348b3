"""The content of a file of records: form, counts, lengths, language, duplicates, problems, samples."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from hanmo.data.prepare.cleaning.steps import han_share
from hanmo.data.prepare.dedup import LshIndex, signature
from hanmo.data.prepare.normalisation import text_hash
from hanmo.data.prepare.views import views, whole
from hanmo.errors import RecordError
from hanmo.records import Dialogue, Plain, PromptResponse, Record, Rejects, Text, iter_records
from hanmo.report.page import Page

NAMES = {Text: "text", Dialogue: "dialogue", PromptResponse: "prompt and response"}
SAMPLES = 10
PROBLEMS = 20
NEAR_UP_TO = 200_000  # records that are compared with each other
Lengths = Callable[[Sequence[str]], list[int]]


@dataclass
class Inspection:
    """The findings; ``lengths``: of the records, in this ``unit``."""

    path: str
    megabytes: float
    compressed: bool
    unit: str
    records: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    texts: int = 0  # turns, prompts, answers
    lengths: list[int] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    same: int = 0
    nearly_same: int = 0  # among the first ``NEAR_UP_TO`` records
    bad: int = 0
    problems: list[str] = field(default_factory=list)
    samples: list[list[str]] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        ordered = sorted(self.lengths) or [0]
        half, most = (ordered[min(int(share * len(ordered)), len(ordered) - 1)] for share in (0.5, 0.95))
        languages = (f"{_share(count, self.records)} {name}" for name, count in self.languages.most_common())
        return {
            "file": self.path,
            "size": (f"{self.megabytes:.2f} MB" if self.megabytes >= 1 else f"{1000 * self.megabytes:.1f} kB")
            + (" (gzip)" if self.compressed else ""),
            "form": ", ".join(f"{count:,} x {kind}" for kind, count in self.kinds.most_common()) or "nothing",
            "records": f"{self.records:,}",
            "bad records": f"{self.bad:,}",
            "turns or texts": f"{self.texts:,}",
            self.unit: f"{sum(ordered):,}",
            f"{self.unit} a record": f"half up to {half:,}, 95 % up to {most:,}, longest {ordered[-1]:,}",
            "language": ", ".join(languages),
            "the same as an earlier one": f"{self.same:,} ({_share(self.same, self.records)})",
            "nearly the same": f"{self.nearly_same:,} ({_share(self.nearly_same, self.records)})",
        }

    def histogram(self, bars: int = 12) -> list[tuple[str, int]]:
        """Records by length, in ranges that double."""
        counts = Counter(max(length, 1).bit_length() - 1 for length in self.lengths)
        powers = range(min(counts, default=0), max(counts, default=-1) + 1)
        return [(f"{1 << n:,}-{(2 << n) - 1:,}", counts[n]) for n in powers][-bars:]


def _share(part: int, of: int) -> str:
    return f"{100 * part / max(of, 1):.1f} %"


def inspect_file(path: Path, plain: Plain = "dialogue", lengths: Lengths | None = None, seed: int = 0) -> Inspection:
    """Read a whole file once; RecordError if it cannot be read. ``lengths``: counts tokens, instead of characters."""
    if not path.is_file():
        raise RecordError(path, 0, "no such file")
    unit = "tokens" if lengths else "characters"
    found = Inspection(str(path), path.stat().st_size / 1e6, path.suffix == ".gz", unit)
    rejects, seen, index, rng = Rejects(), set[int](), LshIndex(), Random(seed)
    pending: list[str] = []
    sizes: list[int] = []  # texts of each record whose lengths are pending

    def count_pending() -> None:
        counts = iter(lengths(pending) if lengths else map(len, pending))
        found.lengths += [sum(next(counts) for _ in range(size)) for size in sizes]
        pending.clear()
        sizes.clear()

    for record in iter_records(path, rejects, plain):
        texts = _texts(record)
        found.records += 1
        found.kinds[NAMES.get(type(record), "prompt with scored answers")] += 1
        found.texts += len(texts)
        if isinstance(record, Dialogue):
            found.turns[len(texts)] += 1
        found.languages[_language("".join(texts))] += 1
        key = text_hash(text := whole(record))
        found.same += key in seen
        seen.add(key)
        if found.records <= NEAR_UP_TO:
            index.add(signature(text))
        pending += texts
        sizes.append(len(texts))
        if len(pending) >= 2000:
            count_pending()
        # Each record is as likely as any other to be among the samples (Vitter's algorithm R).
        if len(found.samples) < SAMPLES:
            found.samples.append(texts)
        elif (place := rng.randrange(found.records)) < SAMPLES:
            found.samples[place] = texts
    count_pending()
    found.nearly_same = sum(first != own for own, first in enumerate(index.first_similar(0.8).tolist()))
    found.bad, found.problems = len(rejects), [str(error) for error in rejects.errors[:PROBLEMS]]
    return found


def _texts(record: Record) -> list[str]:
    seen = views(record)
    return seen[0] if len(seen) == 1 else [seen[0][0], *(turns[1] for turns in seen)]


def _language(text: str) -> str:
    letters = [char for char in text if char.isalpha()]
    if not letters:
        return "no letters"
    if (share := han_share("".join(letters))) >= 0.5:
        return "Chinese"
    latin = sum(char.isascii() for char in letters) / len(letters)
    return "Latin letters" if latin > 0.5 else "mixed" if share > 0.2 else "other scripts"


def page(found: Inspection) -> Page:
    made = Page(f"Data: {Path(found.path).name}", subtitle=f"{found.records:,} records", language="zh-CN")
    made.facts(found.facts())
    made.heading("Lengths")
    bars = {name: {"records": count} for name, count in found.histogram()}
    made.bar_plot(bars, caption=f"Records by {found.unit}")
    if found.turns:
        turns = {str(number): {"dialogues": count} for number, count in sorted(found.turns.items())[:20]}
        made.bar_plot(turns, caption="Dialogues by turns")
    made.heading("Problems")
    if found.problems:
        number = f"The first {len(found.problems)} of" if found.bad > len(found.problems) else "All"
        made.table(["file:line: problem"], [[one] for one in found.problems], caption=f"{number} {found.bad:,}")
    else:
        made.paragraph("None.")
    made.heading("Samples")
    made.table(["", "texts"], [[number, " ⇥ ".join(texts)] for number, texts in enumerate(found.samples, 1)])
    return made
