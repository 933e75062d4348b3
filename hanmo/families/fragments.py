"""Texts as rows of short fragments, whose ids are looked up for very many at once.

A text falls apart where no word of a vocabulary runs across. What becomes of such a fragment does not depend on the
rest of the text, so it is worked out once and kept in a table that numpy reads.

Imports nothing of hanmo: its text is put into the tokenization.py that travels with exported models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy

MARK = "\x01"  # stands before, between and behind texts that are joined; none of them may contain it
_PACKED = 4  # characters of 16 bits that a key holds
_MASKS = numpy.array([(1 << 16 * size) - 1 for size in range(_PACKED + 1)], numpy.uint64)

Learn = Callable[[list[str]], tuple[Any, Any]]
"""Fragments to how many values each has, and these end to end."""


def codes_of(text: str) -> Any:
    """(characters,) uint32: the code points of a text."""
    return numpy.frombuffer(text.encode("utf-32-le", "surrogatepass"), numpy.uint32)


class Crossings:
    """Between which neighbouring characters of a text a word runs.

    Every run of 2, 3 or 4 characters that is a word (or 4 characters inside a longer one) has a bit in a table, by
    its hash. Two runs with one hash make fragments longer than they need be, which is harmless.
    """

    _BITS_A_RUN = 100  # so that a chance hit is rare
    _FACTOR = numpy.uint32(0x9E3779B1)  # 2**32 divided by the golden ratio, as usual for hashing by multiplication

    def __init__(self, words: Iterable[str]) -> None:
        by_size: dict[int, list[str]] = {2: [], 3: [], 4: []}
        for word in words:
            if len(word) in by_size:
                by_size[len(word)].append(word)
            elif len(word) > 4:
                by_size[4] += [word[start : start + 4] for start in range(len(word) - 3)]
        self._bits = (self._BITS_A_RUN * sum(map(len, by_size.values())) + 8).bit_length()  # of a hash
        table = numpy.zeros(1 << self._bits, bool)
        for size, grams in by_size.items():
            *_, hashes = self._hashes(codes_of("".join(grams)), size)
            table[hashes[::size]] = True
        self._table = numpy.packbits(table, bitorder="little")

    def _hashes(self, codes: Any, longest: int = 4) -> Iterator[Any]:
        """For each size from 2 to ``longest``: the hash of that many characters from each place on."""
        running = codes * self._FACTOR
        for size in range(2, longest + 1):
            running = (running[:-1] + codes[size - 1 :]) * self._FACTOR
            yield running >> numpy.uint32(32 - self._bits)

    def __call__(self, codes: Any) -> Any:
        """(characters,) bool: whether a word runs, or may run, from a place to the next."""
        crossed = numpy.zeros(len(codes), bool)
        for reach, hashes in enumerate(self._hashes(codes), 1):
            found = (self._table[hashes >> 3] >> (hashes & 7).astype(numpy.uint8) & 1).view(bool)
            for offset in range(reach):
                crossed[offset : offset + len(found)] |= found
        return crossed


class Joined:
    """Texts in a row with a ``MARK`` before each and behind the last.

    Raises:
        ValueError: a text contains the mark.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.text = MARK + "".join([text + MARK for text in texts])
        self.codes = codes_of(self.text)
        self.marks = self.codes == ord(MARK)
        if numpy.count_nonzero(self.marks) != len(texts) + 1:
            raise ValueError("a text contains the mark")
        padded = numpy.zeros(len(self.codes) + _PACKED, numpy.uint64)
        padded[: len(self.codes)] = self.codes
        self._packed = padded[: len(self.codes)].copy()
        for place in range(1, _PACKED):
            self._packed |= padded[place : len(self.codes) + place] << numpy.uint64(16 * place)
        wide = self.codes > 0xFFFF
        self._wide_before = numpy.append(0, numpy.cumsum(wide)) if wide.any() else None

    def keys(self, starts: Any, ends: Any) -> Any:
        """uint64: the characters themselves of each fragment; 0 for one that is too long or has wide characters."""
        sizes = ends - starts
        fit = sizes <= _PACKED
        if self._wide_before is not None:
            fit &= self._wide_before[starts] == self._wide_before[ends]
        return self._packed[starts] & _MASKS[numpy.where(fit, sizes, 0)]


class Values:
    """Rows of values of any length, by number. The row 0 is ``first``."""

    def __init__(self, dtype: Any, first: Sequence[Any] = ()) -> None:
        self._flat, self._filled = numpy.empty(1 << 12, dtype), 0
        self._starts, self._counts = numpy.zeros(1 << 10, numpy.int64), numpy.zeros(1 << 10, numpy.int64)
        self._rows = 0
        self.append(*packed([first], dtype))

    def __len__(self) -> int:
        return self._rows

    def append(self, counts: Any, flat: Any) -> Any:
        """Further rows, end to end; their numbers."""
        rows, filled = self._rows + len(counts), self._filled + len(flat)
        if rows > len(self._starts):
            self._starts, self._counts = (numpy.resize(old, 2 * rows) for old in (self._starts, self._counts))
        if filled > len(self._flat):
            self._flat = numpy.resize(self._flat, 2 * filled)
        self._counts[self._rows : rows] = counts
        self._starts[self._rows : rows] = self._filled + numpy.cumsum(counts) - counts
        self._flat[self._filled : filled] = flat
        numbers = numpy.arange(self._rows, rows, dtype=numpy.int32)
        self._rows, self._filled = rows, filled
        return numbers

    def __call__(self, numbers: Any) -> tuple[Any, Any]:
        """How many values each of the numbered rows has, and the values, end to end."""
        counts = self._counts[numbers]
        before = numpy.cumsum(counts)
        total = int(before[-1]) if len(before) else 0
        places = numpy.repeat(self._starts[numbers] - before + counts, counts)
        places += numpy.arange(total)
        return counts, self._flat[places]


class Table:
    """The numbers of fragments, for all fragments of a batch at once.

    Short fragments are found by their characters in a hash table with open addressing, longer ones in a dictionary.

    Args:
        learn: what becomes of fragments that are not there.
        values: takes what was learnt.
    """

    def __init__(self, learn: Learn, values: Values) -> None:
        self._learn, self._values = learn, values
        self._keys, self._numbers = numpy.zeros(1 << 12, numpy.uint64), numpy.zeros(1 << 12, numpy.int32)
        self._held = 0
        self._long: dict[str, int] = {}
        self._insert(numpy.array([ord(MARK)], numpy.uint64), numpy.zeros(1, numpy.int32))

    def __call__(self, joined: Joined, starts: Any, ends: Any) -> Any:
        """int32: the number in ``values`` of each fragment, none of them empty."""

        def fragments(places: Any) -> list[str]:
            ranges = zip(starts[places].tolist(), ends[places].tolist(), strict=True)
            return [joined.text[start:end] for start, end in ranges]

        keys = joined.keys(starts, ends)
        numbers = self._find(keys)
        at_long = numpy.flatnonzero(keys == 0)
        long = fragments(at_long)
        new_long = [fragment for fragment in dict.fromkeys(long) if fragment not in self._long]
        at_new = numpy.flatnonzero((numbers < 0) & (keys != 0))
        new_keys, first = numpy.unique(keys[at_new], return_index=True)
        if new_long or len(new_keys):
            learnt = self._values.append(*self._learn(fragments(at_new[first]) + new_long))
            self._insert(new_keys, learnt[: len(new_keys)])
            self._long.update(zip(new_long, learnt[len(new_keys) :].tolist(), strict=True))
            numbers[at_new] = self._find(keys[at_new])
        numbers[at_long] = [self._long[fragment] for fragment in long]
        return numbers

    def _slots(self, keys: Any) -> Any:
        shift = numpy.uint64(65 - len(self._keys).bit_length())
        return (keys * numpy.uint64(0x9E3779B97F4A7C15) >> shift).astype(numpy.int64)

    def _find(self, keys: Any) -> Any:
        """The numbers of keys; -1 for those that are not there, and for 0."""
        slots = self._slots(keys)
        held = self._keys[slots]
        numbers = numpy.where((held == keys) & (keys != 0), self._numbers[slots], numpy.int32(-1))
        places = numpy.flatnonzero((held != keys) & (held != 0) & (keys != 0))
        keys, slots = keys[places], slots[places] + 1 & len(self._keys) - 1
        while len(places):
            held = self._keys[slots]
            hit = held == keys
            numbers[places[hit]] = self._numbers[slots[hit]]
            further = ~hit & (held != 0)
            places, keys, slots = places[further], keys[further], slots[further] + 1 & len(self._keys) - 1
        return numbers

    def _insert(self, keys: Any, numbers: Any) -> None:
        """Put in different keys that are not there."""
        self._held += len(keys)
        if 2 * self._held > len(self._keys):
            old_keys, old_numbers = self._keys, self._numbers
            size = 1 << (4 * self._held).bit_length()
            self._keys, self._numbers = numpy.zeros(size, numpy.uint64), numpy.zeros(size, numpy.int32)
            full = old_keys != 0
            keys, numbers = numpy.append(old_keys[full], keys), numpy.append(old_numbers[full], numbers)
        slots = self._slots(keys)
        while len(keys):
            free = self._keys[slots] == 0
            self._keys[slots[free]] = keys[free]
            lost = self._keys[slots] != keys
            self._numbers[slots[~lost]] = numbers[~lost]
            keys, numbers, slots = keys[lost], numbers[lost], slots[lost] + 1 & len(self._keys) - 1


def packed(rows: Sequence[Sequence[Any]], dtype: Any) -> tuple[Any, Any]:
    """Lengths of rows, and the rows end to end."""
    counts = numpy.fromiter(map(len, rows), numpy.int64, len(rows))
    return counts, numpy.fromiter(chain.from_iterable(rows), dtype, int(counts.sum()))


def unpacked(counts: Any, flat: Any) -> list[list[Any]]:
    """Rows of which ``packed`` gives the lengths and the values."""
    values = flat.tolist()
    ends = numpy.cumsum(counts).tolist()
    return [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]
