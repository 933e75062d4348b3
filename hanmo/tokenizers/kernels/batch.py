"""Runs a kernel over many texts: as arrays of code points, in threads."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit

from hanmo.tokenizers.base import garbage_collector_off, parts_of

CODES = 0x110000  # code points of Unicode

Arrays = tuple[np.ndarray, np.ndarray]  # concatenated ids, int32; the number of ids of each text, int64


def machine_code(function: Callable[..., Any]) -> Any:
    """A function compiled at its first call, without the interpreter's lock; cached on disk if numba finds a folder."""
    # numba looks for changes in the function's own file only: do not call compiled functions of another module.
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither folder can be written to
        return njit(nogil=True)(function)


class Kernel:
    """``encode`` computes ids without the interpreter's lock; the count of a text that it cannot encode is -1."""

    def __init__(self, encode: Callable[[Sequence[str]], Arrays]):
        self.encode = encode

    def flat(
        self,
        texts: Sequence[str],
        exact: Callable[[str], list[int]],
        apart: Callable[[Sequence[str]], list[int]],
        workers: int | None = None,
    ) -> Arrays:
        """The ids of all texts; ``exact`` encodes those in ``apart`` (indices) and those that the kernel cannot encode.

        ``workers`` are threads, by default one per processor.
        """

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
            return np.insert(ids, places, [id_ for one in own for id_ in one]), counts

        with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
            parts = [(np.zeros(0, np.int32), np.zeros(0, np.int64)), *pool.map(encode, parts_of(texts))]
        ids, counts = zip(*parts, strict=True)
        return np.concatenate(ids), np.concatenate(counts)

    def lists(self, texts: Sequence[str], *args: Any) -> list[list[int]]:
        """The ids of each text; ``args`` as in ``flat``."""
        ids, counts = self.flat(texts, *args)
        with garbage_collector_off():
            # The lists share one Python object for each id, which saves 32 bytes an id and the time to make them.
            shared = np.arange(int(ids.max(initial=-1)) + 1).astype(object)[ids]
            return [row.tolist() for row in np.split(shared, np.cumsum(counts)[:-1])] if len(counts) else []


def codes_of(texts: Sequence[str]) -> Arrays:
    """The concatenated code points of texts, uint32, and the end of each text, int64."""
    joined = "".join(texts).encode("utf-32-le", "surrogatepass")
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    return np.frombuffer(joined, "<u4"), ends
