"""Packs several short examples into one row, so that little of a batch is padding."""

from collections.abc import Sequence

import torch

from hanmo.data.rows.dataset import Rows
from hanmo.errors import UnsupportedError
from hanmo.rows import Row

OPEN = 64  # bins that are still being filled

Size = tuple[int, int]  # input tokens, and places of the predicting axis


class PackedRows(Rows):
    """Rows of a family, several in one of ``limit`` input tokens and ``response_limit`` (or ``limit``) predicting places.

    The seed decides once which rows share one. UnsupportedError if the family cannot pack its rows, or draws them anew.
    """

    def __init__(self, rows: Rows, limit: int, response_limit: int | None = None, seed: int = 0):
        self.rows, self.family, name = rows, rows.family, rows.family.name
        if not self.family.packs:
            raise UnsupportedError(f"{name} packs no rows: packing=false")
        if rows.drawn:
            drawn = f"what {name} is to predict is drawn anew in every epoch"
            raise UnsupportedError(f"{drawn}, so that rows have no fixed size: packing=false")
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        sizes = [(len(row.inputs["input_ids"]), len(row.labels)) for row in map(rows.row, range(len(rows)))]
        self.bins = fill_bins(sizes, order, (limit, response_limit or limit))
        self._lengths = [sum(sizes[place][0] for place in places) for places in self.bins]

    def row(self, item: int) -> Row:
        return self.family.pack([self.rows.row(place) for place in self.bins[item]])

    def where(self, item: int) -> str:
        return ", ".join(self.rows.where(place) for place in self.bins[item])


def fill_bins(sizes: Sequence[Size], order: Sequence[int], capacity: Size) -> list[list[int]]:
    """Places into bins of a ``capacity``: each into the fullest open bin with room for it, a larger one into its own."""
    bins: list[list[int]] = []
    opened: list[tuple[int, int, int]] = []  # room left on both axes, and the bin's number
    for place in order:
        first, second = sizes[place]
        fitting = [entry for entry in opened if first <= entry[0] and second <= entry[1]]
        if fitting:
            best = min(fitting)
            opened.remove(best)
        else:
            best = (*capacity, len(bins))
            bins.append([])
        room, number = (best[0] - first, best[1] - second), best[2]
        bins[number].append(place)
        if min(room) > 0:
            opened.append((*room, number))
        if len(opened) > OPEN:
            opened.remove(min(opened))
    return bins
