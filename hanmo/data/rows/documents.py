"""Documents for pretraining: cut into pieces, or concatenated to streams."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from hanmo.data.rows.dataset import DUMMY_ROW, RowDataset, Rows
from hanmo.data.rows.mixture import Mixture
from hanmo.data.store.token_store import Store
from hanmo.errors import ConfigError, RecordError
from hanmo.families.base import Family
from hanmo.records import Dialogue, Record, Rejects, Text
from hanmo.rows import Part, Row


class StoreDocuments:
    """The documents of a token store, none of which is held in memory; of a pair, the last part is scored.

    ConfigError if the store holds dialogues, or pairs and the family makes no streams.
    """

    def __init__(self, store: Store, family: Family):
        self.store, self.family = store, family
        # the family's ids before running text, except for a family that draws its targets and adds its own
        before = [] if family.objectives else family.parts(Text("一"), sys.maxsize)[0]
        self._head = tuple(id_ for part in before if not part.scored for id_ in part.ids)
        allowed = ("text", "pair") if family.streams else ("text",)
        if len(store) and (other := store.kind(0)) not in allowed:
            wanted = f"{family.name} is pretrained on a store of {' or '.join(allowed)} documents"
            advice = "give the records themselves (JSON lines) instead"
            raise ConfigError(f"{store.folder}: a store of {other} documents; {wanted}; {advice}")
        self.lengths: Any = store.lengths() + len(self._head)  # (documents,) int64

    def parts(self, place: int) -> list[Part]:
        *given, text = (tuple(part.tolist()) for part in self.store.parts(place))
        head = [Part((*self._head, *(id_ for part in given for id_ in part)), False)] if self._head or given else []
        return [*head, Part(text, True)]

    def where(self, item: int) -> str:
        return f"{self.store.folder}: document {item}"


Documents = RowDataset | StoreDocuments


def read_documents(
    records: Iterable[Record], family: Family, limit: int, response_limit: int | None, dropped: Rejects
) -> tuple[RowDataset, bool]:
    """Records as documents, and whether they are running text; RecordError if they are both.

    Running text (and, for families with streams, pairs) is read whole. Every reply of a dialogue becomes a row with the
    turns before it as context.
    """
    rows, running = RowDataset(family), None
    for record in records:
        whole = isinstance(record, Text) or (family.streams and not isinstance(record, Dialogue))
        if running is not None and whole != running:
            expected = "running text" if running else "dialogues or pairs"
            raise RecordError.at(record.where, f"the records before are {expected}; this one is not")
        running = whole
        if whole:
            made = family.parts(record, sys.maxsize)
            if family.objectives:
                made = [[part for part in parts if part.scored] for parts in made]
        else:
            replies = record.replies() if isinstance(record, Dialogue) else [record]
            try:
                made = [parts for reply in replies for parts in family.parts(reply, limit, response_limit)]
            except RecordError as error:
                dropped.add_bad(error)
                continue
        for parts in made:
            rows.append(parts, record.where)
        if not made:
            dropped.add(record.where, "no token in it" if whole else f"does not fit into limit={limit}")
    return rows, bool(running)


class Pieces(Rows):
    """Documents cut into pieces of at most ``limit`` tokens, for the family's pretraining objective.

    A piece begins with the last token of the one before it, whose successor is still to be predicted.
    """

    def __init__(
        self, documents: Documents, family: Family, limit: int, objectives: Mapping[str, float], seed: int = 0
    ):
        self.documents, self.family, self.limit, self.seed = documents, family, limit, seed
        self.objectives, self.drawn = dict(objectives), bool(objectives)
        self._advance = limit - 1
        lengths = np.asarray(documents.lengths, dtype=np.int64)
        counts = np.maximum(-(-(lengths - 1) // self._advance), np.minimum(lengths, 1))
        self._ends = counts.cumsum()
        self._starts = self._ends - counts
        document = np.repeat(np.arange(len(counts)), counts)
        first = (np.arange(len(document)) - self._starts[document]) * self._advance
        self._lengths = np.minimum(lengths[document] - first, limit)

    def row(self, item: int) -> Row:
        epoch, place = divmod(item, len(self._lengths))
        return self.family.pretrain(self.parts(place), Random(f"{self.seed}/{epoch}/{place}"), self.objectives or None)

    def parts(self, place: int) -> list[Part]:
        """The parts of a piece; where the document goes on, an empty unscored one follows, so that no stop is predicted."""
        document, first = self._start(place)
        parts, last = self.documents.parts(document), first + self.limit
        found = [part for part in _between(parts, first, last) if part.ids]
        return found if last >= sum(len(part.ids) for part in parts) else [*found, Part((), False)]

    def where(self, item: int) -> str:
        document, first = self._start(item % len(self._lengths))
        return f"{self.documents.where(document)} from token {first}"

    def _start(self, place: int) -> tuple[int, int]:
        document = int(np.searchsorted(self._ends, place, side="right"))
        return document, (place - int(self._starts[document])) * self._advance


class StreamRows(Rows):
    """Documents concatenated, in an order drawn from the seed (None: in their own), as rows of ``length`` tokens.

    The rows of ``Family.segments`` for all documents, each made from the few documents it covers.
    """

    def __init__(self, documents: Documents, family: Family, length: int, seed: int | None = 0):
        self.documents, self.family, self.length, self.seed = documents, family, length, seed
        lengths, mixture = np.asarray(documents.lengths, dtype=np.int64), getattr(documents, "mixture", Mixture(()))
        self.laps = mixture.laps  # epochs in which the streams are read to their ends
        self._order = np.arange(len(lengths))
        if mixture.shares:
            epochs = [mixture.order(epoch, seed or 0) for epoch in range(self.laps)]
            self._order = np.concatenate(epochs) % len(lengths)
        elif seed is not None:
            self._order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)).numpy()
        self._ends = lengths[self._order].cumsum()
        self.tokens = int(self._ends[-1]) if len(lengths) else 0
        self._lengths = [length] * (self.tokens // length + 1)

    def row(self, item: int) -> Row:
        start = item * self.length
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = int(np.searchsorted(self._ends, start + self.length, side="left"))
        documents = [self.documents.parts(int(number)) for number in self._order[first : last + 1]]
        # The row is made as the second of two; the first holds the ``length`` tokens before it, or padding.
        before = start - (int(self._ends[first - 1]) if first else 0) if documents else 0
        if documents:
            documents[0] = _between(documents[0], max(before - self.length, 0), sys.maxsize)
            before = min(before, self.length)
        padding = [[Part((0,) * (self.length - before), False)]] if before < self.length else []
        return self.family.segments([*padding, *documents], self.length)[1]

    def where(self, item: int) -> str:
        first = min(int(np.searchsorted(self._ends, item * self.length, side="right")), len(self._order) - 1)
        return f"{self.documents.where(int(self._order[first]))} and on"


def _between(parts: Sequence[Part], first: int, last: int) -> list[Part]:
    kept, passed = [], 0
    for part in parts:
        kept.append(Part(part.ids[max(first - passed, 0) : max(last - passed, 0)], part.scored))
        passed += len(part.ids)
    return kept


class StreamSampler(Sampler[int]):
    """Rows time-major over ``batch`` streams of rows // batch rows, which end after ``laps`` epochs.

    ``once``: every row once instead; where the rows do not divide, the last streams end in ``DUMMY_ROW``.
    """

    def __init__(self, rows: int, batch: int, once: bool = False, laps: int = 1):
        self.rows, self.batch, self.once, self.epoch = rows, batch, once, 0
        self.stream = -(-rows // batch) if once else rows // batch
        self.steps = self.stream if once else self.stream // laps
        if not self.steps:
            few = f"{rows} rows are too few for {batch} streams"
            raise ConfigError(f"{few}: give a smaller batch or limit, or more data")

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.batch

    def __iter__(self) -> Iterator[int]:
        start = 0 if self.once else self.epoch * self.steps
        for step in range(start, start + self.steps):
            for stream in range(self.batch):
                place = stream * self.stream + step
                yield place % self.rows if not self.once else place if place < self.rows else DUMMY_ROW
