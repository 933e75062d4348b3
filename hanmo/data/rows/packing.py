"""Several short examples in one row, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hanmo.data.rows.dataset import Rows
from hanmo.errors import UnsupportedError
from hanmo.rows import Row

OPEN = 64  # bins that are still being filled

Size = tuple[int, int]  # input tokens, and places of the predicting axis


class PackedRows(Rows):
    """Rows of a family with ``packs``, several to one.

    Which rows share one is decided once, from the seed; the order of the packed rows then changes with the epoch.

    Args:
        limit: input tokens of a packed row.
        response_limit: places of its predicting axis, where that is another one; ``limit`` if None.

    Raises:
        UnsupportedError: the family packs no rows, or draws them anew in every epoch.
    """

    def __init__(self, rows: Rows, limit: int, response_limit: int | None = None, seed: int = 0):
        if not rows.family.packs:
            raise UnsupportedError(f"{rows.family.name} packs no rows: packing=false")
        if rows.drawn:
            raise UnsupportedError(
                f"what {rows.family.name} is to predict is drawn anew in every epoch, so that rows have no fixed size: "
                "packing=false"
            )
        self.rows, self.family = rows, rows.family
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        sizes = [_size(rows.row(place)) for place in range(len(rows))]
        self.bins = fill_bins(sizes, order, (limit, response_limit or limit))
        self._lengths = [sum(sizes[place][0] for place in places) for places in self.bins]

    def row(self, item: int) -> Row:
        return self.family.pack([self.rows.row(place) for place in self.bins[item]])

    def where(self, item: int) -> str:
        return ", ".join(self.rows.where(place) for place in self.bins[item])

    @property
    def lengths(self) -> list[int]:
        return self._lengths


def _size(row: Row) -> Size:
    return len(row.inputs["input_ids"]), len(row.labels)


def fill_bins(sizes: Sequence[Size], order: Sequence[int], capacity: Size) -> list[list[int]]:
    """Places into bins that hold ``capacity`` in both measures: each into the fullest open bin with room for it.

    What is larger than a bin gets one of its own.
    """
    bins: list[list[int]] = []
    opened: list[tuple[int, int, int]] = []  # room left in both measures, and which bin
    for place in order:
        first, second = sizes[place]
        fitting = [entry for entry in opened if first <= entry[0] and second <= entry[1]]
        if fitting:
            best = min(fitting)
            opened.remove(best)
            number = best[2]
            bins[number].append(place)
            room = (best[0] - first, best[1] - second)
        else:
            number = len(bins)
            bins.append([place])
            room = (capacity[0] - first, capacity[1] - second)
        if min(room) > 0:
            opened.append((*room, number))
        if len(opened) > OPEN:
            opened.remove(min(opened))
    return bins
