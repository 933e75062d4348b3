"""Documents as the originals fed them: shares of a corpus, streams that carry memory, and crops drawn at random."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from random import Random

import numpy as np
import torch

from hanmo.rows import IGNORE, Part, Row


def split_documents(count: int, shares: Sequence[float], seed: int | None) -> list[list[int]]:
    """The documents of each share (training, validation, test), by number, as the original cuts them.

    Every share above 0 gets a document at least, which on tiny data may also be another share's.

    Args:
        shares: in any unit.
        seed: of the shuffle; None keeps the order.
    """
    order = np.arange(count)
    if seed is not None:
        np.random.RandomState(seed).shuffle(order)
    ends = [count * total / sum(shares) for total in accumulate(shares)]
    parts = []
    for share, start, end in zip(shares, [0.0, *ends], ends, strict=False):
        first = int(start)
        parts.append(order[first : max(int(end), first + 1)].tolist() if share else [])
    return parts


def stream_batches(rows: int, batch: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[list[int]]:
    """Indices of the rows of each step's batch, without end: time-major over ``batch`` streams.

    The stream of place p begins at row p x (rows // batch) and walks on by one row each step, over the end to the
    beginning.

    Args:
        rows: rows of the whole stream (``Family.segments``).
        batch: places of the global batch.
        start: steps already taken, when a run is resumed.
        rank, world: this process takes its contiguous share of the places; ``world`` divides ``batch``.
    """
    share = batch // world
    assert share * world == batch, f"{world} processes cannot share {batch} places"
    first = [place * (rows // batch) for place in range(rank * share, (rank + 1) * share)]
    step = start
    while True:
        yield [(row + step) % rows for row in first]
        step += 1


def crop_row(documents: Sequence[Sequence[Part]], length: int, number: int, stop_id: int, across: bool = True) -> Row:
    """A row of ``length`` tokens for networks without memory: crops of documents, drawn by the row's number alone.

    Longer documents are drawn more often and cropped at random; after a shorter one come further ones, or with
    ``across`` false padding. The stop token ends each document and is fed, but nothing is predicted from it.
    """
    draws = Random(number)
    random = np.random.RandomState([draws.randint(0, 2**32 - 1) for _ in range(16)])
    ends = list(accumulate(sum(len(part.ids) for part in parts) for parts in documents))

    def draw() -> tuple[list[int], list[bool]]:
        parts = documents[bisect_right(ends, random.randint(ends[-1]))]
        ids = [token for part in parts for token in part.ids]
        scored = [part.scored for part in parts for _ in part.ids]
        return [*ids, stop_id], [*scored, True]

    ids, scored = draw()
    if len(ids) > length + 1:
        first = random.randint(len(ids) - length)
        ids, scored = ids[first:], scored[first:]
    while across and len(ids) < length + 1:
        more, flags = draw()
        ids, scored = ids + more, scored + flags
    missing = max(length + 1 - len(ids), 0)
    ids, scored = ids[: length + 1] + [stop_id] * missing, scored[: length + 1] + [False] * missing
    tokens, counts = torch.tensor(ids), torch.tensor(scored)
    inputs = {"input_ids": tokens[:-1], "attention_mask": torch.ones(length, dtype=torch.long)}
    labels = torch.where(counts[1:] & (tokens[:-1] != stop_id), tokens[1:], IGNORE)
    return Row(inputs, labels, (labels != IGNORE).float(), end=length - 1)
