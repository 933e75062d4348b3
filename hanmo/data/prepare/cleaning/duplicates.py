"""Cleaning steps that compare records: the same session, a reply used too often, nearly the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hanmo.data.prepare.dedup import LshIndex, signature
from hanmo.data.prepare.normalisation import text_hash
from hanmo.data.prepare.views import views, whole
from hanmo.records import Record, Text


class Duplicates:
    """Records come in their order; the first of several is kept."""

    def fault(self, record: Record) -> str | None:
        """Why the record is to be removed, or None."""
        return None

    def late_faults(self) -> list[str | None]:
        """The same for all records that ``fault`` let pass, once all have been seen; [] if nothing is added."""
        return []


@dataclass
class SameSessions(Duplicates):
    """Records that are the same, but for width, case, white space and punctuation."""

    _seen: set[int] = field(default_factory=set, repr=False)

    def fault(self, record: Record) -> str | None:
        key = text_hash(whole(record))
        if key in self._seen:
            return "has come before"
        self._seen.add(key)
        return None


@dataclass
class SameUtterances(Duplicates):
    """Dialogues whose last turn has come ``most`` times already (adverts, chain letters, automatic replies)."""

    most: int = 100
    from_length: int = 4
    _counts: Counter[int] = field(default_factory=Counter, repr=False)

    def fault(self, record: Record) -> str | None:
        if isinstance(record, Text):
            return None
        last = views(record)[0][-1]
        if len(last) < self.from_length:
            return None
        key = text_hash(last)
        self._counts[key] += 1
        return f"said {self.most} times before" if self._counts[key] > self.most else None


@dataclass
class NearlySame(Duplicates):
    """Records that share most of their character 4-grams with an earlier one (MinHash)."""

    threshold: float = 0.8
    _index: LshIndex = field(default_factory=LshIndex, repr=False)

    def fault(self, record: Record) -> str | None:
        self._index.add(signature(whole(record)))
        return None

    def late_faults(self) -> list[str | None]:
        firsts = self._index.first_similar(self.threshold).tolist()
        return [None if first == own else "nearly the same as an earlier one" for own, first in enumerate(firsts)]
