"""Documents for pretraining: cut into pieces, or concatenated to streams. Rows are made when a batch needs them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Sampler

from hanmo.data.rows.dataset import DUMMY_ROW, RowDataset, Rows
from hanmo.data.store.token_store import Store
from hanmo.errors import ConfigError, RecordError
from hanmo.families.base import Family
from hanmo.records import Dialogue, Record, Rejects, Text
from hanmo.rows import Part, Row


class Documents(Protocol):
    """Documents as parts, by number."""

    @property
    def lengths(self) -> Sequence[int]: ...
    def parts(self, place: int) -> list[Part]: ...
    def where(self, item: int) -> str: ...


class StoreDocuments:
    """The documents of a token store, none of which is held in memory.

    Text gets the family's ids before running text. Of a pair, prompt and text are concatenated and the text is scored,
    as in a stream.

    Raises:
        ConfigError: the store holds dialogues, or pairs and the family makes no streams.
    """

    def __init__(self, store: Store, family: Family):
        self.store = store
        self._head = _head(family)
        allowed = ("text", "pair") if family.streams else ("text",)
        if len(store) and (other := store.kind(0)) not in allowed:
            raise ConfigError(
                f"{store.folder}: a store of {other} documents; {family.name} is pretrained on a store of "
                f"{' or '.join(allowed)} documents; give the records themselves (JSON lines) instead"
            )
        self._lengths = store.lengths() + len(self._head)

    @property
    def lengths(self) -> Sequence[int]:
        return self._lengths  # type: ignore[return-value]

    def parts(self, place: int) -> list[Part]:
        *given, text = (tuple(part.tolist()) for part in self.store.parts(place))
        head = [Part((*self._head, *(id_ for part in given for id_ in part)), False)] if self._head or given else []
        return [*head, Part(text, True)]

    def where(self, item: int) -> str:
        return f"{self.store.folder}: document {item}"


def _head(family: Family) -> tuple[int, ...]:
    """The ids that the family puts before running text; a family that draws its targets adds its own."""
    if family.objectives:
        return ()
    return tuple(id_ for part in family.parts(Text("一"), sys.maxsize)[0] if not part.scored for id_ in part.ids)


def read_documents(
    records: Iterable[Record], family: Family, limit: int, response_limit: int | None, dropped: Rejects
) -> tuple[RowDataset, bool]:
    """Records as documents, and whether they are running text.

    Running text (and, for families with streams, pairs) is read whole. Every reply of a dialogue becomes a row with the
    turns before it as context; pairs are rows as well.

    Raises:
        RecordError: running text among other records, or one that the family refuses and bad ones are not skipped.
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

    A piece begins with the last token of the one before it, whose successor is still to be predicted; the stop token
    is predicted only where a document ends.
    """

    def __init__(
        self, documents: Documents, family: Family, limit: int, objectives: Mapping[str, float], seed: int = 0
    ):
        self.documents, self.family, self.limit, self.seed = documents, family, limit, seed
        self.objectives = dict(objectives)
        self.drawn = bool(objectives)
        self._document_lengths = np.asarray(documents.lengths, dtype=np.int64)
        self._advance = limit - 1
        counts = np.maximum(-(-(self._document_lengths - 1) // self._advance), np.minimum(self._document_lengths, 1))
        self._ends = counts.cumsum()
        document = np.repeat(np.arange(len(counts)), counts)
        first = (np.arange(len(document)) - (self._ends - counts)[document]) * self._advance
        self._lengths = np.minimum(self._document_lengths[document] - first, limit)

    @property
    def lengths(self) -> Sequence[int]:
        return self._lengths

    def row(self, item: int) -> Row:
        epoch, place = divmod(item, len(self._lengths))
        return self.family.pretrain(self.parts(place), Random(f"{self.seed}/{epoch}/{place}"), self.objectives or None)

    def parts(self, place: int) -> list[Part]:
        """The parts of a piece; an empty unscored one at the end where the document goes on."""
        document, first = self._start(place)
        last, found, passed = first + self.limit, [], 0
        for part in self.documents.parts(document):
            ids = part.ids[max(first - passed, 0) : max(last - passed, 0)]
            passed += len(part.ids)
            if ids:
                found.append(Part(ids, part.scored))
        return found if last >= passed else [*found, Part((), False)]

    def where(self, item: int) -> str:
        document, first = self._start(item % len(self._lengths))
        return f"{self.documents.where(document)} from token {first}"

    def _start(self, place: int) -> tuple[int, int]:
        document = int(np.searchsorted(self._ends, place, side="right"))
        before = int(self._ends[document - 1]) if document else 0
        return document, (place - before) * self._advance


class StreamRows(Rows):
    """Documents concatenated, in an order drawn from the seed, as rows of ``length`` tokens that carry memory.

    The same rows as those of ``Family.segments`` for all documents, each made from the few documents it covers.

    Args:
        seed: of the order; None keeps the documents' own.
    """

    def __init__(self, documents: Documents, family: Family, length: int, seed: int | None = 0):
        self.documents, self.family, self.length = documents, family, length
        lengths = np.asarray(documents.lengths, dtype=np.int64)
        shuffled = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed or 0)).numpy()
        self._order = np.arange(len(lengths)) if seed is None else shuffled
        self._ends = lengths[self._order].cumsum()
        self.tokens = int(self._ends[-1]) if len(lengths) else 0

    def __len__(self) -> int:
        return self.tokens // self.length + 1

    @property
    def lengths(self) -> Sequence[int]:
        return [self.length] * len(self)

    def row(self, item: int) -> Row:
        start = item * self.length
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = int(np.searchsorted(self._ends, start + self.length, side="left"))
        documents = [self.documents.parts(int(number)) for number in self._order[first : last + 1]]
        # A row's length of tokens is put before the row, which becomes the second one. Of its first document only the
        # last ``length`` tokens before the row matter.
        before = start - (int(self._ends[first - 1]) if first else 0) if documents else 0
        if documents:
            documents[0] = _from(documents[0], max(before - self.length, 0))
            before = min(before, self.length)
        padding = [[Part((0,) * (self.length - before), False)]] if before < self.length else []
        return self.family.segments([*padding, *documents], self.length)[1]

    def where(self, item: int) -> str:
        first = min(int(np.searchsorted(self._ends, item * self.length, side="right")), len(self._order) - 1)
        return f"{self.documents.where(int(self._order[first]))} and on"


def _from(parts: Sequence[Part], first: int) -> list[Part]:
    """A document from a token on."""
    kept, passed = [], 0
    for part in parts:
        kept.append(Part(part.ids[max(first - passed, 0) :], part.scored))
        passed += len(part.ids)
    return kept


class StreamSampler(Sampler[int]):
    """Rows time-major over ``batch`` streams: an epoch has rows // batch steps.

    Args:
        once: every row once instead: streams are longer by one where the rows do not divide, and end in ``DUMMY_ROW``.
    """

    def __init__(self, rows: int, batch: int, once: bool = False):
        self.rows, self.batch, self.once, self.epoch = rows, batch, once, 0
        self.steps = -(-rows // batch) if once else rows // batch
        if not self.steps:
            raise ConfigError(
                f"{rows} rows are too few for {batch} streams: give a smaller batch or limit, or more data"
            )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.batch

    def __iter__(self) -> Iterator[int]:
        start = 0 if self.once else self.epoch * self.steps
        for step in range(start, start + self.steps):
            for stream in range(self.batch):
                place = stream * self.steps + step
                yield place % self.rows if not self.once else place if place < self.rows else DUMMY_ROW
