"""PanGu-α's tokenizer: jieba's words, each cut into pieces by sentencepiece. Exact to the original.

Travels with exported models: what it imports of hanmo imports nothing of hanmo, and is put into its text on export.
Source: the recorded specification of the PyTorch port of PanGu-α, section "Tokenizer".
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizer

from hanmo.tokenizers.batching import BatchEncodingMixin
from hanmo.tokenizers.jieba_exact import WordCutter

_ADDED = ("<s>", "</s>", "<eot>", "<unk>", "<sep>", "<pad>")
_FURTHER = {"patched": "<>", "stock": ""}


# how sentencepiece gets the words that are or hold a space or a newline
_SPELLED = {" ": "\u2582", "\n": "\u2583", "\r\n": "\r\u2583"}


class PanguTokenizer(BatchEncodingMixin, PreTrainedTokenizer):
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
        self._cut = WordCutter(_FURTHER[jieba_mode], _ADDED)
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
        self._cut("")  # reads the dictionary before the workers start, so that they share it
        return super().encode_batch(texts, workers)

    def _encode_part(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encode_words(list(map(self.segments, texts)))

    def segments(self, text: str) -> list[str]:
        """The words jieba cuts a text into, with spaces and newlines as sentencepiece gets them."""
        return [_SPELLED.get(word, word) for word in self._cut(text)]

    def _encode_words(self, texts: Sequence[list[str]]) -> list[list[int]]:
        """Ids of texts given as words: special words by themselves, the runs between them joined by spaces.

        Words are not looked up in a table of their ids: how sentencepiece merges the pieces of a word may depend on
        what stands around it (seen in 0.2.3), so it gets the same strings as from the original.
        """
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
