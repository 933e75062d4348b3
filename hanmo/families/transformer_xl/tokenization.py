"""文汇's tokenizer: sentencepiece, and the end of text behind its pieces. Exact to the original.

Travels with exported models: what it imports of hanmo imports nothing of hanmo, and is put into its text on export.
Source: the recorded specification of Chinese Transformer-XL, section 6.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizer

from hanmo.tokenizers.batching import BatchEncodingMixin, compiled

_EOS, _EOP = "<|endoftext|>", "<|endofpiece|>"
_TYPES = ("<str0>", "<str1>")  # names of segment types, which shadow the first ids when the original looks ids up


class TransformerXLTokenizer(BatchEncodingMixin, PreTrainedTokenizer):
    """Texts get no tokens at either end. ``<|endoftext|>`` in a text is ordinary characters.

    Args:
        vocab_file: the sentencepiece model; special tokens follow its pieces.
        add_eop: there is an ``<|endofpiece|>`` too (data with keys; hierarchical models).
    """

    vocab_files_names = {"vocab_file": "cog-pretrain.model"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file: str,
        eos_token: str = _EOS,
        pad_token: str = _EOS,
        add_eop: bool = False,
        **kwargs: Any,
    ) -> None:
        self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(vocab_file))
        self.add_eop = add_eop
        specials = [_EOS, _EOP] if add_eop else [_EOS]
        self._specials = {token: self.vocab_size + offset for offset, token in enumerate(specials)}
        self._special_names = {index: token for token, index in self._specials.items()}
        for name in ("additional_special_tokens", "extra_special_tokens", "split_special_tokens"):
            kwargs.pop(name, None)  # they are given by the format
        super().__init__(
            eos_token=eos_token,
            pad_token=pad_token,
            extra_special_tokens=specials[1:],
            split_special_tokens=True,
            add_eop=add_eop,
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        """Number of sentencepiece pieces, without the special tokens."""
        return int(self._pieces.vocab_size())

    @property
    def eop_token_id(self) -> int | None:
        """End of piece, where there is one."""
        return self._specials.get(_EOP)

    def padded_vocab_size(self, model_parallel: int = 1) -> int:
        """Rows of the embedding: the number of tokens rounded up to a multiple of 128 per model-parallel rank.

        The original rounds for 1 rank in generation, whatever the number of ranks.
        """
        multiple = 128 * model_parallel
        return -(-len(self) // multiple) * multiple

    def get_vocab(self) -> dict[str, int]:
        ordinary = {self._pieces.id_to_piece(index): index for index in range(self.vocab_size)}
        return {**ordinary, **self._specials, **self._added_tokens_encoder}

    def encode_plain(self, text: str) -> list[int]:
        """The ids of a text."""
        return self._pieces.encode(text)

    def _encode_part(self, texts: Sequence[str]) -> list[list[int]]:
        return self._pieces.encode(list(texts))

    def _kernel(self) -> Any:
        return compiled("pieces", self._model)

    @cached_property
    def _model(self) -> bytes:
        """What the kernel is found by; kept, as these bytes are hashed once only."""
        return bytes(self._pieces.serialized_model_proto())

    def encode(self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **kwargs: Any) -> list[int]:
        """As in transformers; a text on its own takes the short way."""
        if text_pair is None and not kwargs and isinstance(text, str):
            return self.encode_plain(text)
        return super().encode(text, text_pair, add_special_tokens=add_special_tokens, **kwargs)

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self._pieces.encode(text, out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        return int(self._pieces.piece_to_id(token))

    def convert_tokens_to_ids(self, tokens: Any, published: bool = False) -> Any:
        """Ids of tokens, or of one. ``published``: the original does not know its special tokens by name."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token, published) for token in tokens]
        if published or (tokens not in self._specials and tokens not in self._added_tokens_encoder):
            return self._convert_token_to_id(tokens)
        return self._specials.get(tokens, self._added_tokens_encoder.get(tokens))

    def _convert_id_to_token(self, index: int) -> str:
        return self._special_names.get(index) or str(self._pieces.id_to_piece(index))

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False, published: bool = False) -> Any:
        """Tokens of ids, or of one. ``published``: names of segment types shadow the first two ids."""
        if isinstance(ids, int):
            return _TYPES[ids] if published and 0 <= ids < len(_TYPES) else self._convert_id_to_token(ids)
        kept = [int(index) for index in ids if not (skip_special_tokens and int(index) in self._special_names)]
        return [self.convert_ids_to_tokens(index, published=published) for index in kept]

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        published: bool = False,
        **kwargs: Any,
    ) -> str:
        """Ids as text. Special tokens stand where they are, and the embedding's unused rows add nothing.

        ``published``: every id from the first ``<|endoftext|>`` on, whatever it is, becomes one ``<|endoftext|>``, and
        an unused id before that is an error.

        Raises:
            IndexError: an id outside the vocabulary (``published``), or below 0.
        """
        ids = [token_ids] if isinstance(token_ids, int) else list(map(int, token_ids))
        if published:
            end = ids.index(self._specials[_EOS]) if self._specials[_EOS] in ids else len(ids)
            return " ".join([self._pieces.decode(ids[:end]), *[_EOS] * (len(ids) - end)])
        text = ""
        for ordinary, run in groupby(ids, key=lambda index: index < self.vocab_size):
            if ordinary:
                text += self._pieces.decode(list(run))
            elif not skip_special_tokens:
                text += "".join(self._special_names.get(index, "") for index in run)
        return text

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        name = (f"{filename_prefix}-" if filename_prefix else "") + self.vocab_files_names["vocab_file"]
        target = Path(save_directory) / name
        beside = target.with_name(f"{name}.{os.getpid()}.tmp")
        beside.write_bytes(self._pieces.serialized_model_proto())
        beside.replace(target)
        return (str(target),)
