"""Kernels compiled by numba that tokenise batches as arrays of code points, in threads.

A kernel returns exactly the ids of ``encode_plain`` and leaves texts that it cannot encode to that. Imported only by
``base.compiled``: without numba everything works, only slower.
"""
