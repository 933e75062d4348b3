"""The base of the tokenizers around a sentencepiece model."""

from functools import cached_property
from typing import Any

import sentencepiece

from hanmo.tokenizers.base import PlainTokenizer, compiled


class SentencePieceTokenizer(PlainTokenizer):
    """A tokenizer of sentencepiece's pieces; special tokens in a text are found by ``encode_plain`` alone."""

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(vocab_file))
        self._specials = self.special_ids()
        self._special_names = {id_: token for token, id_ in self._specials.items() if id_ >= self.vocab_size}
        kwargs["split_special_tokens"] = True
        super().__init__(**kwargs)

    def special_ids(self) -> dict[str, int]:
        """Ids of the special tokens; their names take the place of pieces with the same ids."""
        return {}

    @property
    def vocab_size(self) -> int:
        return int(self._pieces.vocab_size())

    def get_vocab(self) -> dict[str, int]:
        names = {id_: self._pieces.id_to_piece(id_) for id_ in range(self.vocab_size)}
        names |= {id_: token for token, id_ in self._specials.items()}
        return {token: id_ for id_, token in names.items()} | self._specials | self._added_tokens_encoder

    def encode_plain(self, text: str) -> list[int]:
        return self._pieces.encode(text)

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self._pieces.encode(text, out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        return self._specials[token] if token in self._specials else int(self._pieces.piece_to_id(token))

    def _convert_token_to_id_with_added_voc(self, token: Any) -> Any:
        return self._specials[token] if token in self._specials else super()._convert_token_to_id_with_added_voc(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self._special_names.get(index) or str(self._pieces.id_to_piece(index))

    def _decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: Any = None, **kwargs: Any
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(map(int, token_ids))
        return self.decode_plain(ids, skip_special_tokens, clean_up_tokenization_spaces)

    def decode_plain(self, ids: list[int], skip_special_tokens: bool, clean_up: bool | None) -> str:
        raise NotImplementedError

    def vocabulary_bytes(self) -> bytes:
        return self._model

    @cached_property
    def _model(self) -> bytes:
        return bytes(self._pieces.serialized_model_proto())  # cached: their hash is the key of the kernel

    def _kernel(self) -> Any:
        return compiled("sentencepiece_bpe", self._model)
