"""Pairs of a better and a worse answer: from records to rows, and batches of them."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hanmo.data.rows.dataset import DUMMY_ROW, ROW_IDS, RowDataset
from hanmo.errors import RecordError
from hanmo.families.base import Family
from hanmo.records import Dialogue, PromptResponse, Record, Rejects, ScoredAnswers, unasked
from hanmo.rows import Part, Row, collate

NO_PAIR = "holds no two answers of which one is better (empty ones do not count)"


@dataclass(frozen=True)
class Preference:
    """The better and the worse of two answers, each as a record; ``margin``: the difference of their scores."""

    chosen: Dialogue | PromptResponse
    rejected: Dialogue | PromptResponse
    margin: float


def preferences(record: Record, published: bool = False) -> list[Preference]:
    """The pairs of different, non-empty answers in a record; none of records without scored answers.

    The best answer (the first of equals) makes a pair with each worse one. Published: each answer makes a pair with the
    last one before it that has a lower score right after it, which is wrong where answers are not sorted.
    """
    if not isinstance(record, ScoredAnswers) or not record.prompt.strip():
        return []
    return [
        Preference(record.ending(chosen), record.ending(rejected), margin)
        for chosen, rejected, margin in (_published(record) if published else _best_and_worse(record))
        if chosen.strip() and rejected.strip() and chosen != rejected
    ]


def _best_and_worse(record: ScoredAnswers) -> Iterable[tuple[str, str, float]]:
    chosen, best = max(record.answers, key=lambda pair: pair[1])
    for rejected, score in record.answers:
        if score < best:
            yield chosen, rejected, best - score


def _published(record: ScoredAnswers) -> Iterable[tuple[str, str, float]]:
    chosen, best = "", 0.0
    for (text, score), (following, next_score) in zip(record.answers, record.answers[1:], strict=False):
        if score > next_score:
            chosen, best = text, score
        yield chosen, following, best - next_score


@dataclass(frozen=True)
class Pair:
    """Two rows with the same prompt; see ``Preference``."""

    chosen: Row
    rejected: Row
    margin: float
    weight: float = 1.0


class TwoRows(RowDataset):
    """Two rows an item, those of item i at 2i and 2i + 1."""

    def append_two(self, first: Sequence[Part], second: Sequence[Part], where: str) -> None:
        self.append(first, where)
        self.append(second, where)

    def two(self, place: int, feed_stop: bool = False) -> tuple[Row, Row]:
        first, second = (self.family.row(self.parts(2 * place + side), feed_stop=feed_stop) for side in (0, 1))
        return first, second

    def __len__(self) -> int:
        return super().__len__() // 2

    def where(self, place: int) -> str:
        return super().where(2 * place)

    @property
    def lengths(self) -> list[int]:
        lengths = super().lengths
        return [first + second for first, second in zip(lengths[::2], lengths[1::2], strict=True)]


class PairDataset(TwoRows):
    """Pairs of rows, by place; ``feed_stop``: rows feed the stop token too (reward models)."""

    def __init__(self, family: Family, feed_stop: bool):
        super().__init__(family)
        self.feed_stop = feed_stop
        self._margins = array("d")

    def append_pair(self, chosen: Sequence[Part], rejected: Sequence[Part], margin: float, where: str = "") -> None:
        self.append_two(chosen, rejected, where)
        self._margins.append(margin)

    def __getitem__(self, place: int) -> Any:
        weight, source = (0.0, 0) if place == DUMMY_ROW else (1.0, place)
        return place, Pair(*self.two(source, self.feed_stop), self._margins[source], weight)


def make_pairs(
    records: Iterable[Record],
    family: Family,
    limit: int,
    response_limit: int | None,
    feed_stop: bool,
    published: bool,
    dropped: Rejects,
) -> PairDataset:
    """Records as pairs of rows; a record without a pair, or whose pair does not fit, is added to ``dropped``."""
    pairs = PairDataset(family, feed_stop)
    for record in records:
        found = preferences(record, published)
        if not found:
            dropped.add(record.where, unasked(record) or NO_PAIR)
        for pair in found:
            try:
                sides = [family.parts(side, limit, response_limit) for side in (pair.chosen, pair.rejected)]
            except RecordError as error:
                dropped.add_bad(error)
                break
            if not all(len(rows) == 1 for rows in sides) or sides[0] == sides[1]:
                dropped.add(record.where, f"a pair of answers does not fit into limit={limit}")
                continue
            pairs.append_pair(sides[0][0], sides[1][0], pair.margin, record.where)
    return pairs


@dataclass(frozen=True)
class PairCollator:
    """Items of a PairDataset as one batch of 2B rows, the B chosen ones first.

    Beside the rows: ``pair_weights`` and ``margins`` (B,) fp32; ``ends`` (2B,) int64, where a reward is read;
    ``parts_at`` (B,) int64, the first place whose inputs differ; places under ``ROW_IDS``.
    """

    padding: dict[str, int] = field(default_factory=dict)

    def __call__(self, items: list[tuple[int, Pair]]) -> dict[str, Tensor]:
        places, pairs = zip(*items, strict=True)
        rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        batch = collate(rows, self.padding)
        chosen, rejected = batch["labels"].chunk(2)
        return {
            **batch,
            "pair_weights": torch.tensor([pair.weight for pair in pairs]),
            "margins": torch.tensor([pair.margin for pair in pairs]),
            "ends": torch.tensor([row.end for row in rows]),
            # The token predicted at a place is fed at the next one.
            "parts_at": (chosen != rejected).float().argmax(1) + 1,
            ROW_IDS: torch.tensor(places),
        }
