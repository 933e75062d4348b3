"""A kernel over many texts: texts as arrays of code points, parts of them in threads, ids as arrays or lists."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit

CODES = 0x110000  # code points of Unicode
_PART = 1 << 17  # characters a thread encodes at a time

Arrays = tuple[np.ndarray, np.ndarray]  # ids of texts end to end, int32; how many each text has, int64


def machine_code(function: Callable[..., Any]) -> Any:
    """A function compiled at its first call, and free of the interpreter's lock; kept on disk where there is a place.

    numba keeps it beside the source or in the user's cache folder. It looks for changes in the function's own file
    only: do not call compiled functions of another module.
    """
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither folder can be written to
        return njit(nogil=True)(function)


class Kernel:
    """Encodes many texts; a subclass says how, in ``encode``."""

    def encode(self, texts: Sequence[str]) -> Arrays:
        """The ids of texts, by compiled code that lets go of the interpreter; -1 as the count of a text that it leaves."""
        raise NotImplementedError

    def lists(
        self,
        texts: Sequence[str],
        exact: Callable[[str], list[int]],
        apart: Callable[[Sequence[str]], list[int]],
        workers: int | None = None,
    ) -> list[list[int]]:
        """The ids of each text.

        Args:
            exact: encodes a text that the kernel leaves.
            apart: numbers of the texts that are not for the kernel.
            workers: threads, by default one per processor.
        """
        found: list[list[int]] = []
        # Python's own numbers, made once: the lists share them, which saves 32 bytes an id and the time to fill them.
        numbers = np.zeros(0, object)
        collecting = gc.isenabled()
        gc.disable()  # nothing made here is part of a cycle, and there is much of it
        try:
            for ids, counts in self._parts(texts, exact, apart, workers):
                if (largest := int(ids.max(initial=-1))) >= len(numbers):
                    numbers = np.arange(largest + 1).astype(object)
                shared = numbers[ids]
                start = 0
                for end in np.cumsum(counts).tolist():
                    found.append(shared[start:end].tolist())
                    start = end
        finally:
            if collecting:
                gc.enable()
        return found

    def flat(
        self,
        texts: Sequence[str],
        exact: Callable[[str], list[int]],
        apart: Callable[[Sequence[str]], list[int]],
        workers: int | None = None,
    ) -> Arrays:
        """The same as arrays."""
        parts = list(self._parts(texts, exact, apart, workers))
        ids = [np.zeros(0, np.int32), *(ids for ids, _ in parts)]
        return np.concatenate(ids), np.concatenate([np.zeros(0, np.int64), *(counts for _, counts in parts)])

    def _parts(
        self,
        texts: Sequence[str],
        exact: Callable[[str], list[int]],
        apart: Callable[[Sequence[str]], list[int]],
        workers: int | None,
    ) -> Iterator[Arrays]:
        def encode(part: tuple[int, int]) -> Arrays:
            given = list(texts[slice(*part)])
            others = apart(given)
            for number in others:
                given[number] = ""
            ids, counts = self.encode(given)
            left = np.union1d(np.flatnonzero(counts < 0), np.array(others, np.int64))
            if not len(left):
                return ids, counts
            counts[left] = 0
            own = [exact(texts[part[0] + number]) for number in left.tolist()]
            sizes = np.array([len(one) for one in own], np.int64)
            places = np.repeat(np.cumsum(counts)[left], sizes)
            counts[left] = sizes
            return np.insert(ids, places, [one for text in own for one in text]), counts

        with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
            yield from pool.map(encode, _cut(texts))


def _cut(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """First and last number, exclusive, of texts of about ``_PART`` characters."""
    start = characters = 0
    for end, text in enumerate(texts, 1):
        characters += len(text)
        if characters >= _PART or end == len(texts):
            yield start, end
            start, characters = end, 0


def codes_of(texts: Sequence[str]) -> Arrays:
    """The code points of texts, end to end, uint32; and where each text ends, int64."""
    joined = "".join(texts).encode("utf-32-le", "surrogatepass")
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    return np.frombuffer(joined, "<u4"), ends
