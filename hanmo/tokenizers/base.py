"""The base of the families' tokenizers. Many texts are encoded by compiled kernels or in several processes."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer


class PlainTokenizer(PreTrainedTokenizer):
    """A tokenizer with ``encode_plain``; the tokens around a text are those of ``build_inputs_with_special_tokens``."""

    model_input_names = ["input_ids", "attention_mask"]

    def encode_plain(self, text: str) -> list[int]:
        """The ids of a text, without special tokens around it; empty for an empty text."""
        raise NotImplementedError

    def encode(self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **kwargs: Any) -> list[int]:
        """As in transformers, with a fast path for a text without special tokens."""
        if not add_special_tokens and text_pair is None and not kwargs and isinstance(text, str):
            return self.encode_plain(text)
        return super().encode(text, text_pair, add_special_tokens=add_special_tokens, **kwargs)

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, True)
        first = [-1] * len(token_ids_0)
        second = None if token_ids_1 is None else [-1] * len(token_ids_1)
        return [int(id_ >= 0) for id_ in self.build_inputs_with_special_tokens(first, second)]

    def vocabulary_bytes(self) -> bytes:
        raise NotImplementedError

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        name = (f"{filename_prefix}-" if filename_prefix else "") + self.vocab_files_names["vocab_file"]
        target = Path(save_directory) / name
        temporary = target.with_name(f"{name}.{os.getpid()}.tmp")
        temporary.write_bytes(self.vocabulary_bytes())
        temporary.replace(target)
        return (str(target),)

    def encode_batch(self, texts: Sequence[str], workers: int | None = None) -> list[list[int]]:
        """``encode_plain`` of many texts, with ``workers`` threads or processes; default: one per processor if it pays."""
        kernel = self._kernel_that_pays(texts)
        if kernel is None:
            return encode_in_processes(self._encode_part, texts, workers)
        return kernel.lists(texts, self.encode_plain, self._not_for_kernel, workers)

    def encode_flat(self, texts: Sequence[str], workers: int | None = None) -> tuple[Any, Any]:
        """``encode_batch`` as arrays: the concatenated ids, int32, and the number of ids of each text, int64."""
        import numpy as np

        kernel = self._kernel_that_pays(texts)
        if kernel is not None:
            return kernel.flat(texts, self.encode_plain, self._not_for_kernel, workers)
        encoded = encode_in_processes(self._encode_part, texts, workers)
        counts = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return np.fromiter(chain.from_iterable(encoded), np.int32, int(counts.sum())), counts

    def _kernel_that_pays(self, texts: Sequence[str]) -> Any:
        """The kernel, once this process has encoded enough text for loading it (about a second) to pay off."""
        global _seen
        size = sum(map(len, texts))
        _seen += size
        return self._kernel() if size >= _WORTH_A_CALL and _seen >= _WORTH_A_KERNEL else None

    def _encode_part(self, texts: Sequence[str]) -> list[list[int]]:
        return list(map(self.encode_plain, texts))

    def _kernel(self) -> Any:
        """The kernel for this vocabulary (see ``compiled``), or None."""

    def _not_for_kernel(self, texts: Sequence[str]) -> list[int]:
        """Indices of the texts that the kernel cannot encode."""
        return []


_WORTH_A_CALL = 1 << 13  # characters of a batch
_WORTH_A_KERNEL = 1 << 21  # characters encoded by this process so far
_seen = 0


@lru_cache(maxsize=4)
def compiled(name: str, *about: Any) -> Any:
    """The kernel of a module of ``kernels/``; None without numba, or for a vocabulary that it does not support."""
    try:
        return import_module(f".kernels.{name}", __package__).kernel(*about)
    except (ImportError, TypeError):  # TypeError: an exported file that is in no package
        return None


def encode_in_processes(
    encode: Callable[[Sequence[str]], list[list[int]]], texts: Sequence[str], workers: int | None = None
) -> list[list[int]]:
    """``encode`` over parts of ``texts``, in several forked processes if that pays off and the system allows it."""
    parts = list(parts_of(texts))
    if workers is None:
        workers = (os.cpu_count() or 1) if sum(map(len, texts)) >= _WORTH_A_PROCESS else 1
    forks = sys.platform != "darwin" and "fork" in multiprocessing.get_all_start_methods()  # unsafe on macOS
    if not forks or multiprocessing.current_process().daemon:  # a data loader's worker may not start processes
        workers = 1
    workers = min(workers, len(parts))
    with garbage_collector_off():
        if workers < 2:
            return [ids for start, end in parts for ids in encode(texts[start:end])]
        encode([""])  # reads the dictionaries before the fork, so that the processes share them
        results: list[list[int]] = []
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _begin, (encode, texts)) as pool:
            for lengths, flat in pool.map(_encode_part, parts):
                ids = iter(flat.tolist())
                results += [list(islice(ids, length)) for length in lengths]
        return results


def parts_of(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Ranges (first, end) of texts with about ``_PART`` characters together."""
    start = characters = 0
    for end, text in enumerate(texts, 1):
        characters += len(text)
        if characters >= _PART or end == len(texts):
            yield start, end
            start, characters = end, 0


@contextmanager
def garbage_collector_off() -> Iterator[None]:
    """Used while millions of lists are made, none of them in a cycle."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_PART = 1 << 17  # characters that a process or thread encodes at a time
_WORTH_A_PROCESS = 1 << 20  # characters in all
_job: Any = None  # of a forked process: the arguments of ``encode_in_processes``


def _begin(*job: Any) -> None:
    global _job
    _job = job


def _encode_part(part: tuple[int, int]) -> tuple[list[int], array[int]]:
    """In a forked process: the number of ids of each text of a range, and the concatenated ids."""
    encode, texts = _job
    ids = encode(texts[part[0] : part[1]])
    return list(map(len, ids)), array("i", chain.from_iterable(ids))
