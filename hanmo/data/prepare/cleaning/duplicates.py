"""Cleaning steps that compare records: the same session, an utterance said too often, nearly the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hanmo.data.prepare.cleaning.views import views, whole
from hanmo.data.prepare.dedup import NearDuplicates, Seen
from hanmo.data.prepare.splits import fingerprint
from hanmo.records import Record, Text


class Duplicates:
    """Records come in their order; the first of several is kept."""

    def fault(self, record: Record) -> str | None:
        """Why the record is to be removed, or None."""
        return None

    def late_faults(self) -> list[str | None]:
        """The same for all records that ``fault`` let pass, once they all have been seen; [] if nothing is added."""
        return []


@dataclass
class SameSessions(Duplicates):
    """Records that are the same, but for width, case, white space and punctuation."""

    _seen: Seen = field(default_factory=Seen, repr=False)

    def fault(self, record: Record) -> str | None:
        return "has come before" if self._seen.again(whole(record)) else None


@dataclass
class SameUtterances(Duplicates):
    """Dialogues whose last turn has been said ``most`` times already (adverts, chain letters, automatic replies)."""

    most: int = 100
    from_length: int = 4
    _counts: Counter[int] = field(default_factory=Counter, repr=False)

    def fault(self, record: Record) -> str | None:
        if isinstance(record, Text):
            return None
        last = views(record)[0][-1]
        if len(last) < self.from_length:
            return None
        key = fingerprint(last)
        self._counts[key] += 1
        return f"said {self.most} times before" if self._counts[key] > self.most else None


@dataclass
class NearlySame(Duplicates):
    """Records that share most of their character 4-grams with an earlier one (MinHash)."""

    threshold: float = 0.8
    _near: NearDuplicates | None = field(default=None, repr=False)

    def fault(self, record: Record) -> str | None:
        if self._near is None:
            self._near = NearDuplicates(self.threshold)
        self._near.add(whole(record))
        return None

    def late_faults(self) -> list[str | None]:
        if self._near is None:
            return []
        first_of = self._near.first_of().tolist()
        return [None if first == own else "nearly the same as an earlier one" for own, first in enumerate(first_of)]
