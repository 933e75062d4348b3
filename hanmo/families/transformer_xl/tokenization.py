"""文汇's tokenizer: sentencepiece, and the end of text behind its pieces. Exact to the original.

Exported models get this file with the text of the modules of hanmo that it imports.
Source: the recorded specification of Chinese Transformer-XL, section 6.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from hanmo.tokenizers.sentencepiece import SentencePieceTokenizer

_EOS, _EOP = "<|endoftext|>", "<|endofpiece|>"


class TransformerXLTokenizer(SentencePieceTokenizer):
    """No special tokens around a text, nor found in it. ``add_eop`` adds ``<|endofpiece|>`` (hierarchical models)."""

    vocab_files_names = {"vocab_file": "cog-pretrain.model"}

    def __init__(
        self, vocab_file: str, eos_token: str = _EOS, pad_token: str = _EOS, add_eop: bool = False, **kwargs: Any
    ) -> None:
        self.add_eop = add_eop
        kwargs.pop("additional_special_tokens", None)  # the format decides them
        kwargs["extra_special_tokens"] = [_EOP] if add_eop else []
        super().__init__(vocab_file, eos_token=eos_token, pad_token=pad_token, add_eop=add_eop, **kwargs)

    def special_ids(self) -> dict[str, int]:
        specials = [_EOS, _EOP] if self.add_eop else [_EOS]
        return {token: self.vocab_size + offset for offset, token in enumerate(specials)}

    def encode(self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **kwargs: Any) -> list[int]:
        return super().encode(text, text_pair, add_special_tokens=False, **kwargs)

    def _encode_part(self, texts: Sequence[str]) -> list[list[int]]:
        return self._pieces.encode(list(texts))

    def decode_plain(self, ids: list[int], skip_special_tokens: bool, clean_up: bool | None) -> str:
        """Ids as text with its special tokens; unused rows of the embedding add nothing. IndexError: an id below 0."""
        text = ""
        for ordinary, run in groupby(ids, key=lambda index: index < self.vocab_size):
            if ordinary:
                text += self._pieces.decode(list(run))
            elif not skip_special_tokens:
                text += "".join(self._special_names.get(index, "") for index in run)
        return text
