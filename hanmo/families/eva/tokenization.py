"""EVA's tokenizer: jieba's words, cut up by longest match against the vocabulary. Exact to the original.

Exported models get this file with the text of the modules of hanmo that it imports.
Source: the recorded specification of thu-coai/EVA, section 6.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from hanmo.tokenizers.base import PlainTokenizer, compiled
from hanmo.tokenizers.jieba_exact import BoundedCache, WordCutter

# Full-width forms that the original folds before it cuts words. Only the first table changes where words end.
_FOLD_IN_WORDS = (("…", "..."), ("＃", "#"), ("％", "%"), ("＆", "&"), ("＋", "+"), ("－", "-"), ("＿", "_"))
_FOLD = str.maketrans(
    "！？＂〝〞“”‟＄＇‘’‛（）＊，／：；＜＝＞＠［＼］＾｀｛｜｝～ \n",
    '!?""""""$\'\'\'\'()*,/:;<=>@[\\]^`{|}~\u2582\u2583',
)
_ROLES = {"unk_token": "<unk>", "sep_token": "<sep>", "pad_token": "<pad>", "bos_token": "<s_0>", "eos_token": "<sep>"}
_LONGEST_WORD = 200  # characters; longer words become one <unk>


class EvaTokenizer(PlainTokenizer):
    """A single text is followed by ``<sep>``; a pair is A ``<sep>`` B ``<s_0>``.

    Special tokens typed into a text are split like any other text. ``vocab_file`` has a token on each line, whose
    number is the id; ValueError if it lacks a token that the model needs.
    """

    vocab_files_names = {"vocab_file": "vocab.txt"}

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        kwargs = _ROLES | kwargs
        with Path(vocab_file).open(encoding="utf-8-sig") as lines:
            self._tokens = [line.strip() for line in lines]
        self._ids = {token: index for index, token in enumerate(self._tokens)}
        needed = {"<eod>", *(str(kwargs[role]) for role in _ROLES)}
        if missing := sorted(needed - self._ids.keys()):
            raise ValueError(f"{vocab_file}: not an EVA vocabulary, it lacks {', '.join(missing)}")
        self._longest_token = max(map(len, self._tokens))
        self._unk_id = self._ids[str(kwargs["unk_token"])]
        self._spelled = [token.replace("\u2582", " ").replace("\u2583", "\n") for token in self._tokens]
        self._cut = WordCutter()
        self._words = BoundedCache(self._match)
        super().__init__(**kwargs | {"split_special_tokens": True})

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    def get_vocab(self) -> dict[str, int]:
        return {**self._ids, **self._added_tokens_encoder}

    def encode_plain(self, text: str) -> list[int]:
        for wide, narrow in _FOLD_IN_WORDS:
            text = text.replace(wide, narrow)
        return list(chain.from_iterable(map(self._words.__getitem__, self._cut(text))))

    def _kernel(self) -> Any:
        folds = (*_FOLD_IN_WORDS, *((chr(wide), chr(narrow)) for wide, narrow in _FOLD.items()))
        return compiled("jieba_words", tuple(self._tokens), self._unk_id, _LONGEST_WORD, folds)

    def _match(self, word: str) -> list[int]:
        """Ids of a word: the longest token from the left, again and again; ``<unk>`` for a character where none fits."""
        if len(word) > _LONGEST_WORD:
            return [self._unk_id]
        if not word.isalnum():
            word = word.translate(_FOLD)
        if word in self._ids:
            return [self._ids[word]]
        ids: list[int] = []
        start = 0
        while start < len(word):
            for end in range(min(len(word), start + self._longest_token), start, -1):
                if (index := self._ids.get(word[start:end])) is not None:
                    ids.append(index)
                    start = end
                    break
            else:
                ids.append(self._unk_id)
                start += 1
        return ids

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [self._tokens[index] for index in self.encode_plain(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token.replace(" ", "\u2582").replace("\n", "\u2583"), self._unk_id)

    def _convert_id_to_token(self, index: int) -> str:
        return self._spelled[index]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        return "".join(tokens).replace("\u2582", " ").replace("\u2583", "\n")

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        first = [*token_ids_0, self.sep_token_id]
        return first if token_ids_1 is None else [*first, *token_ids_1, self.bos_token_id]

    def vocabulary_bytes(self) -> bytes:
        return "".join(f"{token}\n" for token in self._tokens).encode("utf-8")
