"""Tokenisers' kernels, compiled by numba: whole batches as arrays of code points, in threads, to arrays of ids.

`pieces` is sentencepiece's BPE, `model` reads its file; `words` is jieba's words and the longest match; `texts` runs
a kernel over a batch. A kernel returns exactly the ids of the tokenizer's own ``encode_plain``; texts it does not know
how to encode it leaves to that. Imported only by way of ``spread.compiled``: everything works without numba, only slower.
"""
