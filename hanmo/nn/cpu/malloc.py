"""On a CPU: memory that a training step frees is used by the next one, instead of going back to the system in between."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc
FREE_AT_MOST = 2**30  # bytes at the end of the heap, beyond which they do go back


def keep_heap() -> bool:
    """From now on this process takes large tensors from its heap too; says whether the C library could be told so.

    By default glibc maps every tensor of more than 32 MB afresh, and the system fills its pages with zeros, one page
    fault after the other: a tenth of a Transformer-XL training step. Only for steps of one shape: where shapes change,
    the heap falls into pieces and grows by half.
    """
    if not sys.platform.startswith("linux"):
        return False
    # glibc's; other C libraries have none, or one that does nothing
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, FREE_AT_MOST) and mallopt(M_MMAP_MAX, 0))
