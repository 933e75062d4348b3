"""PanGu-α's tokenizer: jieba's words, each cut into pieces by sentencepiece. Exact to the original.

Exported models get this file with the text of the modules of hanmo that it imports.
Source: the recorded specification of the PyTorch port of PanGu-α, section "Tokenizer".
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from hanmo.tokenizers.jieba_exact import WordCutter
from hanmo.tokenizers.sentencepiece import SentencePieceTokenizer

_ROLES = {"bos_token": "<s>", "eos_token": "<eot>", "unk_token": "<unk>", "sep_token": "<sep>", "pad_token": "<pad>"}
_ADDED = ("<s>", "</s>", "<eot>", "<unk>", "<sep>", "<pad>")
_FURTHER = {"patched": "<>", "stock": ""}  # characters that may be parts of words as well
# The form in which sentencepiece gets words that are, or end with, a space or a newline.
_SPELLED = {" ": "\u2582", "\n": "\u2583", "\r\n": "\r\u2583"}


class PanguTokenizer(SentencePieceTokenizer):
    """A single text becomes ``<s>`` A ``<eot>``, a pair ``<s>`` A ``<sep>`` B ``<eot>``.

    ``jieba_mode``: "patched", as the RLHF pipeline assumes: a typed ``<sep>`` is the special token; or "stock", where it is
    split like any other text. ValueError for another mode, or a sentencepiece model without the special tokens.
    """

    vocab_files_names = {"vocab_file": "vocab.model"}

    def __init__(self, vocab_file: str, jieba_mode: str = "patched", **kwargs: Any) -> None:
        if jieba_mode not in _FURTHER:
            raise ValueError(f"jieba_mode is {jieba_mode!r}; expected one of: {', '.join(_FURTHER)}")
        self.jieba_mode = jieba_mode
        self._cut = WordCutter(_FURTHER[jieba_mode], _ADDED)
        kwargs = _ROLES | kwargs
        super().__init__(vocab_file, jieba_mode=jieba_mode, **kwargs)
        specials = [str(kwargs[role]) for role in _ROLES]
        self._specials = {token: int(self._pieces.piece_to_id(token)) for token in specials}
        if missing := [token for token, id_ in self._specials.items() if self._pieces.id_to_piece(id_) != token]:
            raise ValueError(f"{vocab_file}: not a PanGu vocabulary, it lacks {', '.join(missing)}")

    def _kernel(self) -> None:
        return None  # jieba's words come first

    def encode_plain(self, text: str) -> list[int]:
        return self._encode_words([self.segments(text)])[0]

    def _encode_part(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encode_words(list(map(self.segments, texts)))

    def segments(self, text: str) -> list[str]:
        """jieba's words, with spaces and newlines as sentencepiece gets them."""
        return [_SPELLED.get(word, word) for word in self._cut(text)]

    def _encode_words(self, texts: Sequence[list[str]]) -> list[list[int]]:
        """Ids of texts as words: special words by themselves, the runs between them joined by spaces.

        sentencepiece (0.2.3) may merge the pieces of a word differently in other contexts, so words are not cached.
        """
        joined = [" ".join(words) for words in texts]
        special = [index for index, text in enumerate(joined) if "<" in text and self._specials.keys() & texts[index]]
        for index in special:
            joined[index] = ""
        encoded = self._pieces.encode(joined)
        for index in special:
            for token, run in groupby(texts[index], key=self._specials.get):
                words = list(run)
                encoded[index] += self._pieces.encode(" ".join(words)) if token is None else [token] * len(words)
        return encoded

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [self._pieces.id_to_piece(index) for index in self.encode_plain(text)]

    def decode_plain(self, ids: list[int], skip_special_tokens: bool, clean_up: bool | None) -> str:
        if skip_special_tokens:
            ids = [index for index in ids if index not in self._specials.values()]
        text = self._pieces.decode(ids)
        return text.replace(" ", "").replace("\u2582", " ").replace("\u2583", "\n")

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        second = [] if token_ids_1 is None else [self.sep_token_id, *token_ids_1]
        return [self.bos_token_id, *token_ids_0, *second, self.eos_token_id]
