"""Keeps memory that a training step frees for the next one, instead of returning it to the system."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc
FREE_AT_MOST = 2**30  # free bytes at the end of the heap that are kept


def keep_heap() -> bool:
    """Take large tensors from the heap of this process too; returns whether the C library supports that.

    By default glibc maps every tensor of more than 32 MB anew, and the page faults take a tenth of a Transformer-XL
    training step. Only for steps of one shape: where shapes change, the heap is fragmented and grows by half.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, FREE_AT_MOST) and mallopt(M_MMAP_MAX, 0))
