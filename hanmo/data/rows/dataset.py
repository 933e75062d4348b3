"""Datasets of rows, made from flat arrays of ids when a batch needs them; the order of rows, and batches."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, repeat

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from hanmo.data.rows.mixture import Mixture, epoch_draws
from hanmo.errors import RecordError
from hanmo.families.base import Family
from hanmo.records import Record, Rejects, unanswered
from hanmo.rows import Part, Row, chunked, collate

ROW_IDS = "row_ids"  # the places of a batch's rows in its dataset, for messages; not an input of any model
DUMMY_ROW = -1  # the place of a row of weight 0, which fills batches up to the same size in all processes


class Rows(Dataset[tuple[int, Row]]):
    """Rows of one family, by place: item i is (i, row).

    ``drawn``: targets are drawn anew in every epoch, whose number is part of an item: epoch x number of rows + place.
    """

    family: Family
    drawn = False
    _lengths: Sequence[int]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, item: int) -> tuple[int, Row]:
        if item == DUMMY_ROW:
            row = self.row(0)
            return DUMMY_ROW, replace(row, weights=torch.zeros_like(row.weights))
        return item, self.row(item)

    def row(self, item: int) -> Row:
        raise NotImplementedError

    def where(self, item: int) -> str:
        """The origin of a row, for messages."""
        raise NotImplementedError

    @property
    def lengths(self) -> Sequence[int]:
        """The number of ids of every row."""
        return self._lengths


class RowDataset(Rows):
    """Rows kept as the parts they are made of."""

    def __init__(self, family: Family):
        self.family = family
        self._ids = array("i")
        self._part_ends = array("q")  # of each part, in _ids
        self._scored = array("b")  # of each part
        self._row_ends = array("q")  # of each row, in _part_ends
        self._where: list[str] = []

    def append(self, parts: Iterable[Part], where: str = "") -> None:
        for part in parts:
            self._ids.extend(part.ids)
            self._part_ends.append(len(self._ids))
            self._scored.append(part.scored)
        self._row_ends.append(len(self._part_ends))
        self._where.append(where)

    def __len__(self) -> int:
        return len(self._row_ends)

    def row(self, item: int) -> Row:
        return self.family.row(self.parts(item))

    def parts(self, place: int) -> list[Part]:
        first, last = self._row_ends[place - 1] if place else 0, self._row_ends[place]
        start, parts = self._part_ends[first - 1] if first else 0, []
        for end, scored in zip(self._part_ends[first:last], self._scored[first:last], strict=True):
            parts.append(Part(tuple(self._ids[start:end]), bool(scored)))
            start = end
        return parts

    def where(self, item: int) -> str:
        return self._where[item] or f"row {item}"

    @property
    def lengths(self) -> list[int]:
        ends = [self._part_ends[end - 1] for end in self._row_ends]
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def make_rows(
    records: Iterable[Record], family: Family, limit: int, response_limit: int | None, dropped: Rejects
) -> RowDataset:
    """Records as rows of a family; those that do not fit are added to ``dropped``, as are bad ones if it skips them."""
    rows = RowDataset(family)
    for record in records:
        try:
            made = family.parts(record, limit, response_limit)
        except RecordError as error:
            dropped.add_bad(error)
            continue
        for parts in made:
            rows.append(parts, record.where)
        if not made:
            limits = f"limit={limit}" + (f", response_limit={response_limit}" if response_limit is not None else "")
            dropped.add(record.where, unanswered(record) or f"does not fit into {limits}")
    return rows


@dataclass(frozen=True)
class Collator:
    """Items of ``Rows`` as one batch, with their places under ``ROW_IDS``."""

    padding: dict[str, int] = field(default_factory=dict)

    def __call__(self, items: list[tuple[int, Row]]) -> dict[str, Tensor]:
        places, rows = zip(*items, strict=True)
        return {**collate(rows, self.padding), ROW_IDS: torch.tensor(places)}


class EpochSampler(Sampler[int]):
    """The order of an epoch as a function of seed and epoch alone, so that a resumed run continues in the same order.

    ``group``: the number of rows of similar length that come together. ``DUMMY_ROW`` is appended up to a ``multiple``.
    """

    def __init__(
        self, lengths: Sequence[int], seed: int, group: int = 1, multiple: int = 1, drawn: bool = False,
        mixture: Mixture | None = None,
    ):  # fmt: skip
        self.lengths, self.seed, self.group, self.drawn, self.epoch = lengths, seed, group, drawn, 0
        self.mixture = mixture or Mixture((len(lengths),))
        self.fillers = -self.mixture.rows % multiple

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.mixture.rows + self.fillers

    def __iter__(self) -> Iterator[int]:
        order = self._grouped() if self.group > 1 else self.mixture.order(self.epoch, self.seed)
        items = order if self.drawn else (item % len(self.lengths) for item in order)
        return chain(items, repeat(DUMMY_ROW, self.fillers))

    def _grouped(self) -> list[int]:
        """Groups of rows of similar length: the one with the longest row first, the rest in random order."""
        # transformers sorts every fifty groups from long to short, so that the loss follows the length.
        items, generator = self.mixture.items(self.epoch, self.seed), epoch_draws(self.epoch, self.seed)
        lengths = [self.lengths[item % len(self.lengths)] for item in items]
        order = get_length_grouped_indices(lengths, self.group, generator=generator)
        groups = chunked(order, self.group)
        first, rest = groups[:1], groups[1:]
        last = [rest.pop()] if rest and len(rest[-1]) < self.group else []
        shuffled = [rest[place] for place in torch.randperm(len(rest), generator=generator).tolist()]
        return [items[place] for group in (*first, *shuffled, *last) for place in group]
