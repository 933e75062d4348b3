"""The rows of several files as one data set."""

from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from hanmo.data.rows.dataset import DUMMY_ROW, Rows
from hanmo.data.rows.documents import StreamRows
from hanmo.data.rows.mixture import Mixture
from hanmo.errors import ConfigError
from hanmo.rows import Part, Row


class Joined(Rows):
    """The rows (or documents) of several sources, one after the other; an epoch takes them by ``mixture``."""

    def __init__(self, sources: Sequence[Any], shares: tuple[float, ...] = ()):
        self.sources, self.family = sources, sources[0].family
        self.drawn = any(getattr(source, "drawn", False) for source in sources)
        counts = [len(source.lengths) for source in sources]
        self.mixture, self._ends = Mixture(tuple(counts), shares), np.cumsum(counts)

    def __len__(self) -> int:
        return self.mixture.total

    @cached_property
    def lengths(self) -> Any:
        return np.concatenate([np.asarray(source.lengths, dtype=np.int64) for source in self.sources])

    def __getitem__(self, item: int) -> Any:
        if item == DUMMY_ROW:
            return self.sources[0][DUMMY_ROW]
        source, place = self._source(item)
        return item, source[place][1]

    def row(self, item: int) -> Row:
        source, place = self._source(item)
        return source.row(place)

    def parts(self, place: int) -> list[Part]:
        source, inside = self._source(place)
        return source.parts(inside)

    def where(self, item: int) -> str:
        source, place = self._source(item)
        return source.where(place)

    def _source(self, item: int) -> tuple[Any, int]:
        """The source of a row, and the row's item there."""
        number, place = divmod(item, self.mixture.total)
        index = int(np.searchsorted(self._ends, place, side="right"))
        source, count = self.sources[index], self.mixture.counts[index]
        passes = number if getattr(source, "drawn", False) else 0
        return source, place - int(self._ends[index]) + count + passes * count


class JoinedList(list[Any]):
    """The items of several lists; ``mixture`` says which are taken."""

    mixture: Mixture


def join(sources: Sequence[Any], shares: tuple[float, ...] = ()) -> Any:
    """Rows, streams or lists of several files as one data set, mixed in shares, or one after the other without them."""
    first = sources[0]
    if len(sources) == 1:
        return first
    if isinstance(first, list):
        joined = JoinedList(chain(*sources))
        joined.mixture = Mixture(tuple(map(len, sources)), shares)
        return joined
    streams = [source for source in sources if isinstance(source, StreamRows)]
    if not streams:
        return Joined(sources, shares)
    if len(streams) < len(sources):
        raise ConfigError("data: some of the files hold running text, others dialogues or pairs; train on one kind")
    documents: Any = Joined([source.documents for source in streams], shares)
    return StreamRows(documents, streams[0].family, streams[0].length, streams[0].seed)
