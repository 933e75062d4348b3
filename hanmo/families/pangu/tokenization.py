"""PanGu-α's tokenizer: jieba's words, each cut into pieces by sentencepiece. Exact to the original.

Travels with exported models: what it imports of hanmo imports nothing of hanmo, and is put into its text on export.
Source: the recorded specification of the PyTorch port of PanGu-α, section "Tokenizer".
"""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy
import sentencepiece
from transformers import PreTrainedTokenizer

from hanmo.families.spread import spread
from hanmo.families.words import WordCutter, read_dictionary

_ADDED = ("<s>", "</s>", "<eot>", "<unk>", "<sep>", "<pad>")
_FURTHER = {"patched": "<>", "stock": ""}


_SPACE = "\u2581"  # sentencepiece's; stands before every word
_SURE = 18  # log2 of the longest text, by its log probability, whose words' ids are looked up


def _spelled(word: str) -> tuple[str]:
    return (word.replace(" ", "\u2582").replace("\n", "\u2583"),)


class PanguTokenizer(PreTrainedTokenizer):
    """PanGu-α's tokenizer. A single text becomes ``<s>`` A ``<eot>``, a pair ``<s>`` A ``<sep>`` B ``<eot>``.

    Args:
        vocab_file: the sentencepiece model.
        jieba_mode: "patched", as the RLHF pipeline assumes: a typed ``<sep>`` is the special token; or "stock",
            where it is cut up like any other text. jieba itself is never changed.

    Raises:
        ValueError: an unknown mode, or a sentencepiece model without the special tokens.
    """

    vocab_files_names = {"vocab_file": "vocab.model"}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "right"
    truncation_side = "right"

    def __init__(
        self,
        vocab_file: str,
        bos_token: str = "<s>",
        eos_token: str = "<eot>",
        unk_token: str = "<unk>",
        sep_token: str = "<sep>",
        pad_token: str = "<pad>",
        jieba_mode: str = "patched",
        **kwargs: Any,
    ) -> None:
        if jieba_mode not in _FURTHER:
            raise ValueError(f"jieba_mode is {jieba_mode!r}; expected one of: {', '.join(_FURTHER)}")
        self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(vocab_file))
        specials = [str(token) for token in (bos_token, eos_token, unk_token, sep_token, pad_token)]
        self._specials = {token: self._pieces.piece_to_id(token) for token in specials}
        if missing := [token for token in specials if self._pieces.id_to_piece(self._specials[token]) != token]:
            raise ValueError(f"{vocab_file}: not a PanGu vocabulary, it lacks {', '.join(missing)}")
        self.jieba_mode = jieba_mode
        self._cut: WordCutter | None = None
        self._cut_to_ids: WordCutter | None = None
        self._scores: dict[str, float] = {}
        kwargs["split_special_tokens"] = True
        super().__init__(
            bos_token=bos_token,
            eos_token=eos_token,
            unk_token=unk_token,
            sep_token=sep_token,
            pad_token=pad_token,
            jieba_mode=jieba_mode,
            **kwargs,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cut": None, "_cut_to_ids": None}

    @property
    def vocab_size(self) -> int:
        """Number of sentencepiece pieces."""
        return int(self._pieces.vocab_size())

    def get_vocab(self) -> dict[str, int]:
        return {self._pieces.id_to_piece(index): index for index in range(self.vocab_size)} | self._added_tokens_encoder

    def encode_plain(self, text: str) -> list[int]:
        """The ids of a text and nothing else; empty for an empty text."""
        return self._encode_words([self.segments(text)])[0]

    def encode_batch(self, texts: Sequence[str], workers: int | None = None) -> list[list[int]]:
        """``encode_plain`` of many texts, much faster.

        Args:
            workers: processes; by default one per processor where there is enough text to keep them busy.
        """
        cutter = self._id_cutter()  # before the workers start, so that they share the dictionary
        return spread(lambda part: self._encode_part(cutter, part), texts, workers)

    def _encode_part(self, cutter: WordCutter, texts: Sequence[str]) -> tuple[Any, Any]:
        """Ids by way of a table of words; of a text with a word that is not safe for its length by sentencepiece."""
        counts, ids = cutter.packed(texts)
        text_of = numpy.repeat(numpy.arange(len(texts)), counts)
        warnings = ids < 0
        weights = numpy.where(warnings, 0.0, -self._score_of[ids])
        sizes = numpy.bincount(text_of, weights, len(texts))
        safe = sizes < 2.0**_SURE
        safe[text_of[warnings][2.0 ** (-1.0 - ids[warnings]) <= sizes[text_of[warnings]]]] = False
        counts -= numpy.bincount(text_of[warnings], minlength=len(texts))
        ids = ids[~warnings]
        if not safe.all():
            parts = numpy.split(ids, numpy.cumsum(counts)[:-1])
            for index in numpy.flatnonzero(~safe).tolist():
                parts[index] = numpy.array(self.encode_plain(texts[index]), numpy.int32)
                counts[index] = len(parts[index])
            ids = numpy.concatenate(parts)
        return counts, ids

    def segments(self, text: str) -> list[str]:
        """The words jieba cuts a text into, with spaces and newlines as sentencepiece gets them."""
        return self._cutter()(text)

    def _encode_words(self, texts: Sequence[list[str]]) -> list[list[int]]:
        """Ids of texts given as words: special words by themselves, the runs between them joined by spaces."""
        joined = [" ".join(words) for words in texts]
        special = [
            "<" in text and not self._specials.keys().isdisjoint(words)
            for text, words in zip(joined, texts, strict=True)
        ]
        encoded = self._pieces.encode([text if not found else "" for text, found in zip(joined, special, strict=True)])
        for index in (index for index, found in enumerate(special) if found):
            ids: list[int] = []
            for token, run in groupby(texts[index], key=self._specials.get):
                words = list(run)
                ids += self._pieces.encode(" ".join(words)) if token is None else [token] * len(words)
            encoded[index] = ids
        return encoded

    def encode(self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **kwargs: Any) -> list[int]:
        """As in transformers; a text without special tokens takes the short way."""
        if not add_special_tokens and text_pair is None and not kwargs and isinstance(text, str):
            return self.encode_plain(text)
        return super().encode(text, text_pair, add_special_tokens=add_special_tokens, **kwargs)

    def _cutter(self) -> WordCutter:
        if self._cut is None:
            self._cut = WordCutter(_spelled, read_dictionary(_FURTHER[self.jieba_mode], _ADDED), object)
        return self._cut

    def _id_cutter(self) -> WordCutter:
        if self._cut_to_ids is None:
            pieces = [self._pieces.id_to_piece(index) for index in range(self.vocab_size)]
            self._score_of = numpy.array(list(map(self._pieces.get_score, range(self.vocab_size))))
            self._score_of[self._pieces.unk_id()] = self._score_of.min() - 10  # what sentencepiece makes of it
            self._scores = dict(zip(pieces, self._score_of.tolist(), strict=True))
            self._cut_to_ids = WordCutter(self._word_ids, self._cutter().dictionary)
        return self._cut_to_ids

    def _word_ids(self, word: str) -> list[int]:
        """The ids of a word, after a warning where they may be others in a text of some length.

        A word has the same ids wherever it stands, as no piece reaches across the space before it, but for one thing:
        sentencepiece adds up the pieces' log probabilities from the start of the text in single precision, so that
        rounding decides between two ways to cut the word that are nearly equal. Each addition is off by at most
        2**-24 of the sum. A warning is -1 - the log2 of the sum up to which the word is safe.
        """
        if word in self._specials:
            return [self._specials[word]]
        (spelled,) = _spelled(word)
        ids = self._pieces.encode(spelled)
        normal = self._pieces.normalize(spelled)
        if not normal:
            return ids
        pieces, lead = self._best_pieces(normal)
        whole = normal[0] == _SPACE and _SPACE not in normal[1:] and _SPACE not in spelled
        if not whole or unicodedata.category(spelled[0])[0] == "M" or pieces != ids:
            return [-1, *ids]
        level = math.log2(min(max(lead, 1e-30), 1.0) * 2**23 / len(normal))
        return [-1 - max(math.floor(level), 0), *ids] if level < _SURE else ids

    def _best_pieces(self, word: str) -> tuple[list[int], float]:
        """The ids of the most probable way to cut a word, and by how much it is ahead of the next."""
        unknown = float(self._score_of[self._pieces.unk_id()])
        best, starts, leads = [0.0], [0], [math.inf]
        for end in range(1, len(word) + 1):
            found = [
                (best[start] + score, start)
                for start in range(end)
                if (score := self._scores.get(word[start:end])) is not None
            ]
            if word[end - 1] not in self._scores:
                found.append((best[end - 1] + unknown, end - 1))
            found.sort(reverse=True)
            best.append(found[0][0])
            starts.append(found[0][1])
            leads.append(found[0][0] - found[1][0] if len(found) > 1 else math.inf)
        ids: list[int] = []
        lead, end = math.inf, len(word)
        while end:
            index = self._pieces.piece_to_id(word[starts[end] : end])
            if index != self._pieces.unk_id() or ids[-1:] != [index]:  # unknown characters in a row are one
                ids.append(index)
            lead, end = min(lead, leads[end]), starts[end]
        return ids[::-1], lead

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [self._pieces.id_to_piece(index) for index in self.encode_plain(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return int(self._pieces.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        return str(self._pieces.id_to_piece(index))

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """Ids as text; what sentencepiece normalised away while encoding does not come back."""
        ids = [token_ids] if isinstance(token_ids, int) else list(map(int, token_ids))
        if skip_special_tokens:
            ids = [index for index in ids if index not in self._specials.values()]
        text = self._pieces.decode(ids)
        return text.replace(" ", "").replace("\u2582", " ").replace("\u2583", "\n")

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        second = [] if token_ids_1 is None else [self.sep_token_id, *token_ids_1]
        return [self.bos_token_id, *token_ids_0, *second, self.eos_token_id]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, True)
        second = [] if token_ids_1 is None else [1] + [0] * len(token_ids_1)
        return [1] + [0] * len(token_ids_0) + second + [1]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        name = (f"{filename_prefix}-" if filename_prefix else "") + self.vocab_files_names["vocab_file"]
        target = Path(save_directory) / name
        beside = target.with_name(f"{name}.{os.getpid()}.tmp")
        beside.write_bytes(self._pieces.serialized_model_proto())
        beside.replace(target)
        return (str(target),)
