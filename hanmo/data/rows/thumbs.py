"""Responses with a thumb up or down: from records to rows, and batches of them."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from hanmo.data.rows.dataset import DUMMY_ROW, ROW_IDS
from hanmo.data.rows.pairs import TwoRows, preferences
from hanmo.errors import RecordError
from hanmo.families.base import Family
from hanmo.records import Dialogue, PromptResponse, Record, Rejects, ScoredAnswers, Text, unasked
from hanmo.rows import Part, Row, collate

NO_THUMB = (
    'has neither a "label" that is true or false nor two answers of which one is better (empty ones do not count)'
)


@dataclass(frozen=True)
class Vote:
    """A response, as a record and as parts, with its thumb."""

    record: Dialogue | PromptResponse
    up: bool
    parts: list[Part]

    @property
    def asked(self) -> tuple[Any, ...]:
        """What the response answers."""
        one = self.record
        return (one.system, *one.turns[:-1]) if isinstance(one, Dialogue) else (one.system, one.prompt, one.prefix)

    def answered(self, other: "Vote") -> Dialogue | PromptResponse:
        """This vote's prompt with the other's response."""
        text = other.record.turns[-1] if isinstance(other.record, Dialogue) else other.record.response
        if isinstance(self.record, Dialogue):
            return replace(self.record, turns=(*self.record.turns[:-1], text), ids=())
        return replace(self.record, response=text)


def thumbs(record: Record) -> list[tuple[Dialogue | PromptResponse, bool]]:
    """The responses of a record with their thumbs: its label's, or of scored answers up for the best, down for worse ones."""
    if isinstance(record, ScoredAnswers):
        pairs = preferences(record)
        return [(pair.chosen, True) for pair in pairs[:1]] + [(pair.rejected, False) for pair in pairs]
    return [] if isinstance(record, Text) or record.label is None else [(record, record.label)]


def mismatched(votes: Iterable[Vote]) -> Iterator[tuple[Vote, Vote | None]]:
    """Each vote with the next one, after the last with the first ones, that answers something else; None if none does."""
    waiting: list[Vote] = []
    first: Vote | None = None
    second: Vote | None = None  # the first that answers something else than ``first``
    for vote in votes:
        first = first or vote
        if second is None and vote.asked != first.asked:
            second = vote
        if waiting and vote.asked != waiting[-1].asked:
            yield from ((one, vote) for one in waiting)
            waiting = []
        waiting.append(vote)
    for one in waiting:
        yield one, second if first is None or first.asked == one.asked else first


@dataclass(frozen=True)
class Thumb:
    """A response's row, and that of another record's response to the same prompt (``compared`` 0: there is none)."""

    row: Row
    other: Row
    up: bool
    compared: float
    weight: float = 1.0


class ThumbDataset(TwoRows):
    """Thumbs, by place."""

    def __init__(self, family: Family):
        super().__init__(family)
        self._ups, self._compared = array("b"), array("b")

    def append_thumb(self, own: list[Part], other: list[Part] | None, up: bool, where: str) -> None:
        self.append_two(own, own if other is None else other, where)
        self._ups.append(up)
        self._compared.append(other is not None)

    def __getitem__(self, place: int) -> Any:
        weight, source = (0.0, 0) if place == DUMMY_ROW else (1.0, place)
        compared = weight * self._compared[source]
        return place, Thumb(*self.two(source), bool(self._ups[source]), compared, weight)


def make_thumbs(
    records: Iterable[Record], family: Family, limit: int, response_limit: int | None, dropped: Rejects
) -> ThumbDataset:
    """Records as rows with thumbs; a record without one, or that does not fit, is added to ``dropped``."""
    made = ThumbDataset(family)
    for vote, other in mismatched(_votes(records, family, limit, response_limit, dropped)):
        rows = [] if other is None else _rows(family, vote.answered(other), limit, response_limit)
        made.append_thumb(vote.parts, rows[0] if len(rows) == 1 else None, vote.up, vote.record.where)
    return made


def _votes(
    records: Iterable[Record], family: Family, limit: int, response_limit: int | None, dropped: Rejects
) -> Iterator[Vote]:
    for record in records:
        found = thumbs(record)
        if not found:
            dropped.add(record.where, unasked(record) or NO_THUMB)
        for response, up in found:
            try:
                rows = family.parts(response, limit, response_limit)
            except RecordError as error:
                dropped.add_bad(error)
                break
            if len(rows) == 1:
                yield Vote(response, up, rows[0])
            else:
                dropped.add(record.where, f"a response with its prompt does not fit into limit={limit}")


def _rows(family: Family, record: Record, limit: int, response_limit: int | None) -> list[list[Part]]:
    try:
        return family.parts(record, limit, response_limit)
    except RecordError:  # both texts are fine by themselves; a chat template may refuse them together
        return []


@dataclass(frozen=True)
class ThumbCollator:
    """Items of a ThumbDataset as one batch of B rows, and under ``others`` the batch of the mismatched rows.

    Beside the rows: ``thumb_weights`` and ``compared`` (B,) fp32, ``ups`` (B,) bool, places under ``ROW_IDS``.
    """

    padding: dict[str, int] = field(default_factory=dict)

    def __call__(self, items: list[tuple[int, Thumb]]) -> dict[str, Any]:
        places, found = zip(*items, strict=True)
        return {
            **collate([one.row for one in found], self.padding),
            "others": collate([one.other for one in found], self.padding),
            "thumb_weights": torch.tensor([one.weight for one in found]),
            "compared": torch.tensor([one.compared for one in found]),
            "ups": torch.tensor([one.up for one in found]),
            ROW_IDS: torch.tensor(places),
        }
