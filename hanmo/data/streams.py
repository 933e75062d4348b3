"""Which rows of a stream make up a batch, so that the memory of each place in the batch is of its own stream."""

from __future__ import annotations

from collections.abc import Iterator


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
