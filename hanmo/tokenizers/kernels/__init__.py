"""Kernels compiled by numba, with exactly the ids of ``encode_plain``; only ``base.compiled`` imports them."""
