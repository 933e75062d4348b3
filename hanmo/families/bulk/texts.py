"""Texts as arrays of code points, and ids of many texts as one array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CODES = 0x110000  # code points of Unicode


@dataclass(frozen=True)
class Flat:
    """Ids of many texts end to end, int32; counts: how many each text has, int64."""

    ids: np.ndarray
    counts: np.ndarray


def codes_of(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The code points of texts, end to end, uint32; and where each text ends, int64."""
    joined = "".join(texts).encode("utf-32-le", "surrogatepass")
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    return np.frombuffer(joined, np.uint32), ends
