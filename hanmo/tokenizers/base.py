"""The base of the families' tokenizers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer

from hanmo.tokenizers.batching import BatchEncodingMixin


class PlainTokenizer(BatchEncodingMixin, PreTrainedTokenizer):
    """A tokenizer with ``encode_plain``; the tokens around a text are those of ``build_inputs_with_special_tokens``."""

    model_input_names = ["input_ids", "attention_mask"]

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
        """The content of the vocabulary file."""
        raise NotImplementedError

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        name = (f"{filename_prefix}-" if filename_prefix else "") + self.vocab_files_names["vocab_file"]
        target = Path(save_directory) / name
        temporary = target.with_name(f"{name}.{os.getpid()}.tmp")
        temporary.write_bytes(self.vocabulary_bytes())
        temporary.replace(target)
        return (str(target),)
