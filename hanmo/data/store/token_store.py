"""Tokenised documents in memory-mapped files, which pretraining reads from any position.

A document is a sequence of parts that were tokenised apart: one for running text, prompt and response for a pair, one
for each turn of a dialogue. No special tokens are in the store; the family adds them when it makes rows.

    store.json      format, counts, tokenizer and its vocabulary hash; written last: without it the store is unfinished
    ids.bin         token ids of all documents, uint16 or uint32
    parts.bin       int64: where in ids.bin each part ends
    documents.bin   int64: which part each document ends before
    kinds.bin       uint8: index in ``KINDS``
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hanmo.errors import RecordError, VocabularyError
from hanmo.files import json_text, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
KINDS = ("text", "dialogue", "pair")
DTYPES = ("uint16", "uint32")  # of ids
ABOUT = "store.json"
FILES = IDS, PARTS, DOCUMENTS, KIND = "ids.bin", "parts.bin", "documents.bin", "kinds.bin"
_AT_ONCE = 1 << 20  # places that are checked at the same time
_PROBE = "你好，世界！Hello, World 2024\n　全角ＡＢＣ１２３ “引号” ①②③ 繁體字 😀 #标签# @某人"


@dataclass(frozen=True)
class About:
    """The content of store.json."""

    format: int
    documents: int
    parts: int
    tokens: int
    dtype: str
    vocabulary: str
    tokenizer: str
    sources: list[str]


class Store:
    """A store, opened for reading; its arrays are memory-mapped.

    RecordError if there is none, or it is unfinished or damaged; VocabularyError if ``tokenizer`` did not make the ids.
    """

    def __init__(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None):
        self.folder = Path(folder)
        self.about = _read_about(self.folder)
        if tokenizer is not None and (own := vocabulary_hash(tokenizer)) != self.about.vocabulary:
            made = f"made with {self.about.tokenizer} (vocabulary {self.about.vocabulary})"
            advice = "tokenise the data again: hanmo data tokenize --tokenizer MODEL"
            raise VocabularyError(f"{self.folder}: {made}, not with this tokenizer (vocabulary {own}); {advice}")
        self.ids = self._map(IDS, self.about.dtype, self.about.tokens)
        self._parts = self._map(PARTS, "int64", self.about.parts)
        self._documents = self._map(DOCUMENTS, "int64", self.about.documents)
        self._kinds = self._map(KIND, "uint8", self.about.documents)
        self._check_places(PARTS, self._parts, self.about.tokens)
        self._check_places(DOCUMENTS, self._documents, self.about.parts)
        if len(self) and int(self._kinds.max()) >= len(KINDS):
            raise self._damaged(KIND, f"kinds are below {len(KINDS)}, {self._kinds.max()} is not")
        self._most = None if tokenizer is None else len(tokenizer)  # ids are below it

    def _map(self, name: str, dtype: str, count: int) -> np.ndarray:
        path = self.folder / name
        expected = count * np.dtype(dtype).itemsize
        found = path.stat().st_size if path.is_file() else -1
        if found != expected:
            state = "missing" if found < 0 else f"{found:,} bytes"
            raise self._damaged(name, f"{state}, expected {expected:,} bytes")
        return np.memmap(path, dtype, "r") if count else np.zeros(0, dtype)

    def _check_places(self, name: str, ends: np.ndarray, last: int) -> None:
        """Check that places where parts or documents end rise to the last one."""
        for start in range(0, len(ends), _AT_ONCE):
            some = ends[max(start - 1, 0) : start + _AT_ONCE]
            if some[0] < 0 or (np.diff(some) < 0).any():
                raise self._damaged(name, "places where something ends must not fall")
        found = int(ends[-1]) if len(ends) else 0
        if found != last:
            raise self._damaged(name, f"ends at {found:,}, expected {last:,}")

    def _damaged(self, name: str, problem: str) -> RecordError:
        return RecordError(self.folder / name, 0, f"damaged store: {problem}; tokenise the data again")

    def __len__(self) -> int:
        return self.about.documents

    def kind(self, number: int) -> str:
        return KINDS[self._kinds[number]]

    def parts(self, number: int) -> list[np.ndarray]:
        """The ids of each part of a document."""
        if not 0 <= number < len(self):
            raise IndexError(f"document {number} of {len(self)}")
        first, last = int(self._documents[number - 1]) if number else 0, int(self._documents[number])
        ends = self._parts[first:last].tolist()
        starts = [int(self._parts[first - 1]) if first else 0, *ends[:-1]]
        ids = self.ids[starts[0] : ends[-1]] if ends else self.ids[:0]
        if self._most is not None and len(ids) and int(ids.max()) >= self._most:
            raise self._damaged(IDS, f"document {number} holds the id {ids.max()}, the vocabulary {self._most} tokens")
        return [self.ids[start:end] for start, end in zip(starts, ends, strict=True)]

    def lengths(self) -> np.ndarray:
        """(documents,) int64: the tokens of each document."""
        if not len(self):
            return np.zeros(0, np.int64)
        ends = np.concatenate([[0], np.asarray(self._parts)])[np.asarray(self._documents)]
        return np.diff(ends, prepend=0)


def _read_about(folder: Path) -> About:
    path = folder / ABOUT
    if not path.is_file():
        begun = any((folder / name).exists() for name in FILES)
        raise RecordError(path, 0, "the store is unfinished; run the same command again" if begun else "no store here")
    try:
        about = About(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise RecordError(path, 0, f"damaged store: {error}") from None
    if about.format != FORMAT:
        raise RecordError(path, 0, f"store format {about.format}; this hanmo reads {FORMAT}")
    counts = (about.documents, about.parts, about.tokens)
    if about.dtype not in DTYPES or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise RecordError(path, 0, f"damaged store: {counts} documents, parts and tokens in {about.dtype!r}")
    return about


def write_about(folder: Path, about: About) -> None:
    write_text(folder / ABOUT, json_text(asdict(about), indent=2) + "\n")


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of every token with its id, and of the ids of a difficult text."""
    state = [sorted(tokenizer.get_vocab().items()), encode(tokenizer, [_PROBE], 1)]
    return blake2b(json.dumps(state, ensure_ascii=False).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], workers: int | None = None) -> list[list[int]]:
    """The ids of texts without special tokens, by the tokenizer's own ``encode_batch`` if it has one."""
    fast: Any = getattr(tokenizer, "encode_batch", None)
    if fast is not None:
        return [list(ids) for ids in fast(list(texts), workers=workers)]
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [list(ids) for ids in found["input_ids"]]


def encode_flat(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """``encode`` in this process, as arrays: the ids of all texts end to end, and the length of each."""
    fast: Any = getattr(tokenizer, "encode_flat", None)
    if fast is not None:
        return fast(texts, workers=1)
    ids = encode(tokenizer, texts, 1)
    counts = np.fromiter(map(len, ids), np.int64, len(ids))
    return np.fromiter(chain.from_iterable(ids), np.uint32, int(counts.sum())), counts
