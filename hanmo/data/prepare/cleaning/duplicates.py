"""Cleaning steps that compare records: ``faults`` gives the reason to remove each, or None for the first of its kind."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from hanmo.config import require
from hanmo.data.prepare.cleaning.steps import require_shares
from hanmo.data.prepare.dedup import LshIndex, signature
from hanmo.data.prepare.normalisation import text_hash
from hanmo.data.prepare.views import views, whole
from hanmo.records import Record, Text


@dataclass
class SameSessions:
    """Records that are the same, but for width, case, white space and punctuation."""

    def faults(self, records: Iterable[Record]) -> Iterable[str | None]:
        seen: set[int] = set()
        for record in records:
            key = text_hash(whole(record))
            yield "has come before" if key in seen else None
            seen.add(key)


@dataclass
class SameUtterances:
    """Dialogues whose last turn has come ``most`` times already (chain letters, automatic replies)."""

    most: int = 100
    from_length: int = 4

    def __post_init__(self) -> None:
        require(self, most=(self.most >= 1, "at least 1"))

    def faults(self, records: Iterable[Record]) -> Iterable[str | None]:
        counts: Counter[int] = Counter()
        for record in records:
            last = views(record)[0][-1]
            if isinstance(record, Text) or len(last) < self.from_length:
                yield None
                continue
            key = text_hash(last)
            counts[key] += 1
            yield f"seen {self.most} times before" if counts[key] > self.most else None


@dataclass
class NearlySame:
    """Records that share most of their character 4-grams with an earlier one (MinHash)."""

    threshold: float = 0.8

    def __post_init__(self) -> None:
        require_shares(self, "threshold")

    def faults(self, records: Iterable[Record]) -> Iterable[str | None]:
        index = LshIndex()
        for record in records:
            index.add(signature(whole(record)))
        for number, first in enumerate(index.first_similar(self.threshold).tolist()):
            yield None if first == number else "nearly the same as an earlier one"
