"""Texts that are nearly the same: MinHash signatures over character n-grams (Broder 1997), and an index of them (LSH).

A signature is 120 minima of hashed n-grams; two texts agree in as large a share of them as their sets of n-grams have
in common. Texts that agree in a whole band of six minima are compared: those of similarity 0.8 with probability 0.998;
those of 0.5 with probability 0.27, and rejected.
"""

from collections.abc import Iterable

import numpy as np

from hanmo.data.prepare.normalisation import normalised
from hanmo.data.prepare.passages import n_gram_hashes

N_GRAM = 4  # characters
BANDS, ROWS = 20, 6
_GROWTH = 4096  # signatures collected before they join the index
_rng = np.random.default_rng(20260101)
_FACTORS = _rng.integers(1, 2**63, BANDS * ROWS, dtype=np.uint64) | np.uint64(1)
_OFFSETS = _rng.integers(0, 2**63, BANDS * ROWS, dtype=np.uint64)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_COMPARED = 1 << 14  # pairs compared at once
_BLOCK = 2048  # n-grams hashed at once: bounds memory for long texts


def shingles(text: str) -> np.ndarray:
    """The different character n-grams of the normalised text as uint64 hashes; a shorter text is one n-gram."""
    plain = normalised(text)
    if not plain:
        return np.zeros(1, dtype=np.uint64)
    hashes = n_gram_hashes(plain, min(N_GRAM, len(plain)))
    hashes = (hashes ^ (hashes >> np.uint64(31))) * _MIX  # neighbouring characters must not give neighbouring hashes
    return np.unique(hashes ^ (hashes >> np.uint64(29)))


def signature(text: str) -> np.ndarray:
    """(BANDS * ROWS,) uint32."""
    hashes = shingles(text)
    least = np.full(BANDS * ROWS, np.iinfo(np.uint32).max, dtype=np.uint32)
    for start in range(0, len(hashes), _BLOCK):
        block = hashes[start : start + _BLOCK, None] * _FACTORS + _OFFSETS
        least = np.minimum(least, (block >> np.uint64(32)).astype(np.uint32).min(0))
    return least


def similarity(left: np.ndarray, right: np.ndarray) -> float:
    """The share of n-grams that two texts have in common (Jaccard), estimated from their signatures."""
    return float((left == right).mean())


class LshIndex:
    """Signatures by their bands. Holds about 400 bytes a text, whatever its length.

    >>> index = LshIndex()
    >>> for text in ("今天天气真好，我们一起去公园散步吧！", "今天天气真好，我们一起去公园散步吧。"):
    ...     index.add(signature(text))
    >>> index.first_similar(0.8).tolist()
    [0, 0]
    """

    def __init__(self) -> None:
        self._lows: list[np.ndarray] = []  # (texts, BANDS * ROWS) uint16: low halves, enough to compare signatures
        self._bands: list[np.ndarray] = []  # (texts, BANDS) uint64: a hash of each band
        self._new: list[np.ndarray] = []

    def add(self, signature: np.ndarray) -> None:
        """Add a text; its number is the count of texts before it."""
        self._new.append(signature)
        if len(self._new) == _GROWTH:
            self._join()

    def _join(self) -> None:
        if self._new:
            block = np.stack(self._new)
            self._new = []
            self._lows.append((block & np.uint32(0xFFFF)).astype(np.uint16))
            self._bands.append(_band_hashes(block))

    def first_similar(self, threshold: float) -> np.ndarray:
        """(texts,) int64: for each text the number of the first one that is nearly the same, or its own.

        Chains count: a text that is similar to a duplicate of the first one belongs to the first one.
        """
        self._join()
        parent = np.arange(sum(map(len, self._lows)))
        if not self._lows:
            return parent
        lows, bands = np.concatenate(self._lows), np.concatenate(self._bands)
        self._lows, self._bands = [lows], [bands]
        for band in range(BANDS):
            pairs = _agreeing(bands[:, band])
            pairs = pairs[parent[pairs[:, 0]] != parent[pairs[:, 1]]]
            for start in range(0, len(pairs), _COMPARED):
                block = pairs[start : start + _COMPARED]
                similar = (lows[block[:, 0]] == lows[block[:, 1]]).mean(1) >= threshold
                for first, second in block[similar].tolist():
                    one, two = _root(parent, first), _root(parent, second)
                    parent[max(one, two)] = min(one, two)
        while (parent != parent[parent]).any():
            parent = parent[parent]
        return parent


def _band_hashes(signatures: np.ndarray) -> np.ndarray:
    """(texts, BANDS) uint64 of (texts, BANDS * ROWS) uint32."""
    bands = signatures.reshape(len(signatures), BANDS, ROWS).astype(np.uint64)
    hashes = np.zeros((len(signatures), BANDS), dtype=np.uint64)
    for row in range(ROWS):
        hashes = (hashes ^ bands[:, :, row]) * _MIX
        hashes ^= hashes >> np.uint64(32)
    return hashes


def _agreeing(hashes: np.ndarray) -> np.ndarray:
    """(pairs, 2) int64: numbers of texts with the same hash, each with the first of them and with the one before it."""
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


class NearTexts:
    """Known texts, searched for the one most similar to another text."""

    def __init__(self, known: Iterable[str]):
        self._signatures = [signature(text) for text in known]
        self._by_band: dict[int, list[int]] = {}
        for number, found in enumerate(self._signatures):
            for value in _band_hashes(found[None])[0].tolist():
                self._by_band.setdefault(value, []).append(number)

    def nearest(self, text: str) -> tuple[int, float]:
        """The number of the known text most like this one, and their similarity; 0.0 if they share no band."""
        own = signature(text)
        bands = _band_hashes(own[None])[0].tolist()
        candidates = {number for value in bands for number in self._by_band.get(value, ())}
        best = max(((similarity(own, self._signatures[number]), -number) for number in candidates), default=(0.0, 0))
        return -best[1], best[0]
