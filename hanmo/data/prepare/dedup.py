"""Texts that are the same, and texts that are nearly so (MinHash over character n-grams).

A signature is 120 minima of hashed n-grams; two texts agree in as large a share of them as their sets of n-grams have
in common (Broder 1997). Signatures are cut into bands of six; texts that agree in a whole band are compared. Texts of
similarity 0.8 are found with probability 0.998, of 0.5 compared with probability 0.27 and then turned down.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from hanmo.data.normalisation import folded
from hanmo.data.prepare.splits import fingerprint

N_GRAM = 4  # characters
BANDS, ROWS = 20, 6
_GROWTH = 4096  # signatures kept apart before they join the others
_rng = np.random.default_rng(20260101)
_FACTORS = _rng.integers(1, 2**63, BANDS * ROWS, dtype=np.uint64) | np.uint64(1)
_OFFSETS = _rng.integers(0, 2**63, BANDS * ROWS, dtype=np.uint64)
_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_COMPARED = 1 << 14  # pairs compared at once
_BLOCK = 2048  # n-grams hashed at once: bounds memory for long texts


def shingles(text: str, size: int = N_GRAM) -> np.ndarray:
    """The different character n-grams of a folded text as uint64 hashes; of a shorter text the whole of it."""
    points = np.frombuffer(folded(text).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    size = max(min(size, len(points)), 1)
    if not len(points):
        return np.zeros(1, dtype=np.uint64)
    hashes = np.zeros(len(points) - size + 1, dtype=np.uint64)
    for place in range(size):
        hashes = hashes * _BASE + points[place : len(points) - size + 1 + place]
    hashes = (hashes ^ (hashes >> np.uint64(31))) * _MIX  # neighbouring characters must not give neighbouring hashes
    return np.unique(hashes ^ (hashes >> np.uint64(29)))


def signature(text: str) -> np.ndarray:
    """(BANDS * ROWS,) uint32: the MinHash signature of a text."""
    hashes = shingles(text)
    least = np.full(BANDS * ROWS, np.iinfo(np.uint32).max, dtype=np.uint32)
    for start in range(0, len(hashes), _BLOCK):
        block = hashes[start : start + _BLOCK, None] * _FACTORS + _OFFSETS
        least = np.minimum(least, (block >> np.uint64(32)).astype(np.uint32).min(0))
    return least


def similarity(left: np.ndarray, right: np.ndarray) -> float:
    """The share of n-grams that two texts have in common (Jaccard), estimated from their signatures."""
    return float((left == right).mean())


class NearDuplicates:
    """Finds among texts those that are nearly the same. Holds about 400 bytes a text, whatever its length.

    >>> near = NearDuplicates()
    >>> near.add("今天天气真好，我们一起去公园散步吧！"), near.add("今天天气真好，我们一起去公园散步吧。")
    (0, 1)
    >>> near.first_of().tolist()
    [0, 0]
    """

    def __init__(self, threshold: float = 0.8):
        self.threshold = threshold
        self._blocks: list[np.ndarray] = []  # low halves of the signatures, enough to compare them
        self._bands: list[np.ndarray] = []  # a hash of each band
        self._new: list[np.ndarray] = []
        self._count = 0

    def add(self, text: str) -> int:
        """Add a text; its number."""
        return self.add_signature(signature(text))

    def add_signature(self, signature: np.ndarray) -> int:
        self._new.append(signature)
        self._count += 1
        if len(self._new) == _GROWTH:
            self._join()
        return self._count - 1

    def __len__(self) -> int:
        return self._count

    def _join(self) -> None:
        if not self._new:
            return
        block = np.stack(self._new)
        self._new = []
        bands = block.reshape(len(block), BANDS, ROWS).astype(np.uint64)
        hashes = np.zeros((len(block), BANDS), dtype=np.uint64)
        for row in range(ROWS):
            hashes = (hashes ^ bands[:, :, row]) * _MIX
            hashes ^= hashes >> np.uint64(32)
        self._blocks.append((block & np.uint32(0xFFFF)).astype(np.uint16))
        self._bands.append(hashes)

    def first_of(self) -> np.ndarray:
        """(texts,) int64: for each text the first one that it is nearly the same as, or itself."""
        self._join()
        parent = np.arange(self._count)
        if not self._count:
            return parent
        lows, bands = np.concatenate(self._blocks), np.concatenate(self._bands)
        self._blocks, self._bands = [lows], [bands]
        for band in range(BANDS):
            pairs = _agreeing(bands[:, band])
            pairs = pairs[parent[pairs[:, 0]] != parent[pairs[:, 1]]]
            for start in range(0, len(pairs), _COMPARED):
                block = pairs[start : start + _COMPARED]
                alike = (lows[block[:, 0]] == lows[block[:, 1]]).mean(1) >= self.threshold
                for first, second in block[alike].tolist():
                    one, two = _root(parent, first), _root(parent, second)
                    parent[max(one, two)] = min(one, two)
        while (parent != parent[parent]).any():
            parent = parent[parent]
        return parent


def _agreeing(hashes: np.ndarray) -> np.ndarray:
    """(pairs, 2) int64: places with the same hash, each with the first of them and with the one before it."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    same = np.append(False, ordered[1:] == ordered[:-1])
    firsts = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    places = np.flatnonzero(same)
    further = places[places - 1 > firsts[places]]
    return order[np.stack([np.append(firsts[places], further - 1), np.append(places, further)], 1)]


def _root(parent: np.ndarray, number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = int(parent[number])
    return number


class Seen:
    """Texts that have come before, told by 64 bits of each: 8 bytes of content a text."""

    def __init__(self, texts: Iterable[str] = ()):
        self._prints = {fingerprint(text) for text in texts}

    def again(self, text: str) -> bool:
        """Whether the text has come before; it has from now on."""
        key = fingerprint(text)
        if key in self._prints:
            return True
        self._prints.add(key)
        return False


def near_pairs(known: Sequence[str], texts: Iterable[str], threshold: float) -> Iterator[tuple[int, int, float]]:
    """(number of a text, number of the known text most like it, similarity), where that reaches ``threshold``."""
    table: dict[tuple[int, bytes], array[int]] = {}
    signatures = [signature(text) for text in known]
    for number, found in enumerate(signatures):
        for band in range(BANDS):
            key = (band, found[band * ROWS : (band + 1) * ROWS].tobytes())
            table.setdefault(key, array("q")).append(number)
    for number, text in enumerate(texts):
        own = signature(text)
        keys = ((band, own[band * ROWS : (band + 1) * ROWS].tobytes()) for band in range(BANDS))
        candidates = {place for key in keys for place in table.get(key, ())}
        best = max(((similarity(own, signatures[place]), -place) for place in candidates), default=(0.0, 0))
        if best[0] >= threshold:
            yield number, -best[1], best[0]
