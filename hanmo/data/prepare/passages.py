"""Exact search for many known passages at once in a text; takes about 30 bytes of memory per character of a passage.

Where a text has the n-gram of a passage that the fewest other passages have, the two are compared.
"""

from collections.abc import Iterator, Sequence

import numpy as np

GRAM = 8  # characters: shorter passages cannot be searched for
_BLOCK = 1 << 18  # n-grams of a text hashed at once
_BASE = np.uint64(0x9E3779B97F4A7C15)


class Passages:
    """Passages of at least ``GRAM`` characters.

    >>> list(Passages(["今天天气怎么样啊", "明天我们去哪里玩呢"]).inside("他问：今天天气怎么样啊？"))
    [(0, 3)]
    """

    def __init__(self, passages: Sequence[str]):
        self._passages = passages
        grams = [n_gram_hashes(passage) for passage in passages]
        every, counts = np.unique(np.concatenate([*grams, np.zeros(0, np.uint64)]), return_counts=True)
        self._anchored: dict[int, list[tuple[int, int]]] = {}  # n-gram: passages, and where it stands in each
        for number, own in enumerate(grams):
            place = int(counts[np.searchsorted(every, own)].argmin())
            self._anchored.setdefault(int(own[place]), []).append((number, place))
        self._anchors = np.sort(np.fromiter(self._anchored, dtype=np.uint64, count=len(self._anchored)))

    def inside(self, text: str) -> Iterator[tuple[int, int]]:
        """The number of each passage that is found, and its place in the text."""
        if not len(self._anchors):
            return
        for start in range(0, max(len(text) - GRAM + 1, 0), _BLOCK):
            grams = n_gram_hashes(text[start : start + _BLOCK + GRAM - 1])
            found = np.minimum(np.searchsorted(self._anchors, grams), len(self._anchors) - 1)
            for place in np.flatnonzero(self._anchors[found] == grams).tolist():
                for number, offset in self._anchored[int(grams[place])]:
                    first = start + place - offset
                    if first >= 0 and text.startswith(self._passages[number], first):
                        yield number, first


def n_gram_hashes(text: str, size: int = GRAM) -> np.ndarray:
    """(len(text) - size + 1,) uint64: a hash of each character n-gram."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    hashes = np.zeros(max(len(points) - size + 1, 0), dtype=np.uint64)
    for place in range(size):
        hashes = hashes * _BASE + points[place : len(points) - size + 1 + place]
    return hashes
