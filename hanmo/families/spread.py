"""Tokenising many texts in several processes.

Imports nothing of hanmo: its text is put into the tokenization.py that travels with exported models.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate, chain


def spread(
    encode: Callable[[Sequence[str]], list[list[int]]], texts: Sequence[str], workers: int | None = None
) -> list[list[int]]:
    """``encode`` over parts of ``texts``, in several processes where that pays and the system can fork.

    The processes are forked, so that they share what this one has read; they send back plain arrays of ids.
    """
    global _job
    parts: list[tuple[int, int]] = []
    start = characters = total = 0
    for end, text in enumerate(texts, 1):
        characters += len(text)
        if characters >= _PART or end == len(texts):
            parts.append((start, end))
            total += characters
            start, characters = end, 0
    if workers is None:
        workers = (os.cpu_count() or 1) if total >= _WORTH_A_PROCESS else 1
    if sys.platform == "darwin" or "fork" not in multiprocessing.get_all_start_methods():
        workers = 1  # nothing could be shared, or not safely
    if multiprocessing.current_process().daemon:
        workers = 1  # a data loader's worker may have no children
    workers = min(workers, len(parts))
    _job = encode, texts
    collecting = gc.isenabled()
    gc.disable()  # nothing made here is part of a cycle, and there is much of it
    try:
        if workers < 2:
            return [ids for start, end in parts for ids in encode(texts[start:end])]
        results: list[list[int]] = []
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
            for lengths, flat in pool.map(_encode_part, parts):
                ids = flat.tolist()
                for length, end in zip(lengths, accumulate(lengths), strict=True):
                    results.append(ids[end - length : end])
        return results
    finally:
        _job = None
        if collecting:
            gc.enable()


_PART = 1 << 17  # characters a process encodes at a time
_WORTH_A_PROCESS = 1 << 20  # characters in all
_job: tuple[Callable[[Sequence[str]], list[list[int]]], Sequence[str]] | None = None


def _encode_part(part: tuple[int, int]) -> tuple[list[int], array[int]]:
    """In a forked process: the ids of a range of texts, end to end, with their lengths."""
    assert _job is not None
    encode, texts = _job
    ids = encode(texts[part[0] : part[1]])
    return list(map(len, ids)), array("i", chain.from_iterable(ids))
